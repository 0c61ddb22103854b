"""Class names of any script are drawn in a font that has them, or as numbers, never as empty boxes."""

import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.image import imread

from sparsevideo.reports.fonts import drawable_names
from sparsevideo.reports.metrics import save_confused_classes, save_confusion_matrix

# Characters of private planes, which no installed font has.
ABSENT, MADE = "\U00100001", "\U00100002"


@pytest.fixture
def installed(tmp_path):
    """Install a font with one character that no other font has."""
    pen = TTGlyphPen(None)
    for point, draw in [((0, 0), pen.moveTo), ((0, 700), pen.lineTo), ((500, 700), pen.lineTo), ((500, 0), pen.lineTo)]:
        draw(point)
    pen.closePath()
    glyph = pen.glyph()
    font = FontBuilder(1000)
    font.setupGlyphOrder([".notdef", "made"])
    font.setupCharacterMap({ord(MADE): "made"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "made": glyph})
    font.setupHorizontalMetrics({".notdef": (600, 0), "made": (600, 0)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Made Here", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "made.ttf")
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "made.ttf")
    yield
    font_manager.fontManager.ttflist[:] = before


def test_drawable_names_finds_a_font_that_has_the_characters(installed):
    names, families = drawable_names(["left", MADE])
    assert names == ["left", MADE]
    assert families[-1] == "Made Here"


def test_drawable_names_without_a_font_are_numbers():
    names, families = drawable_names(["left", f"{ABSENT}", "caf\u00e9", "a\tb"])
    assert names == ["left", "1", "caf\u00e9", "3"]
    assert families == list(font_manager.FontProperties().get_family())


@pytest.mark.parametrize(
    "name", ["\u064a\u0633\u0627\u0631", "\u05e9\u05de\u05d0\u05dc", "\u0939\u093f\u0928\u094d\u0926\u0940"]
)
def test_drawable_names_of_unsupported_scripts_are_numbers(name):
    assert drawable_names(["left", name])[0] == ["left", "1"]


def test_plots_have_no_missing_glyph(installed, tmp_path):
    classes = ["left", "\u5411\u5de6", "\u064a\u0633\u0627\u0631", ABSENT, MADE]
    scores, labels = np.eye(5), np.arange(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as matplotlib's "Glyph missing from font(s)"
        save_confusion_matrix(tmp_path / "all.png", scores, labels, classes)
        save_confused_classes(tmp_path / "some.png", np.eye(5, 6, dtype=int), classes, [4, 3, 1])
    assert imread(tmp_path / "all.png").std() > 0 and imread(tmp_path / "some.png").std() > 0
