"""`sparsevideo predict`: the scores of `test` for files without labels, and a line for each file that is bad."""

import csv
import json
import os
import re
import shutil
import sys
from threading import Thread

import av
import numpy as np
import pytest
from file_server import SECRETS, serving, url_of

import sparsevideo
from sparsevideo.cli import FAILED, OK, USAGE, main
from sparsevideo.command_lines import INCOMPLETE
from sparsevideo.commands import predict as predict_command
from sparsevideo.io import probe, read_frames, read_image, write_video
from sparsevideo.models.weights import load_model, save_weights
from sparsevideo.reports.predictions import load_predictions


def checkpoint(run):
    return str(run / "checkpoints" / "best.pt")


def error(capsys):
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Zero bytes, a text, sound without video, and a missing file."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    return [str(folder / f"{name}.mp4") for name in ("zero", "text", "sound", "missing")]


@pytest.mark.parametrize("options", [["--views=2x3"], ["--views=2x3", "--share-stem", "--num-points=3"]], ids=len)
def test_predict_gives_the_scores_of_the_test_command(options, trained, digits, tmp_path, capsys):
    test = ["test", checkpoint(trained), f"--data.root={digits}", f"--out={tmp_path / 'test'}", *options]
    predict = ["predict", checkpoint(trained), str(digits / "videos/test"), f"--out={tmp_path / 'out'}", *options]
    assert (main(test), main([*predict, "--json", "--topk=3"])) == (OK, OK)
    tested, predicted = load_predictions(tmp_path / "test"), load_predictions(tmp_path / "out")
    assert predicted.names == [str(digits / name) for name in tested.names]
    assert np.abs(predicted.scores - tested.scores).max() < 1e-6
    assert predicted.labels.tolist() == [-1] * 24 and list(predicted.classes) == list(tested.classes)
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((tmp_path / "out/predictions.json").read_text())
    assert (results["views"], results["scores"], results["failed"]) == ("2x3", "softmax", [])
    best = (-tested.scores[5]).argsort()[:3]
    assert results["predictions"][5]["labels"] == [tested.classes[label] for label in best]
    assert results["predictions"][5]["scores"] == pytest.approx(tested.scores[5][best].tolist(), abs=1e-6)
    first = (tmp_path / "out/predictions.csv").read_text().splitlines()[1]
    assert first.startswith(f"{predicted.names[0]},,{tested.classes[tested.scores[0].argmax()]},")


def test_predict_refuses_parts_that_do_not_exist(trained, digits, capsys):
    command = ["predict", checkpoint(trained), str(digits / "videos/test/up")]
    for part in ("0/2", "3/2", "2", "1/", "a/b", "1/2/3", "-1/2"):
        assert main([*command, f"--part={part}"]) == USAGE
        assert error(capsys) == f"error: --part is {part!r}; it must be I/N, with I from 1 to N"
    assert main([*command, "--part=4/9"]) == FAILED
    assert "part 4 of 9 has no file, because there are only 3; use fewer parts" in error(capsys)


def test_predict_goes_on_after_bad_files_and_lists_them(trained, digits, bad, tmp_path, capsys):
    good = [str(path) for path in sorted((digits / "videos/test/up").iterdir())]
    picture = str(min((digits / "images/test").glob("*/*.jpg")))
    command = ["predict", checkpoint(trained), bad[0], good[0], *bad[1:], picture, *good[1:]]
    options = [f"--out={tmp_path / 'out'}", f"--csv={tmp_path / 'new/best.csv'}", "--topk=2", "--views=1x1"]
    assert main([*command, *options]) == INCOMPLETE
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith("could not be read: ")]
    for line, path, reason in zip(lines, [*bad, picture], [
        "does not decode (Invalid data", "does not decode (Invalid data", "holds no video stream", "no such file",
        "is an image, but the network takes videos",
    ], strict=True):  # fmt: skip
        assert line.startswith(f"could not be read: {path}: {reason}")
    assert [line.partition(": ")[0] for line in output.out.splitlines()] == good
    assert all(re.fullmatch(r"\S+: [\w-]+ 0\.\d{3}, [\w-]+ 0\.\d{3}", line) for line in output.out.splitlines())
    assert load_predictions(tmp_path / "out").failed.tolist() == [True, False, True, True, True, True, False, False]
    failed = json.loads((tmp_path / "out/predictions.json").read_text())["failed"]
    assert [each["path"] for each in failed] == [*bad, picture]
    assert [f"could not be read: {each['reason']}" for each in failed] == lines
    with (tmp_path / "new/best.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["rank"]) for row in rows] == [(path, rank) for path in good for rank in "12"]
    assert f"{rows[0]['label']} {float(rows[0]['score']):.3f}" in output.out


def test_predict_of_nothing_readable_fails_with_one_line(trained, bad, tmp_path, capsys):
    assert main(["predict", checkpoint(trained), bad[0]]) == FAILED
    assert capsys.readouterr().err.startswith(f"error: {bad[0]}: does not decode (Invalid data")
    assert main(["predict", checkpoint(trained), *bad, f"--out={tmp_path / 'out'}"]) == FAILED
    assert error(capsys).startswith(f"error: none of 4 files could be read; the first: {bad[0]}: does not decode")
    assert main(["predict", checkpoint(trained), str(tmp_path)]) == FAILED
    assert error(capsys).startswith(f"error: {tmp_path}: no video in it (1 files with other endings: 1 .json")
    assert main(["predict", checkpoint(trained), bad[0], "--topk=0"]) == FAILED
    assert error(capsys) == "error: --topk must be >= 1, got 0"
    assert main(["predict", checkpoint(trained)]) == USAGE


def test_predict_is_resumed(trained, digits, bad, tmp_path, capsys, monkeypatch):
    command = ["predict", checkpoint(trained), str(digits / "videos/test/up"), f"--out={tmp_path / 'out'}"]

    def full(folder, predictions):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(predict_command, "save_predictions", full)
        assert main(command) == FAILED
    assert error(capsys) == "error: no space left on device"
    assert main([*command[:3], bad[0], command[3]]) == FAILED
    assert "unfinished results of other settings (list " in error(capsys)
    assert main(command) == OK
    assert "resuming: 3 of 3 files are scored" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"predictions.{ending}" for ending in ("csv", "json", "npz")
    ]
    assert main([*command, "--views=1x1"]) == FAILED
    assert "predictions.json: belongs to another test (test.clips 3 -> 1)" in error(capsys)


def test_predict_without_out_writes_nothing(trained, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(trained.rglob("*"))
    assert main(["predict", checkpoint(trained), str(min(digits.glob("videos/test/up/*")))]) == OK
    assert sorted(trained.rglob("*")) == before and not list(tmp_path.iterdir())


def test_predict_without_class_names_says_what_to_do(trained, digits, tmp_path, capsys):
    model, info = load_model(checkpoint(trained))
    save_weights(tmp_path / "bare.safetensors", model)
    (tmp_path / "names.txt").write_text("\n".join(info["classes"]))
    (tmp_path / "few.txt").write_text("\n".join(info["classes"][:3]))
    file = str(min(digits.glob("videos/test/up/*")))
    command = ["predict", str(tmp_path / "bare.safetensors"), file, f"--config={trained / 'config.yaml'}"]
    assert main(command) == FAILED
    assert error(capsys).endswith(
        "bare.safetensors: has no class names; write them to a file, one per line in label order, and add"
        " --classes FILE"
    )
    assert main([*command, f"--classes={tmp_path / 'few.txt'}"]) == FAILED
    assert re.search(r"few\.txt: has 3 class names, but .*bare.safetensors has 8 classes", error(capsys))
    assert main([*command, f"--classes={tmp_path / 'names.txt'}"]) == OK
    named = capsys.readouterr().out
    assert main(["predict", checkpoint(trained), file]) == OK
    assert capsys.readouterr().out == named


@pytest.mark.parametrize("workers", [0, 1])
def test_predict_reads_urls_and_keeps_their_secrets(workers, trained, digits, tmp_path, capsys):
    path = min(digits.glob("videos/test/up/*"))
    shutil.copy(path, tmp_path / "a.mp4")
    with serving(tmp_path) as server:
        urls = [
            url_of(server, "ranges", "a.mp4"),
            url_of(server, "whole", "absent.mp4"),
            "http://u:pass@127.0.0.1:1/a.mp4",
        ]
        options = [f"--out={tmp_path / 'out'}", f"--num-workers={workers}"]
        assert main(["predict", checkpoint(trained), *urls, str(path), *options]) == INCOMPLETE
    output = capsys.readouterr()
    remote, local = (line.partition(": ")[2] for line in output.out.splitlines())
    assert remote == local
    assert re.search(
        r"could not be read: http://127\S+/whole/absent\.mp4\S*: cannot be read \(HTTP status 404", output.err
    )
    assert "could not be read: http://127.0.0.1:1/a.mp4: cannot be read (Cannot connect to host" in output.err
    written = (
        output.out
        + output.err
        + "".join((tmp_path / "out" / name).read_text() for name in ("predictions.json", "predictions.csv"))
    )
    assert not any(secret in written.replace(str(tmp_path), "") for secret in SECRETS)
    assert load_predictions(tmp_path / "out").names[0].startswith("http://127.0.0.1:")


def test_classifier_takes_urls_and_refuses_the_other_kind(trained, image_run, digits, tmp_path):
    video, picture = min(digits.glob("videos/test/up/*")), min(digits.glob("images/test/*/*"))
    shutil.copy(picture, tmp_path / "a.jpg")
    classifier, of_images = (sparsevideo.load(run, device="cpu") for run in (trained, image_run))
    with serving(tmp_path) as server:
        remote = of_images.predict(url_of(server, "whole", "a.jpg"))
    assert remote.scores == of_images.predict(picture).scores and remote.path.startswith("http://127.0.0.1:")
    with pytest.raises(sparsevideo.io.DecodeError, match="is an image, but the network takes videos"):
        classifier.predict(picture)
    (failed,) = of_images.predict([picture, video]).failures.items()
    assert failed == (str(video), f"{video}: is a video, but the network takes images; pass an image")


def test_predict_shows_a_table_on_a_terminal(trained, digits, tmp_path, monkeypatch):
    path = tmp_path / ("a_file_with_a_name_that_is_longer_than_the_terminal_is_wide_" + 40 * "x" + "_[red].mp4")
    shutil.copy(min(digits.glob("videos/test/up/*")), path)
    ours, theirs = os.openpty()
    output = []

    def read():
        with pytest.raises(OSError, match="Input/output error"):  # at the end of the terminal
            while some := os.read(ours, 4096):
                output.append(some)

    reader = Thread(target=read)
    reader.start()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert main(["predict", checkpoint(trained), str(path), "--topk=8"]) == OK
    reader.join()
    os.close(ours)
    text = re.sub("\x1b\\[[0-9;]*m", "", b"".join(output).decode())
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in text.splitlines() if "│" in line]
    assert "3x1 views" in text and max(map(len, text.splitlines())) <= 80
    assert "".join(name for name, _, _ in rows) == str(path)
    labels = [label for _, label, score in rows if score]
    assert sorted(labels) == sorted(sparsevideo.load(trained, device="cpu").classes)


def test_predict_names_videos_that_are_shorter_than_a_clip(trained, tmp_path, capsys):
    for name, length in (("short.mp4", 5), ("long.mp4", 30)):  # a clip is 7 frames long
        write_video(tmp_path / name, np.zeros((length, 32, 32, 3), np.uint8))
    assert main(["predict", checkpoint(trained), str(tmp_path)]) == OK
    output = capsys.readouterr()
    assert f"have fewer frames than a clip, so frames are repeated: {tmp_path}/short.mp4\n" in output.err
    assert len(output.out.splitlines()) == 2


def test_predict_saves_videos_with_their_best_class(trained, digits, bad, tmp_path, capsys):
    for name, label in (("one/a.mp4", "up"), ("two/a.mp4", "down"), ("two/a.mkv", "left")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(min(digits.glob(f"videos/test/{label}/*")), tmp_path / "in" / name)
    (tmp_path / "in/list.csv").write_text("path,start_frame,stop_frame\none/a.mp4,3,9\none/a.mp4,,")
    command = ["predict", checkpoint(trained), str(tmp_path / "in"), str(tmp_path / "in/list.csv")]
    assert main([*command, f"--save-video={tmp_path / 'out'}"]) == OK
    saved = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert saved == ["one/a-2.mp4", "one/a.mp4", "two/a-2.mp4", "two/a.mp4"]
    source = probe(tmp_path / "in/one/a.mp4")
    info = probe(tmp_path / "out/one/a.mp4")
    assert (info.num_frames, info.width, info.height) == (source.num_frames, source.width, source.height)
    assert info.fps == pytest.approx(source.fps)
    assert probe(tmp_path / "out/one/a-2.mp4").num_frames == 6
    before, after = (read_frames(tmp_path / folder / "one/a.mp4", [0])[0].astype(int) for folder in ("in", "out"))
    changed = np.abs(before - after).max(-1) > 60
    assert changed[-20:].any() and not changed[: len(changed) // 2].any()
    assert main([*command, f"--save-video={tmp_path / 'in'}"]) == FAILED
    assert "a.mp4: is a file to predict, which its copy would replace; choose another folder" in error(capsys)
    (tmp_path / "other name").symlink_to(tmp_path / "in")
    assert main([*command, f"--save-video={tmp_path / 'other name'}"]) == FAILED
    assert "a.mp4: is a file to predict, which its copy would replace; choose another folder" in error(capsys)


def test_predict_saves_images_with_their_best_class(image_run, digits, tmp_path):
    out = tmp_path / "out"
    assert main(["predict", checkpoint(image_run), str(digits / "images/test"), f"--save-video={out}"]) == OK
    assert len(list(out.rglob("*.png"))) == 20
    before, after = read_image(digits / "images/test/3/0000.jpg"), read_image(out / "3/0000.png")
    assert before.shape == after.shape and np.array_equal(before[:40], after[:40]) and not np.array_equal(before, after)


def test_predict_keeps_the_predictions_if_a_copy_cannot_be_written(trained, digits, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(predict_command, "edit_video", full)
    path = str(min(digits.glob("videos/test/up/*")))
    assert main(["predict", checkpoint(trained), path, f"--save-video={tmp_path}"]) == INCOMPLETE
    output = capsys.readouterr()
    assert output.out.startswith(f"{path}: ") and "0000.mp4: not written (no space left on device)" in output.err


def test_analyze_takes_predictions_once_labels_are_added(trained, digits, tmp_path, capsys):
    test = ["test", checkpoint(trained), f"--data.root={digits}", f"--out={tmp_path / 'test'}", "--json"]
    assert main(test) == OK
    top1 = json.loads(capsys.readouterr().out)["top1"]
    assert main(["predict", checkpoint(trained), str(digits / "videos/test"), f"--out={tmp_path}"]) == OK
    assert main(["analyze", str(tmp_path)]) == FAILED
    assert "predictions.npz: 24 of 24 files have no label; add --labels with a list file or class" in error(capsys)
    assert main(["analyze", str(tmp_path), f"--labels={digits / 'videos/test'}", "--json"]) == OK
    (model,) = json.loads(capsys.readouterr().out)["models"].values()
    assert model["accuracies"]["top1"]["value"] == pytest.approx(top1)
    assert main(["analyze", str(tmp_path), "--labels=nowhere.csv"]) == FAILED
    assert error(capsys) == "error: nowhere.csv: no such list or folder of labels"
