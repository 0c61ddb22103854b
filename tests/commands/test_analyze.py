"""`sparsevideo analyze`: from predictions to one page; missing files are named, bad input is refused."""

import csv
import json
import shutil
import tarfile
from fractions import Fraction
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from sparsevideo.cli import FAILED, OK, USAGE, main
from sparsevideo.commands import analyze
from sparsevideo.io.writer import write_video
from sparsevideo.reports import analysis, analysis_page, calibration, comparison
from sparsevideo.reports.predictions import Predictions, load_predictions, save_predictions

COLORS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


class Page(HTMLParser):
    """Tags, images, table rows and words of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.pictures, self.rows, self.words = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs))
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        if data.strip():
            self.words.append(data.strip())
            if self.tags[-1] in ("th", "td"):
                self.rows[-1].append(data)

    @property
    def text(self):
        return " ".join(self.words)


def save(
    folder,
    labels,
    predicted,
    classes,
    *,
    root=".",
    names=None,
    confidence=0.9,
    failed=(),
    kind="softmax",
    spans=None,
    unit="s",
):
    """Save predictions whose predicted classes have the probability `confidence`."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    k = len(classes)
    scores = np.full((len(labels), k), (1 - confidence) / (k - 1), dtype=np.float32)
    scores[np.arange(len(labels)), predicted] = confidence
    scores = np.log(scores) if kind == "logits" else scores
    flags = np.zeros(len(labels), dtype=bool)
    flags[list(failed)] = True
    scores[flags] = 0
    names = names or [f"{classes[label]}/{row}.mp4" for row, label in enumerate(labels)]
    folder.mkdir(parents=True, exist_ok=True)
    save_predictions(folder, Predictions(names, labels, scores, flags, list(classes), kind, str(root), spans, unit))
    return str(folder)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Write six files whose middle frame has the color of their class; the other frames are black."""
    root = tmp_path_factory.mktemp("videos")
    for color, rgb in COLORS.items():
        (root / color).mkdir()
        frames = np.zeros((5, 48, 80, 3), dtype=np.uint8)
        frames[2] = rgb
        write_video(root / color / "0.mp4", frames)
        Image.new("RGB", (300, 200), rgb).save(root / color / "1.png")
    return root


def error(capsys):
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def test_analyze_shows_errors_with_their_middle_frames(videos, tmp_path, monkeypatch):
    names = [f"{color}/{name}" for color in COLORS for name in ("0.mp4", "1.png")]
    folder = save(tmp_path / "test", [0, 0, 1, 1, 2, 2], [1, 2, 1, 1, 0, 2], COLORS, root=videos, names=names)
    kept = []
    original = analysis_page.save_thumbnail

    def keep(source, target, *span, **how):
        original(source, target, *span, **how)
        kept.append((source.relative_to(videos).as_posix(), np.asarray(Image.open(target))))

    monkeypatch.setattr(analysis_page, "save_thumbnail", keep)
    assert main(["analyze", folder]) == OK
    page = Page(tmp_path / "test" / "analysis" / "report.html")
    assert {name: picture.shape for name, picture in kept} == {
        "red/0.mp4": (96, 160, 3),
        "red/1.png": (107, 160, 3),
        "blue/0.mp4": (96, 160, 3),
    }
    for name, picture in kept:
        assert np.abs(picture.mean((0, 1)) - COLORS[name.partition("/")[0]]).max() < 12
    assert "Thumbnails: 3 of 3" in page.text
    assert "red predicted as green, 90.0 %: red/0.mp4" in page.words
    assert sum(picture["src"].startswith("data:image/jpeg;base64,") for picture in page.pictures) == 3


@pytest.mark.parametrize(("square", "height"), [(False, 96), (True, 64)])
def test_analyze_thumbnails_have_square_pixels_if_the_test_had(square, height, tmp_path, monkeypatch):
    with av.open(str(tmp_path / "tall.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 80, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        container.mux(stream.encode(av.VideoFrame(80, 48, "yuv420p")))
        container.mux(stream.encode())
    folder = save(tmp_path / "test", [0, 1], [1, 1], "ab", root=tmp_path, names=["tall.mp4", "b.mp4"])
    (tmp_path / "test" / "results.json").write_text(json.dumps({"clips": 1, "crops": 1, "square_pixels": square}))
    original, shapes = analysis_page.save_thumbnail, []

    def keep(source, target, *span, **how):
        original(source, target, *span, **how)
        shapes.append(np.asarray(Image.open(target)).shape)

    monkeypatch.setattr(analysis_page, "save_thumbnail", keep)
    assert main(["analyze", folder]) == OK
    assert shapes == [(height, 160, 3)]


SEGMENTS = {  # unit -> spans, columns, names of segments 0, 4 and 5, and what is wrong with the one behind the end
    "s": (
        [[0, 1], [1, 2], [2, 3], [9, np.inf], [0, 0.5], [0.5, 1]], ("start_s", "end_s"),
        ("0-1 s", "0-0.5 s", "0.5-1 s"),
        "film.mp4 [from 9 s] (no picture: no frame in the span",
    ),
    "frames": (  # as seconds, all but the first would lie behind the end of the film
        [[0, 25], [25, 50], [50, np.inf], [75, 80], [0, 12], [12, 25]], ("start_frame", "stop_frame"),
        ("frames 0-25", "frames 0-12", "frames 12-25"),
        "film.mp4 [frames 75-80] (no picture: no frame in the segment; it starts at frame 75 of 75)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("unit", SEGMENTS)
def test_analyze_segments_of_one_video_have_their_own_thumbnails_and_reasons(unit, tmp_path, monkeypatch):
    """A film of 25 frames a color; one segment lies behind its end, and the test could not read the last two."""
    spans, (start, end), (first, *unread), behind = SEGMENTS[unit]
    frames = np.concatenate([np.full((25, 48, 80, 3), rgb, dtype=np.uint8) for rgb in COLORS.values()])
    write_video(tmp_path / "film.mp4", frames, fps=25)
    folder = save(
        tmp_path / "test", [0, 1, 2, 0, 0, 0], [1, 2, 0, 1, 0, 0], COLORS,
        root=tmp_path, names=["film.mp4"] * 6, failed=[4, 5], spans=np.array(spans), unit=unit,
    )  # fmt: skip
    whys = "lost", "gone"
    failed = [
        {"name": "film.mp4", start: span[0], end: span[1], "reason": f"{tmp_path}/film.mp4 [{name}]: {why}"}
        for span, name, why in zip(spans[4:], unread, whys, strict=True)
    ]
    results = {"clips": 1, "crops": 1, "failed": failed[::-1]}
    (tmp_path / "test" / "results.json").write_text(json.dumps(results))
    pictures = []
    original = analysis_page.save_thumbnail

    def keep(source, target, *span, **how):
        original(source, target, *span, **how)
        pictures.append(np.asarray(Image.open(target)).mean((0, 1)))

    monkeypatch.setattr(analysis_page, "save_thumbnail", keep)
    assert main(["analyze", folder]) == OK
    assert np.abs(np.array(pictures) - list(COLORS.values())).max() < 12
    page = Page(tmp_path / "test" / "analysis" / "report.html")
    assert f"red predicted as green, 90.0 %: film.mp4 [{first}]" in page.words
    assert any(behind in text for text in page.words)
    for name, why in zip(unread, whys, strict=True):
        assert [f"film.mp4 [{name}]", "red", why] in page.rows
    model = json.loads((tmp_path / "test" / "analysis" / "analysis.json").read_text())["models"]["test"]
    ends = [[a, None if b == np.inf else b] for a, b in spans]
    assert [[each[start], each[end]] for each in model["confident_errors"]] == ends[:4]
    assert [[each[start], each["reason"][-4:]] for each in model["unread"]] == [
        [spans[4][0], "lost"],
        [spans[5][0], "gone"],
    ]
    assert ("start_s" in model["unread"][0]) == (unit == "s")


def test_analyze_names_files_that_are_missing_or_do_not_decode(videos, tmp_path):
    root = tmp_path / "videos"
    shutil.copytree(videos, root)
    (root / "red" / "0.mp4").write_bytes(b"no video")
    (root / "red" / "1.png").write_bytes(b"no image")
    names = ["red/0.mp4", "red/1.png", "red/gone.mp4", "blue/0.mp4", "shard.tar/1.jpg", "red/caf\udce9.mp4"]
    folder = save(tmp_path / "test", [0, 0, 0, 2, 0, 0], [1, 1, 1, 1, 1, 1], COLORS, root=root, names=names)
    assert main(["analyze", folder, f"--out={tmp_path / 'out'}"]) == OK
    page = Page(tmp_path / "out" / "report.html")
    assert "Thumbnails: 1 of 6" in page.text
    assert "red predicted as green, 90.0 %: red/gone.mp4 (no picture: no such file)" in page.words
    for name in ("red/0.mp4 (no picture: does not decode", "red/1.png (no picture: does not decode", "shard.tar/1.jpg"):
        assert name in page.text
    assert r"caf\xe9.mp4" in page.text
    assert "red/caf\udce9.mp4" in [
        each["name"]
        for each in json.loads((tmp_path / "out" / "analysis.json").read_text())["models"]["test"]["confident_errors"]
    ]


def test_analyze_thumbnails_of_tar_shards(videos, tmp_path):
    """Videos and images inside shards are shown; a shard that is damaged is the reason why one is not."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("red/0.mp4", "red/1.png", "blue/0.mp4"):
            tar.add(videos / name, name)
    (tmp_path / "b.tar").write_bytes(b"truncated")
    names = ["a.tar/red/0.mp4", "a.tar/red/1.png", "a.tar/red/gone.mp4", "b.tar/0.mp4"]
    folder = save(tmp_path / "test", [0, 0, 0, 0], [1, 1, 1, 1], COLORS, root=tmp_path, names=names)
    assert main(["analyze", folder, f"--out={tmp_path / 'out'}"]) == OK
    page = Page(tmp_path / "out" / "report.html")
    assert "Thumbnails: 2 of 4" in page.text
    assert "a.tar/red/gone.mp4 (no picture: no such file)" in page.text
    assert "b.tar: is truncated, or not a tar file" in page.text


def test_analyze_prints_and_saves_the_same_numbers(tmp_path, capsys):
    folder = save(tmp_path / "test", [0, 0, 1, 1, 2, 2], [0, 0, 1, 2, 2, 2], "abc", failed=[0])
    assert main(["analyze", folder + "/predictions.npz", "--json", "--seed=3"]) == OK
    printed = json.loads(capsys.readouterr().out)
    out = tmp_path / "test" / "analysis"
    assert printed == json.loads((out / "analysis.json").read_text())
    model = printed["models"]["test"]
    assert model["accuracies"]["top1"]["value"] == pytest.approx(400 / 6)
    assert (printed["seed"], model["listed"], model["failed"], model["scores"]) == (3, 6, 1, "softmax")
    assert printed["comparisons"] == [] and printed["fusion"] is None
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "analysis.json",
        "classes.csv",
        "confusion.png",
        "reliability.png",
    }


def test_analyze_page_fetches_nothing_and_has_the_protocol(tmp_path, capsys):
    folder = save(tmp_path / "run" / "test-4x3", [0, 0, 1, 1], [0, 0, 1, 0], ["<b>", "$5"])
    results = {"clips": 4, "crops": 3, "decoder": "pyav", "short_side": None, "environment": {}}
    (tmp_path / "run" / "test-4x3" / "results.json").write_text(json.dumps(results))
    assert main(["analyze", folder]) == OK
    assert "75.0" in capsys.readouterr().out
    page = Page(tmp_path / "run" / "test-4x3" / "analysis" / "report.html")
    assert set(page.tags).isdisjoint({"script", "link", "iframe", "a", "b"})
    assert all(picture["src"].startswith("data:") and picture["alt"] for picture in page.pictures)
    assert "4 files read of 4 listed, softmax scores; clips 4, crops 3, decoder pyav" in page.text
    assert ["<b>", "2", "100.0", "66.7", "–", "–"] in page.rows
    assert ["$5", "2", "50.0", "100.0", "<b>", "50.0"] in page.rows


def test_analyze_lists_unread_files_with_reasons(tmp_path):
    folder = save(tmp_path / "test", [0, 1, 1, 0], [0, 1, 0, 0], "ab", failed=[1, 2], root=tmp_path)
    reason = f"{tmp_path}/b/1.mp4: does not decode (<reason>); remove it or make it again"
    results = {"clips": 1, "crops": 1, "failed": [{"name": "b/1.mp4", "reason": reason}]}
    (tmp_path / "test" / "results.json").write_text(json.dumps(results))
    assert main(["analyze", folder]) == OK
    page = Page(tmp_path / "test" / "analysis" / "report.html")
    assert ["b/1.mp4", "b", "does not decode (<reason>)"] in page.rows
    assert ["b/2.mp4", "b", "unknown"] in page.rows
    model = json.loads((tmp_path / "test" / "analysis" / "analysis.json").read_text())["models"]["test"]
    assert [each["name"] for each in model["unread"]] == ["b/1.mp4", "b/2.mp4"]


def test_analyze_offers_predictions_nearby(tmp_path, capsys):
    folder = save(tmp_path / "run" / "test-1x1", [0, 1], [0, 1], "ab")
    assert main(["analyze", str(tmp_path / "run")]) == FAILED
    assert error(capsys).endswith(f"did you mean {folder}?")
    assert main(["analyze", f"{folder}/predictions.csv"]) == FAILED
    assert error(capsys).endswith("use predictions.npz beside it")


def test_analyze_ignores_a_results_file_of_another_program(tmp_path):
    folder = save(tmp_path / "test", [0, 1], [0, 1], "ab")
    (tmp_path / "test" / "results.json").write_text("[1, 2]")
    assert main(["analyze", folder]) == OK


def test_analyze_class_table_says_if_it_is_shortened():
    row = {"class": "a", "files": 1, "accuracy": 0.0, "precision": None, "taken_for": "b", "taken_for_share": 100.0}
    for count, shortened in ((30, False), (31, True)):
        _, text = analysis_page._classes([row] * count)
        assert text.startswith("<p>The 30 worst of") == shortened


def test_analyze_page_of_400_classes_is_short(tmp_path):
    labels = np.tile(np.arange(400), 5)
    predicted = np.where(np.arange(2000) < 400, (labels + 1) % 400, labels)  # one of five is wrong
    predicted[labels == 7] = 300  # the worst class, and the most confused pair
    folder = save(tmp_path / "test", labels, predicted, [f"class {k:03d}" for k in range(400)], failed=[0, 1])
    assert main(["analyze", folder]) == OK
    out = tmp_path / "test" / "analysis"
    page = Page(out / "report.html")
    assert len(page.rows) < 80
    assert "The 30 worst of 400 classes" in page.text
    assert next(row for row in page.rows if row[0].startswith("class "))[0] == "class 007"
    assert next(row for row in page.rows if "predicted as class" in row[0])[0] == "class 007 predicted as class 300"
    with (out / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["label"]) for row in rows) == list(range(400))
    assert sum(int(row["files"]) for row in rows) == 2000
    part, whole = imread(out / "confused.png"), imread(out / "confusion.png")
    assert min(part.shape[:2]) > 1000 and min(whole.shape[:2]) > 1000
    assert (out / "report.html").stat().st_size < 3e6


def test_analyze_gives_the_same_numbers_for_logits_and_softmax(tmp_path):
    labels, predicted = [0, 0, 1, 1, 2, 2, 0, 1], [0, 1, 1, 1, 2, 0, 0, 1]
    models = {}
    for kind in ("softmax", "logits"):
        folder = save(tmp_path / kind, labels, predicted, "abc", kind=kind, failed=[7], confidence=0.7)
        assert main(["analyze", folder]) == OK
        models[kind] = json.loads((tmp_path / kind / "analysis" / "analysis.json").read_text())["models"][kind]
    assert models["logits"]["calibration"]["temperature"] == pytest.approx(
        models["softmax"]["calibration"]["temperature"], rel=1e-3
    )
    assert models["logits"]["accuracies"] == models["softmax"]["accuracies"]
    pages = [Page(tmp_path / kind / "analysis" / "report.html").text for kind in models]
    assert "logarithms of the mean softmax are divided by" in pages[0]
    assert "which the logits are divided by" in pages[1]


def test_analyze_compares_and_fuses_several_files(tmp_path, capsys):
    labels = np.tile([0, 1], 20)
    good = save(tmp_path / "good" / "test-4x3", labels, labels, "ab", failed=[0])
    bad = save(tmp_path / "bad" / "test-4x3", labels, np.zeros(40, int), "ab", confidence=0.6)
    assert main(["analyze", good, bad, f"--out={tmp_path / 'both'}"]) == OK
    printed = capsys.readouterr().out
    assert "good against bad: +47.5 (" in printed
    numbers = json.loads((tmp_path / "both" / "analysis.json").read_text())
    assert list(numbers["models"]) == ["good", "bad"]  # the folders that tell them apart
    (pair,) = numbers["comparisons"]
    assert (pair["first"], pair["second"], pair["only_first"], pair["only_second"]) == ("good", "bad", 20, 1)
    assert pair["p_value"] == pytest.approx(2 * 22 / 2**21)
    assert numbers["fusion"]["models"] == ["good", "bad"]
    assert numbers["fusion"]["accuracies"]["weighted"]["top1"]["value"] == 100
    page = Page(tmp_path / "both" / "report.html")
    assert {"Comparison", "Fusion", "good: Calibration", "bad: Calibration"} <= set(page.words)
    for name in ("good", "bad"):
        assert {path.name for path in (tmp_path / "both" / name).iterdir()} == {
            "classes.csv",
            "confusion.png",
            "reliability.png",
        }


@pytest.fixture
def two_models(tmp_path):
    """The second is less confident and more often right, so the mean is not the best; the first has an unread file."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    answers = [np.where(rng.random(60) < share, labels, rng.integers(0, 3, 60)) for share in (0.2, 0.7)]
    first = save(tmp_path / "a", labels, answers[0], "xyz", failed=[5], confidence=0.8)
    return first, save(tmp_path / "b", labels, answers[1], "xyz", confidence=0.6)


def test_analyze_uses_the_seed_for_all_random_numbers(two_models):
    _, numbers = analyze.run(two_models, seed=5)
    one, other = map(load_predictions, two_models)
    first, second = analysis.get_outcomes(one), analysis.get_outcomes(other)
    model = numbers["models"]["a"]
    assert model["accuracies"] == analysis.accuracies(one.labels, first, 3, seed=5)
    assert model["calibration"] == calibration.calibration(one, seed=5)
    (pair,) = numbers["comparisons"]
    assert pair["difference"] == comparison.compare(first.top1, second.top1, seed=5)["difference"]
    fused = comparison.fusion([one, other], seed=5)
    assert numbers["fusion"] == {"models": ["a", "b"], **fused}


def test_analyze_page_has_the_numbers_of_the_report(two_models, monkeypatch):
    drawn = {}
    for draw in (analysis_page.metrics.save_reliability_diagram, analysis_page.metrics.save_confusion_matrix):

        def keep(path, *args, draw=draw, **kwargs):
            drawn[path.parent.name, path.name] = *args, kwargs
            draw(path, *args, **kwargs)

        monkeypatch.setattr(analysis_page.metrics, draw.__name__, keep)
    out, numbers = analyze.run(two_models)
    page, model = Page(out / "report.html"), numbers["models"]["a"]
    states, temperature = model["calibration"], f"at temperature {model['calibration']['temperature']:.2f}"
    assert [
        "a",
        *analysis_page.accuracy_cells(model["accuracies"]),
        f"{states['all']['ece']:.1f}",
        "60",
        "1",
    ] in page.rows
    for key, name in (
        ("all", "all readable files, as they are"),
        ("before", "other half, as it is"),
        ("after", f"other half, {temperature}"),
    ):
        state = states[key]
        assert [name, str(state["samples"]), f"{state['nll']:.3f}", f"{state['ece']:.1f}"] in page.rows
    panels, _ = drawn["a", "reliability.png"]
    assert panels == {"as it is": states["before"]["bins"], temperature: states["after"]["bins"]}
    assert drawn["a", "confusion.png"][-1] == {"failed": [5]}
    scored, (pair,) = numbers["fusion"]["accuracies"], numbers["comparisons"]
    assert ["plain mean", *analysis_page.accuracy_cells(scored["mean"])] in page.rows
    assert ["weighted", *analysis_page.accuracy_cells(scored["weighted"])] in page.rows
    assert scored["mean"] != scored["weighted"]
    row = next(row for row in page.rows if row[0] == "a against b")
    assert row[2:4] == [str(pair["only_first"]), str(pair["only_second"])]
    assert pair["only_first"] != pair["only_second"]
    assert "59 files read of 60 listed" in page.text


def test_analyze_names_models_after_different_folders(tmp_path):
    def names(*paths):
        return analyze._names([tmp_path / path for path in paths])

    assert names("run/test/predictions.npz") == ["test"]
    assert names("run/a/predictions.npz", "run/b/predictions.npz") == ["a", "b"]
    assert names("x/a/predictions.npz", "y/a/predictions.npz", "y/b/predictions.npz") == ["x/a", "y/a", "y/b"]
    assert names("run/first.npz", "run/second.npz") == ["first", "second"]
    with pytest.raises(ValueError, match="given twice"):
        names("run/first.npz", "run/../run/first.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["x.mp4", "y.mp4", "other.mp4", "w.mp4"]}, "file 2 is 'z.mp4' against 'other.mp4'"),
        ({"labels": [0, 1, 1, 1]}, "label 2 is 0 against 1 (of z.mp4)"),
        ({"classes": "ac"}, "class 1 is 'b' against 'c'"),
    ],
)
def test_analyze_refuses_different_lists_with_the_first_difference(change, message, tmp_path, capsys):
    fields = {"labels": [0, 1, 0, 1], "predicted": [0, 1, 1, 1], "classes": "ab"}
    fields["names"] = ["x.mp4", "y.mp4", "z.mp4", "w.mp4"]
    folders = [save(tmp_path / "one", **fields), save(tmp_path / "two", **(fields | change))]
    assert main(["analyze", *folders]) == FAILED
    line = error(capsys)
    assert message in line
    assert "one/predictions.npz" in line and "two/predictions.npz" in line
    assert not (tmp_path / "one" / "analysis").exists()


def test_analyze_refuses_bad_input_in_one_line_without_files(tmp_path, capsys):
    good = save(tmp_path / "good", [0, 1], [0, 1], "ab")
    failed = save(tmp_path / "failed", [0, 1], [0, 1], "ab", failed=[0, 1])
    for folders in ([failed], [good, failed]):
        assert main(["analyze", *folders]) == FAILED
        assert "failed/predictions.npz: at least 2 readable files are needed, got 0 of 2 listed" in error(capsys)
    nan = save(tmp_path / "nan", [0, 1, 0], [0, 1, 0], "ab", confidence=float("nan"))
    assert main(["analyze", nan]) == FAILED
    assert "nan/predictions.npz: 3 rows have scores that are NaN or infinite; the first is 0, a/0.mp4" in error(capsys)
    (tmp_path / "truncated.npz").write_bytes(b"PK\3\4 truncated")
    assert main(["analyze", str(tmp_path / "truncated.npz")]) == FAILED
    assert "truncated.npz: not the predictions of a test" in error(capsys)
    assert main(["analyze", str(tmp_path / "nowhere")]) == FAILED
    assert "nowhere: no such file" in error(capsys)
    assert main(["analyze", good, good]) == FAILED
    assert "given twice" in error(capsys)
    assert main(["analyze"]) == USAGE
    assert "predictions" in error(capsys)
    assert main(["analyze", good, f"--out={tmp_path / 'truncated.npz' / 'out'}"]) == FAILED
    assert "truncated.npz" in error(capsys)
    assert list(tmp_path.rglob("analysis")) == []


def test_analyze_of_right_answers_only(tmp_path):
    folder = save(tmp_path / "test", [0, 1, 0], [0, 1, 0], "ab")
    assert main(["analyze", folder]) == OK
    page = Page(tmp_path / "test" / "analysis" / "report.html")
    assert "There are none." in page.words
    assert not any("predicted as" in row[0] for row in page.rows)
