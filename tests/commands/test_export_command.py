"""`sparsevideo export`: the file answers as the network does, in a process without torch and without this package."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsevideo
from sparsevideo.cli import FAILED, OK, USAGE, main
from sparsevideo.commands import export as export_command
from sparsevideo.data.clip_sampling import at_fps
from sparsevideo.exported.predict import choose_frames

ALONE = (
    "import runpy, sys; sys.modules |= dict(torch=None, sparsevideo=None); runpy.run_path({path!r}, None, '__main__')"
)


def checkpoint(run):
    return str(run / "checkpoints" / "best.pt")


def error(capsys):
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def holds_paths(file):
    """Return whether a file, or one in a zip file, names the folder of the package on this machine."""
    folder = str(Path(sparsevideo.__file__).parent).encode()
    if not zipfile.is_zipfile(file):
        return folder in file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        return any(folder in archive.read(name) for name in archive.namelist())


def predictions(text):
    """Return label -> score for each line `path: label score, ...`."""
    lines = (line.partition(": ")[2].split(", ") for line in text.splitlines())
    return [{label: float(score) for label, score in (each.rsplit(" ", 1) for each in line)} for line in lines]


@pytest.mark.parametrize(("kind", "pixels"), [("video", "normalized"), ("image", "uint8")])
def test_the_script_beside_an_onnx_file_scores_files_as_predict_does(
    kind, pixels, trained, image_run, digits, tmp_path, capsys
):
    run, pattern = (trained, "videos/test/up/*.mp4") if kind == "video" else (image_run, "images/test/7/*")
    files = [str(path) for path in sorted(digits.glob(pattern))]
    assert main(["export", checkpoint(run), f"--out={tmp_path / 'out'}", f"--pixels={pixels}"]) == OK
    assert "largest difference" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "export.json").read_text())
    assert len(results["compared"]) == 3 and results["largest_difference"] < 1e-4
    assert results["input"]["height"] == "free" and results["preprocessing"]["pixels"] == pixels
    assert main(["predict", checkpoint(run), *files, "--views=1x1"]) == OK
    wanted = predictions(capsys.readouterr().out)
    script = ALONE.format(path=str(tmp_path / "out" / "predict.py"))
    (tmp_path / "bad").write_bytes(b"no video")
    bad = [str(tmp_path / "bad"), str(tmp_path / "missing")]
    done = subprocess.run([sys.executable, "-c", script, *bad, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 2, done.stderr  # for the two files that are bad
    got = predictions(done.stdout)
    assert len(got) == len(files) and [max(each, key=each.get) for each in got] == [
        max(each, key=each.get) for each in wanted
    ]
    for one, other in zip(got, wanted, strict=True):
        assert all(abs(one[label] - other[label]) < 0.01 for label in one.keys() & other.keys())


@pytest.mark.parametrize("target_fps", [2.5, 10, 29.97, 30, 240])
def test_the_script_resamples_time_as_the_package_does(target_fps):
    rng, settings = np.random.default_rng(0), {"frame_stride": 2, "sampling": "consecutive", "num_frames": 4}
    even = np.arange(90) * 1001 / 30000
    jump = np.concatenate((even, even + 4000))
    rounded, uneven = even.round(3), 5 + np.sort(rng.uniform(0, 3, 60))
    for times_s in (even, rounded, uneven, jump, even[:1], even[:2]):
        line = at_fps(times_s - times_s[0], target_fps)
        start = max(0, len(line) - (4 - 1) * 2 - 1) // 2
        expected = line[np.minimum(start + 2 * np.arange(4), len(line) - 1)]
        assert choose_frames(times_s, {**settings, "target_fps": target_fps}).tolist() == expected.tolist()


def test_a_file_holds_classes_and_settings_and_accepts_other_shapes(trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    args = [f"--out={tmp_path}", "--num-tubes=2", "--num-frames=2", "--fixed", "batch", "width"]
    assert main(["export", checkpoint(trained), *args]) == OK
    assert not holds_paths(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    assert "up" in about["classes"] and about["preprocessing"]["num_frames"] == 2
    assert session.get_inputs()[0].shape == [1, 3, "frames", "height", 32]
    for frames, height in ((1, 32), (7, 50)):
        (logits,) = session.run(None, {"pixels": np.zeros((1, 3, frames, height, 32), np.float32)})
        assert logits.shape == (1, 8)


def test_int8_is_smaller_and_measured(trained, digits, tmp_path, capsys):
    args = ["--quantize", f"--data.root={digits}", "--pixels=uint8"]
    assert main(["export", checkpoint(trained), f"--out={tmp_path / 'out'}", "--max-loss=100", *args]) == OK
    assert re.search(r"^int8: top-1 [\d.]+ % instead of [\d.]+ %, [\d.]+ MB", capsys.readouterr().out, re.MULTILINE)
    int8 = json.loads((tmp_path / "out" / "export.json").read_text())["quantized"]
    assert int8["bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size < int8["float_bytes"]
    assert main(["test", checkpoint(trained), f"--data.root={digits}", f"--out={tmp_path / 'test'}"]) == OK
    assert int8["float_top1"] == json.loads((tmp_path / "test" / "results.json").read_text())["top1"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"export.json", "model.onnx", "predict.py"}
    file = min((digits / "videos/test").glob("*/*.mp4"))
    script = [sys.executable, tmp_path / "out" / "predict.py", file]  # the quantizer adds metadata of its own
    (got,) = predictions(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    expected = sparsevideo.load(checkpoint(trained)).predict(file, views="1x1")
    wanted = dict(zip(expected.labels, expected.scores, strict=True))
    assert all(abs(score - wanted[label]) < 0.05 for label, score in got.items() if label in wanted)


@pytest.mark.slow
def test_int8_that_loses_too_much_is_not_written(trained, digits, tmp_path, capsys):
    args = ["--quantize", f"--data.root={digits}", "--max-loss=-101"]
    assert main(["export", checkpoint(trained), f"--out={tmp_path}", *args]) == FAILED
    assert re.search(r"int8 loses \S+ points of top-1, more than the allowed -101; nothing was written", error(capsys))
    assert not list(tmp_path.iterdir())


def test_torch_export_keeps_classes_beside_the_network(trained, tmp_path):
    assert main(["export", checkpoint(trained), f"--out={tmp_path}", "--format=pt2"]) == OK
    about = {"classes": ""}
    network = torch.export.load(tmp_path / "model.pt2", extra_files=about).module()
    assert "up" in json.loads(about["classes"])
    assert network(torch.zeros(5, 3, 1, 40, 32)).shape == (5, 8)
    assert {path.name for path in tmp_path.iterdir()} == {"export.json", "model.pt2"}
    assert not holds_paths(tmp_path / "model.pt2")


@pytest.mark.slow
def test_a_compiled_file_accepts_other_shapes(trained, tmp_path):
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("AOTInductor needs a C++ compiler")
    assert main(["export", checkpoint(trained), f"--out={tmp_path}", "--format=aoti"]) == OK
    network = torch._inductor.aoti_load_package(tmp_path / "model.pt2")
    assert "up" in json.loads(network.get_metadata()["classes"])
    assert network(torch.zeros(5, 3, 1, 40, 32)).shape == (5, 8)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--format=tflite", "format is 'tflite'; it must be one of onnx, pt2, aoti"),
        ("--pixels=float", "pixels is 'float'; it must be one of normalized, uint8"),
        ("--test.precision=bf16-true", "test.precision is bf16-true; an exported network has float32"),
        ("--fixed=depth", "'depth' cannot be fixed; the axes of this network are batch, frames, height, width"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_the_work(option, message, trained, tmp_path, capsys):
    assert main(["export", checkpoint(trained), f"--out={tmp_path / 'out'}", option]) == FAILED
    assert message in error(capsys)
    assert not (tmp_path / "out").exists()


def test_a_network_that_differs_is_not_written(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export_command, "TOLERANCE", 0.0)
    assert main(["export", checkpoint(trained), f"--out={tmp_path}", "--format=pt2"]) == FAILED
    assert re.search(r"the logits of the exported network differ by \S+ of the largest", error(capsys))
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_packages_names_the_extra(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", checkpoint(trained), f"--out={tmp_path / 'out'}"]) == FAILED
    assert "pip install '.[export]'" in error(capsys)
    assert main(["export", checkpoint(trained)]) == USAGE
