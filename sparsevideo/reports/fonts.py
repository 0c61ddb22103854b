"""Class names of any script in plots: a font that has their characters, or numbers."""

import unicodedata
from collections.abc import Sequence
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font


def drawable_names(classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return class names, with the label number instead of each name that cannot be drawn, and font families for them.

    matplotlib neither joins letters nor writes from right to left: names in Arabic, Hebrew or Indic scripts are
    replaced even if a font has their letters.
    """
    families = list(FontProperties().get_family())
    available = set(_characters(findfont(FontProperties())))
    wanted = {character for name in classes if _is_simple(name) for character in name}
    for font in fontManager.ttflist if wanted - available else ():
        if "last" in font.name.lower() and "resort" in font.name.lower():
            continue  # this font has only one box per block of Unicode
        found = (wanted - available) & _characters(font.fname)
        if found:
            families.append(font.name)
            available |= found
    names = [name if _is_simple(name) and available >= set(name) else str(label) for label, name in enumerate(classes)]
    return names, families


def _is_simple(name: str) -> bool:
    """Return whether a name can be written one character after the other, from left to right."""
    return not any(
        unicodedata.bidirectional(character) in ("R", "AL")
        or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Mc", "Me")
        or (unicodedata.category(character) == "Mn" and not "\u0300" <= character <= "\u036f")
        for character in name
    )


@cache
def _characters(font_path: str) -> frozenset[str]:
    return frozenset(map(chr, get_font(font_path).get_charmap()))
