"""The commands `test` and `extract`: options, resuming, results, and messages for wrong input."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from threading import Thread
from time import monotonic, sleep

import av
import numpy as np
import pytest
import torch
import yaml
from av.bitstream import BitStreamFilterContext
from toy_runs import IMAGE, VIDEO

from sparsevideo.cli import FAILED, OK, USAGE, main
from sparsevideo.command_lines import INCOMPLETE
from sparsevideo.commands import test as test_command
from sparsevideo.data import clip_sampling
from sparsevideo.data.transforms import Normalize
from sparsevideo.io.backends import read_frames
from sparsevideo.io.image import read_image
from sparsevideo.io.pixels import resize
from sparsevideo.io.writer import write_video
from sparsevideo.models.elastic import with_budget
from sparsevideo.models.weights import load_model, read_weights, save_weights
from sparsevideo.reports.features import load_features
from sparsevideo.reports.predictions import load_predictions

SIZE = 32  # data.size of the toy runs


def error(capsys):
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def checkpoint(run):
    return str(run / "checkpoints" / "best.pt")


def make_videos(root, classes, height, width):
    """Write a video of 30 frames per class, with moving colors, so that all positions and frames differ."""
    y, x, t = np.meshgrid(np.arange(height), np.arange(width), np.arange(30), indexing="ij")
    for number, name in enumerate(classes):
        waves = [np.sin((x * (c + 1) + y * (number % 3) + t * (number + 1)) / 9) for c in range(3)]
        frames = (127 + 120 * np.stack(waves, -1)).astype(np.uint8).transpose(2, 0, 1, 3)
        folder = root / "videos" / "test" / name
        folder.mkdir(parents=True)
        write_video(folder / "a.mp4", np.ascontiguousarray(frames))
    return root


@pytest.fixture(scope="module")
def classes(trained):
    return json.loads(json.dumps(read_weights(checkpoint(trained))["classes"]))


@pytest.fixture(scope="module")
def wide(classes, tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("wide"), classes, 48, 80)


@pytest.fixture(scope="module")
def trained_on_images(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "image"
    assert main(["train", *IMAGE, f"--data.root={digits}", f"--out={out}"]) == OK
    return out


def scores(run, root, out, *options):
    assert main(["test", checkpoint(run), f"--data.root={root}", f"--out={out}", *options]) == OK
    return load_predictions(out)


def test_results_describe_the_test(trained, wide, classes, tmp_path):
    predictions = scores(trained, wide, tmp_path, "--views=2x3", "--num-points=3")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["stored_short_sides"] == {"48": 8}
    assert (results["hparams"]["num_points"], results["hparams"]["num_tubes"]) == (3, 4)
    assert (results["num_points"], results["num_tubes"]) == (3, None)
    assert (results["listed"], results["scored"], results["failed"]) == (8, 8, [])
    assert (predictions.names[0], predictions.root) == (f"videos/test/{classes[0]}/a.mp4", str(wide.resolve()))
    rows = (tmp_path / "predictions.csv").read_text().splitlines()
    assert rows[0] == ",".join(["path", "label", "predicted", *classes])
    assert rows[3].split(",")[:2] == [predictions.names[2], classes[2]]
    assert [float(cell) for cell in rows[3].split(",")[3:]] == pytest.approx(predictions.scores[2].tolist(), rel=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.csv", "predictions.npz", "results.json"]


def test_a_test_with_one_view_equals_the_validation(digits, tmp_path):
    run = tmp_path / "run"
    assert main(["train", *VIDEO, f"--data.root={digits}", f"--out={run}", "--train.ema=0.5"]) == OK
    *_, validation = (json.loads(line) for line in (run / "metrics.jsonl").open())
    scores(run, digits, tmp_path / "val", "--test.split=val", "--views=1x1")
    results = json.loads((tmp_path / "val" / "results.json").read_text())
    assert validation["split"] == "val"
    assert {name: results[name] for name in ("top1", "top5", "mean_class_accuracy", "loss")} == {
        name: validation[name] for name in ("top1", "top5", "mean_class_accuracy", "loss")
    }
    assert f"validation at step 4: loss {validation['loss']:.3f}  top1" in (run / "log.txt").read_text()
    (events,) = (run / "tensorboard").iterdir()
    assert b"val/loss" in events.read_bytes()


@pytest.mark.parametrize("kind", ["softmax", "logits"])
def test_the_loss_is_the_cross_entropy_of_the_mean_scores_of_the_files_that_could_be_read(
    kind, trained, wide, classes, tmp_path
):
    root = tmp_path / "data"
    shutil.copytree(wide, root)
    (root / "videos" / "test" / classes[0] / "a.mp4").write_bytes(b"corrupt")
    options = [f"--data.root={root}", f"--out={tmp_path / 'out'}", "--views=3x1", f"--test.scores={kind}"]
    assert main(["test", checkpoint(trained), *options]) == INCOMPLETE
    starts = clip_sampling.spread_clips(30, 4, 2, 3)
    logits = slow_logits(trained, wide, [(numbers, *CROPS[1]) for numbers in starts])[1:].double()
    log_prob = logits.softmax(-1).mean(1).log() if kind == "softmax" else logits.mean(1).log_softmax(-1)
    labels = torch.arange(1, len(classes))
    loss = json.loads((tmp_path / "out" / "results.json").read_text())["loss"]
    assert loss == pytest.approx(torch.nn.functional.nll_loss(log_prob, labels).item(), abs=1e-5)


def slow_logits(run, root, views, **budget):
    """Slow reference: decode, crop and score each view separately; return logits (n, V, K).

    `views` gives for a video of 30 frames the frame numbers, and for frames of a size the boxes and their shape.
    """
    model = load_model(checkpoint(run))[0]
    model = with_budget(model, **budget).eval()
    rows = []
    with torch.no_grad():
        for path in sorted((root / "videos" / "test").rglob("*.mp4")):
            logits = []
            for numbers, (top, left, height, width), shape in views:
                frames = read_frames(path, numbers)[:, top : top + height, left : left + width]
                clip = torch.from_numpy(resize(frames, shape)).permute(3, 0, 1, 2)
                logits.append(model(Normalize()(clip[None]))[0])
            rows.append(torch.stack(logits))
    return torch.stack(rows)


CROPS = [((0, left, 48, 48), (SIZE, SIZE)) for left in (0, 16, 32)]  # of frames of 48 x 80


def test_scores_are_the_mean_softmax_over_clips_and_crops_or_their_mean_logits(trained, wide, tmp_path):
    starts = clip_sampling.spread_clips(30, 4, 2, 3)
    logits = slow_logits(trained, wide, [(numbers, *crop) for numbers in starts for crop in CROPS])
    plain = scores(trained, wide, tmp_path / "softmax", "--views=3x3")
    assert np.abs(plain.scores - logits.softmax(-1).mean(1).numpy()).max() < 1e-6
    assert plain.kind == "softmax"
    other = scores(trained, wide, tmp_path / "logits", "--views=3x3", "--test.scores=logits", "--test.batch_size=4")
    assert np.abs(other.scores - logits.mean(1).numpy()).max() < 1e-5
    assert other.kind == "logits"


@pytest.mark.parametrize("options", [[], ["--share-stem"]])
def test_frame_order_gives_the_scores_of_clips_that_were_reordered_by_hand(options, trained, classes, tmp_path):
    square = make_videos(tmp_path / "square", classes, 48, 48)
    starts = clip_sampling.spread_clips(30, 4, 2, 3)
    orders = {"reversed": [clip[::-1] for clip in starts], "middle": [[15] * 4] * 3}
    for order, clips in orders.items():
        logits = slow_logits(trained, square, [(clip, *CROPS[0]) for clip in clips])
        option = f"--test.frame_order={order}"
        got = scores(trained, square, tmp_path / order, "--views=3x1", option, *options)
        assert np.abs(got.scores - logits.softmax(-1).mean(1).numpy()).max() < 1e-6
        assert json.loads((tmp_path / order / "results.json").read_text())["frame_order"] == order


def test_shuffled_frames_are_equal_in_each_run(trained, wide, tmp_path):
    """Also with loader processes and other batches."""
    options = ["--views=3x3", "--test.frame_order=shuffled"]
    once = scores(trained, wide, tmp_path / "once", *options)
    again = scores(trained, wide, tmp_path / "again", *options, "--data.num_workers=2", "--test.batch_size=9")
    assert np.abs(once.scores - again.scores).max() < 1e-6
    clips = clip_sampling.spread_clips(30, 4, 2, 3)
    clips = clip_sampling.order_frames(clips, "shuffled", middle=15, name=once.names[2])
    logits = slow_logits(trained, wide, [(clip, *crop) for clip in clips for crop in CROPS])[2]
    assert np.abs(once.scores[2] - logits.softmax(-1).mean(0).numpy()).max() < 1e-6


def test_frame_orders_are_different_tests(trained, wide, tmp_path, capsys, monkeypatch):
    """Their folders differ, and neither results nor unfinished scores are mixed."""
    test = ["test", checkpoint(trained), f"--data.root={wide}", "--views=1x1"]
    assert main([*test, "--test.frame_order=reversed"]) == OK
    assert (trained / "test-1x1-frames-reversed" / "results.json").exists()
    assert main([*test, "--test.frame_order=shuffled", f"--out={trained / 'test-1x1-frames-reversed'}"]) == FAILED
    assert "belongs to another test (test.frame_order reversed -> shuffled)" in error(capsys)

    def full(folder, predictions):
        raise OSError("no space left on device")

    monkeypatch.setattr(test_command, "save_predictions", full)
    for order, message in (
        ("reversed", "no space left on device"),
        ("forward", "other settings (test.frame_order reversed -> forward)"),
    ):
        assert main([*test, f"--test.frame_order={order}", f"--out={tmp_path / 'out'}"]) == FAILED
        assert message in error(capsys)


def test_smaller_budgets_cover_the_same_time(trained, wide, tmp_path):
    (numbers,) = clip_sampling.spread_clips(30, 2, 4, 1)  # instead of 4 frames at stride 2
    logits = slow_logits(trained, wide, [(numbers, *CROPS[1])], num_tubes=2, num_points=3)
    got = scores(trained, wide, tmp_path, "--views=1x1", "--num-frames=2", "--num-tubes=2", "--num-points=3")
    assert np.abs(got.scores - logits.softmax(-1)[:, 0].numpy()).max() < 1e-6


def test_full_frames_keep_their_shape(trained, wide, tmp_path):
    starts = clip_sampling.spread_clips(30, 4, 2, 2)
    whole = ((0, 0, 48, 80), (SIZE, 52))  # 53.3, to the nearest multiple of 4
    logits = slow_logits(trained, wide, [(numbers, *whole) for numbers in starts])
    got = scores(trained, wide, tmp_path / "alone", "--views=2x1", "--full-frame")
    assert np.abs(got.scores - logits.softmax(-1).mean(1).numpy()).max() < 1e-6
    shared = scores(trained, wide, tmp_path / "shared", "--views=2x1", "--full-frame", "--share-stem")
    assert np.abs(got.scores - shared.scores).max() < 1e-6


def test_pixels_that_are_not_square_are_counted_and_resized_on_request(trained, wide, classes, tmp_path, caplog):
    """Two files are stored narrower than they are shown; `data.square_pixels` resizes them."""
    shutil.copytree(wide, tmp_path / "mixed")
    names = [f"videos/test/{name}/a.mp4" for name in classes[:2]]
    for name in names:
        with av.open(str(wide / name)) as reader, av.open(str(tmp_path / "mixed" / name), "w") as writer:
            source = reader.streams.video[0]
            stream = writer.add_stream_from_template(source)
            tag = BitStreamFilterContext("h264_metadata=sample_aspect_ratio=3/2", source, stream)
            for packet in reader.demux(video=0):
                for tagged in tag.filter(packet) if packet.size else ():
                    tagged.stream = stream
                    writer.mux(tagged)
    plain = scores(trained, wide, tmp_path / "plain", "--views=1x1").scores
    for square in (False, True):
        caplog.clear()
        option = f"--data.square_pixels={str(square).lower()}"
        got = scores(trained, tmp_path / "mixed", tmp_path / f"out{square}", "--views=1x1", option).scores
        results = json.loads((tmp_path / f"out{square}" / "results.json").read_text())
        assert results["square_pixels"] is square
        assert results["stored_sample_aspect_ratios"] == {"1:1": 6, "3:2": 2}
        assert results["stored_short_sides"] == {"48": 8}
        (line,) = [record.getMessage() for record in caplog.records if "square" in record.getMessage()]
        assert line.startswith(f"2 files have pixels that are not square, for example {names[0]}; ")
        assert np.array_equal(got[2:], plain[2:])
        assert np.array_equal(got[:2], plain[:2]) != square
    assert main(["analyze", str(tmp_path / "outTrue")]) == OK


def test_a_shared_stem_is_exact_for_clips_and_differs_at_the_borders_of_crops(trained, classes, wide, tmp_path):
    square = make_videos(tmp_path / "square", classes, 48, 48)
    views = ["--views=9x1", "--data.frame_stride=3"]  # 36 frames of clips are 22 frames of the video
    alone = scores(trained, square, tmp_path / "a", *views)
    shared = scores(trained, square, tmp_path / "b", *views, "--share-stem")
    assert np.abs(alone.scores - shared.scores).max() < 1e-6
    alone = scores(trained, wide, tmp_path / "c", "--views=2x3")
    shared = scores(trained, wide, tmp_path / "d", "--views=2x3", "--share-stem")
    assert 1e-6 < np.abs(alone.scores - shared.scores).max() < 0.02


def test_crops_of_images_share_a_stem(trained_on_images, digits, tmp_path):
    run = trained_on_images
    alone, shared = (scores(run, digits, tmp_path / str(len(o)), "--views=1x3", *o) for o in ([], ["--share-stem"]))
    assert np.abs(alone.scores - shared.scores).max() < 1e-6  # the images are square
    assert main(["test", checkpoint(run), f"--data.root={digits}", "--num-tubes=2"]) == FAILED


def test_images_are_resized_to_a_larger_short_side_than_the_crop(digits, tmp_path):
    """Validation and test resize images of 80 x 80 to 40 x 40 and take the center 32 x 32, in one step."""
    run = tmp_path / "run"
    assert main(["train", *IMAGE, f"--data.root={digits}", f"--out={run}", "--test.short_side=40"]) == OK
    *_, validation = (json.loads(line) for line in (run / "metrics.jsonl").open())
    got = scores(run, digits, tmp_path / "val", "--test.split=val")
    results = json.loads((tmp_path / "val" / "results.json").read_text())
    assert (results["resized_short_side"], results["loss"]) == (40, validation["loss"])
    model = load_model(checkpoint(run))[0].eval()
    for name, expected in zip(got.names, got.scores, strict=True):
        image = read_image(digits / name)
        assert image.shape == (80, 80, 3)
        crop = resize(image[8:72, 8:72], (SIZE, SIZE))
        in_two_steps = resize(image, (40, 40))[4:36, 4:36]
        assert np.array_equal(crop[1:-1, 1:-1], in_two_steps[1:-1, 1:-1])  # the borders depend on their surroundings
        pixels = torch.from_numpy(crop).permute(2, 0, 1)
        with torch.no_grad():
            assert model(Normalize()(pixels[None])).softmax(-1)[0].numpy() == pytest.approx(expected, abs=1e-6)
    other = scores(run, digits, tmp_path / "other", "--test.split=val", "--test.short_side=32")
    assert np.abs(other.scores - got.scores).max() > 1e-6


def test_a_killed_test_is_resumed(trained, digits, tmp_path, capsys):
    options = ["test", checkpoint(trained), f"--data.root={digits}", "--views=4x2", "--test.batch_size=1"]
    assert main([*options, f"--out={tmp_path / 'alone'}"]) == OK

    out = tmp_path / "killed"
    command = [sys.executable, "-m", "sparsevideo", *options, f"--out={out}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = monotonic() + 180
    while not any(path.stat().st_size > 100 for path in out.glob("unfinished/*.rows")):
        assert process.poll() is None and monotonic() < deadline, process.stderr.read()
        sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "results.json").exists()

    assert main([*options, f"--out={out}", "--data.frame_stride=1"]) == FAILED
    assert "unfinished results of other settings (data.frame_stride 2 -> 1)" in error(capsys)
    assert main([*options, f"--out={out}"]) == OK
    assert "resuming: " in capsys.readouterr().err
    alone, resumed = (load_predictions(folder) for folder in (tmp_path / "alone", out))
    assert alone.names == resumed.names
    assert np.abs(alone.scores - resumed.scores).max() < 1e-6
    numbers = [json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "alone", out)]
    assert numbers[0].keys() == numbers[1].keys()
    assert {name for name in numbers[0] if numbers[0][name] != numbers[1][name]} <= {"environment", "time"}
    assert not (out / "unfinished").exists()


def test_weights_without_settings_are_tested_with_a_run_file(trained, digits, tmp_path, capsys):
    weights, run_file = tmp_path / "weights.safetensors", tmp_path / "run.yaml"
    model, info = load_model(checkpoint(trained))
    save_weights(weights, model, classes=info["classes"])
    assert main(["test", str(weights)]) == FAILED
    assert "give the run file of the network with --config" in error(capsys)
    run_file.write_text((trained / "config.yaml").read_text())
    command = ["test", str(weights), "--config", str(run_file), "--views=2x1", f"--out={tmp_path / 'weights'}"]
    assert main(command) == OK
    own = scores(trained, digits, tmp_path / "own", "--views=2x1")
    assert np.array_equal(load_predictions(tmp_path / "weights").scores, own.scores)
    # Without class names those of the list are used, if their number matches.
    bare = tmp_path / "bare.pt"
    content = read_weights(checkpoint(trained))
    torch.save({"model": content["model"], "hparams": content["hparams"]}, bare)
    assert main(["test", str(bare), "--config", str(run_file), f"--out={tmp_path / 'bare'}"]) == OK
    assert "has no class names" in capsys.readouterr().err
    shutil.copytree(digits / "videos" / "test" / "up", tmp_path / "few" / "videos" / "test" / "up")
    assert main(["test", str(bare), "--config", str(run_file), f"--data.root={tmp_path / 'few'}"]) == FAILED
    assert "has 8 classes, but the list has 1: up" in error(capsys)


def test_the_results_name_the_protocol(trained, wide, tmp_path):
    found = {}
    options = ["--views=2x3", "--test.short_side=40"]
    for name in ("ends", "slowfast"):
        probs = scores(trained, wide, tmp_path / name, *options, f"--test.protocol={name}").scores
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert [results[key] for key in ("protocol", "resized_short_side")] == [name, 40]
        found[name] = probs, results["target_fps"]
    assert found["ends"][1] is None and found["slowfast"][1] == 30
    assert not np.allclose(found["ends"][0], found["slowfast"][0])
    assert main(["test", checkpoint(trained), f"--data.root={wide}", *options, "--test.protocol=slowfast"]) == OK
    assert (trained / "test-2x3-slowfast-short-side-40" / "results.json").exists()


def test_a_run_file_changes_the_settings_of_a_checkpoint_but_not_its_network(trained, wide, tmp_path, capsys):
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump({"data": {"root": str(wide), "frame_stride": 3}, "test": {"clips": 2}}))
    assert main(["test", checkpoint(trained), f"--config={run_file}", f"--out={tmp_path}"]) == OK
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["clips"], results["frame_stride"], results["size"]) == (2, 3, SIZE)
    run_file.write_text("model: {name: video_sparseformer_tiny}")
    assert main(["test", checkpoint(trained), f"--config={run_file}"]) == USAGE
    assert "the run file is for video_sparseformer_tiny" in error(capsys)
    assert main(["test", checkpoint(trained), "--optim.lr=1"]) == USAGE
    assert "a test uses only the settings of data and test" in error(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-frames=3"], "it must be one of 1, 2, 4, 8 "),
        (["--num-points=5"], "num_points must be <= 4, the number of the trained network, got 5"),
        (["--num-tubes=0"], "test.num_tubes is 0"),
        (["--full-frame", "--views=1x3"], "set test.crops to 1, got 3"),
        (["--share-stem", "--data.size=30"], "data.size is 30; with test.share_stem it must be a multiple of 4"),
        (["--data.target_fps=.nan"], "data.target_fps is nan; it must be above 0 and finite"),
    ],
)
def test_settings_that_the_network_does_not_allow_are_refused(options, message, trained, digits, capsys):
    assert main(["test", checkpoint(trained), f"--data.root={digits}", *options]) == FAILED
    assert message in error(capsys)


def test_a_run_folder_stands_for_its_best_checkpoint(trained, tmp_path, capsys):
    assert main(["test", str(trained), f"--out={tmp_path / 'out'}"]) == OK
    assert json.loads((tmp_path / "out" / "results.json").read_text())["checkpoint"] == checkpoint(trained)
    (tmp_path / "empty").mkdir()
    assert main(["test", str(tmp_path / "empty")]) == FAILED
    assert error(capsys).endswith("empty: has no checkpoints/best.pt; pass a checkpoint")


def test_results_are_replaced_only_by_the_same_test(trained, wide, classes, tmp_path, capsys):
    test = ["test", checkpoint(trained), f"--data.root={wide}", f"--out={tmp_path / 'out'}"]
    assert main([*test, "--views=1x1"]) == OK
    assert main([*test, "--views=1x1", "--test.batch_size=1"]) == OK
    kept = (tmp_path / "out" / "predictions.npz").read_bytes()
    assert main([*test, "--views=1x3"]) == FAILED
    assert "results.json: belongs to another test (test.crops 1 -> 3)" in error(capsys)
    (tmp_path / "list.csv").write_text(f"videos/test/{classes[0]}/a.mp4,{classes[0]}\n")
    assert main([*test, "--views=1x1", f"--data.list={tmp_path / 'list.csv'}"]) == FAILED
    assert "list.csv" in error(capsys)
    (tmp_path / "out" / "results.json").write_text("[]")
    assert main([*test, "--views=1x1"]) == FAILED
    assert "belongs to another test (it has no settings)" in error(capsys)
    assert (tmp_path / "out" / "predictions.npz").read_bytes() == kept


def test_a_test_on_the_training_list_is_warned_of(digits, tmp_path, capsys):
    run, test = tmp_path / "run", ["--views=1x1", "--test.batch_size=8"]
    assert main(["train", *VIDEO, f"--data.root={digits}", "--data.list=videos/train", f"--out={run}"]) == OK
    for listing, warned in (("videos/train", True), ("videos/test", False)):
        capsys.readouterr()
        scores(run, digits, tmp_path / listing.replace("/", "-"), *test, f"--data.list={listing}")
        assert ("is the training list of the network" in capsys.readouterr().err) == warned


def test_a_file_listed_twice_is_refused_but_not_two_segments_of_it(trained, wide, classes, tmp_path, capsys):
    name, root = f"videos/test/{classes[0]}/a.mp4", f"--data.root={wide}"
    listing = tmp_path / "list.csv"
    listing.write_text(f"{name},{classes[0]}\n{name},{classes[1]}\n")
    assert main(["test", checkpoint(trained), root, f"--data.list={listing}"]) == FAILED
    assert f"lists {name} twice" in error(capsys)
    listing.write_text("path,label,start_s,end_s\n" + f"{name},{classes[0]},0,0.5\n" * 2)
    assert main(["test", checkpoint(trained), root, f"--data.list={listing}"]) == FAILED
    assert f"lists {name} [0-0.5 s] twice" in error(capsys)
    parts = "".join(f"{name},{classes[0]},{start},{start + 0.5}\n" for start in (0, 0.5))
    listing.write_text("path,label,start_s,end_s\n" + parts)
    scores(trained, wide, tmp_path / "parts", "--views=1x1", f"--data.list={listing}")


def test_results_name_the_seconds_of_each_segment(trained, wide, classes, tmp_path, capsys):
    """Four segments of a video of three seconds. The third starts after its end, the others are scored like clips."""
    name, spans = f"videos/test/{classes[0]}/a.mp4", [[0, 1], [1, 2], [5, 6], [2, np.inf]]
    listing = tmp_path / "list.csv"
    rows = "".join(f"{name},{classes[0]},{start},{'' if end == np.inf else end}\n" for start, end in spans)
    listing.write_text("path,label,start_s,end_s\n" + rows)
    options = [checkpoint(trained), f"--data.root={wide}", f"--data.list={listing}", "--views=1x1"]
    assert main(["test", *options, f"--out={tmp_path / 'out'}"]) == INCOMPLETE
    line = f"could not be read and counts as wrong: {wide / name} [5-6 s]: no frame in the span"
    assert line in capsys.readouterr().err
    (failed,) = json.loads((tmp_path / "out" / "results.json").read_text())["failed"]
    assert (failed["name"], failed["start_s"], failed["end_s"]) == (name, 5, 6)
    predictions = load_predictions(tmp_path / "out")
    assert predictions.names == [name] * 4 and predictions.spans.tolist() == spans
    columns = [row.split(",")[:3] for row in (tmp_path / "out" / "predictions.csv").read_text().splitlines()]
    assert (
        columns[0] == ["path", "start_s", "end_s"]
        and columns[2] == [name, "1.0", "2.0"]
        and columns[4] == [name, "2.0", ""]
    )
    model = load_model(checkpoint(trained))[0].eval()
    for row, first, frames in ((0, 0, 10), (1, 10, 10), (3, 20, 10)):
        numbers = first + clip_sampling.spread_clips(frames, 4, 2, 1)[0]
        pixels = torch.from_numpy(resize(read_frames(wide / name, numbers)[:, :, 16:64], (SIZE, SIZE)))
        with torch.no_grad():
            expected = model(Normalize()(pixels.permute(3, 0, 1, 2)[None])).softmax(-1)[0]
        assert np.abs(predictions.scores[row] - expected.numpy()).max() < 1e-6
    assert main(["extract", *options, f"--out={tmp_path / 'f.npz'}"]) == INCOMPLETE
    assert load_features(tmp_path / "f.npz").spans.tolist() == spans


def test_an_unfinished_test_of_other_segments_is_refused(trained, wide, classes, tmp_path, capsys, monkeypatch):
    """Two segments of a video are swapped in the list, so the rows of the journal do not match any more."""
    name, listing = f"videos/test/{classes[0]}/a.mp4", tmp_path / "list.csv"
    rows = [f"{name},{classes[0]},{start},{start + 1}" for start in (0, 1)]
    test = ["test", checkpoint(trained), f"--data.root={wide}", f"--data.list={listing}", f"--out={tmp_path / 'out'}"]

    def full(folder, predictions):
        raise OSError("no space left on device")

    monkeypatch.setattr(test_command, "save_predictions", full)
    for order, message in (
        (rows, "no space left on device"),
        (rows[::-1], "unfinished results of other settings (list "),
    ):
        listing.write_text("\n".join(["path,label,start_s,end_s", *order]))
        assert main([*test, "--views=1x1"]) == FAILED
        assert message in error(capsys)


def test_images_have_one_clip(trained_on_images, digits, capsys):
    assert main(["test", checkpoint(trained_on_images), f"--data.root={digits}", "--views=4x1"]) == OK
    results = json.loads((trained_on_images / "test-1x1" / "results.json").read_text())
    assert (results["clips"], results["frame_order"]) == (1, None)
    options = [f"--data.root={digits}", "--test.frame_order=reversed"]
    assert main(["test", checkpoint(trained_on_images), *options]) == FAILED
    assert "test.frame_order is for videos, but the checkpoint is an image network" in error(capsys)


def test_a_test_without_readable_videos_is_an_error(trained, classes, tmp_path, capsys):
    for name in classes:
        (tmp_path / "videos" / "test" / name).mkdir(parents=True)
        (tmp_path / "videos" / "test" / name / "a.mp4").write_bytes(b"corrupt")
    out = tmp_path / "results"
    assert main(["test", checkpoint(trained), f"--data.root={tmp_path}", f"--out={out}"]) == FAILED
    line = error(capsys)
    assert "none of 8 files could be read" in line and f"{classes[0]}/a.mp4" in line
    assert not (out / "results.json").exists()


def test_features_are_the_inputs_of_the_classifier_by_path(trained, wide, classes, tmp_path, capsys):
    out = tmp_path / "features.npz"
    shutil.copytree(wide, tmp_path / "data")
    (tmp_path / "data" / "videos" / "test" / classes[0] / "corrupt.mp4").write_bytes(b"corrupt")
    args = ["extract", checkpoint(trained), f"--data.root={tmp_path / 'data'}", f"--out={out}", "--views=2x1", "--json"]
    assert main(args) == INCOMPLETE
    assert json.loads(capsys.readouterr().out) == {"files": 9, "failed": 1, "width": 32}
    features = load_features(out)
    starts = clip_sampling.spread_clips(30, 4, 2, 2)
    model, _ = load_model(checkpoint(trained))
    rows = []
    for numbers in starts:
        frames = read_frames(wide / features.names[2], numbers)[:, :, 16:64]
        clip = torch.from_numpy(resize(frames, (SIZE, SIZE))).permute(3, 0, 1, 2)
        with torch.no_grad():
            rows.append(model.norm(model.forward_features(Normalize()(clip[None])).tokens.mean(1))[0])
    assert features[features.names[2]] == pytest.approx(torch.stack(rows).mean(0).numpy(), abs=1e-5)
    assert not features[f"videos/test/{classes[0]}/corrupt.mp4"].any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "features.npz"]


def test_features_per_clip_have_the_seconds_of_the_clip(trained, wide, classes, tmp_path, capsys):
    """A video, a segment of it, one after its end, and a corrupt file; clips of 4 frames at stride 2, at 10 fps."""
    root = tmp_path / "data"
    shutil.copytree(wide, root)
    name, corrupt = f"videos/test/{classes[0]}/a.mp4", f"videos/test/{classes[1]}/a.mp4"
    (root / corrupt).write_bytes(b"corrupt")
    rows = [
        f"{name},{classes[0]},,",
        f"{name},{classes[0]},1,1.95",
        f"{name},{classes[0]},5,6",
        f"{corrupt},{classes[1]},,",
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,start_s,end_s", *rows]))
    options = ["extract", checkpoint(trained), f"--data.root={root}", f"--data.list={tmp_path / 'list.csv'}", "--json"]
    args = [*options, "--views=3x2", "--per-clip", f"--out={tmp_path / 'clips.npz'}"]
    assert main(args) == INCOMPLETE
    output = capsys.readouterr()
    assert json.loads(output.out) == {"clips": 12, "failed": 6, "width": 32}
    assert "32 features of each of 3 clips of 2 files" in output.err
    features = load_features(tmp_path / "clips.npz")
    assert features.names == [name] * 9 + [corrupt] * 3
    assert features.labels.tolist() == [0] * 9 + [1] * 3 and features.failed.tolist() == [False] * 6 + [True] * 6
    whole = [[0, 0.7], [1.1, 1.8], [2.3, 3]]
    part = [[1, 1.7], [1.1, 1.8], [1.3, 1.95]]  # frames 10 to 19; the last one ends with the segment
    assert features.spans[:6] == pytest.approx(np.array(whole + part), abs=1e-9)
    assert features.spans[6:].tolist() == [[5, 6]] * 3 + [[0, np.inf]] * 3
    assert not features.features[6:].any()

    model, _ = load_model(checkpoint(trained))
    for row, first in enumerate([0, 11, 23, 10, 11, 13]):
        frames = read_frames(wide / name, first + 2 * np.arange(4))
        crops = []
        for left in (0, 32):
            clip = torch.from_numpy(resize(frames[:, :, left : left + 48], (SIZE, SIZE))).permute(3, 0, 1, 2)
            with torch.no_grad():
                crops.append(model.norm(model.forward_features(Normalize()(clip[None])).tokens.mean(1))[0])
        assert features.features[row] == pytest.approx(torch.stack(crops).mean(0).numpy(), abs=1e-5), row

    assert main([*options, "--views=3x2", f"--out={tmp_path / 'means.npz'}"]) == INCOMPLETE
    means = load_features(tmp_path / "means.npz")
    assert features.features.reshape(4, 3, 32).mean(1) == pytest.approx(means.features, abs=1e-5)


def test_results_of_segments_in_frames_are_in_frames(trained, wide, classes, tmp_path, capsys):
    """At 10 frames per second, frame 10 is second 1. Clips always have seconds."""
    root = tmp_path / "data"
    shutil.copytree(wide, root)
    name, corrupt = f"videos/test/{classes[0]}/a.mp4", f"videos/test/{classes[1]}/a.mp4"
    (root / corrupt).write_bytes(b"corrupt")
    parts = [(name, 0, 10), (name, 10, 20), (name, 50, 60), (name, 20, np.inf), (corrupt, 0, np.inf)]
    label = {name: classes[0], corrupt: classes[1]}
    for unit, header, scale in (("frames", "start_frame,stop_frame", 1), ("s", "start_s,end_s", 10)):
        rows = [f"{path},{label[path]},{a // scale},{'' if b == np.inf else int(b) // scale}" for path, a, b in parts]
        (tmp_path / f"{unit}.csv").write_text("\n".join([f"path,label,{header}", *rows]))
    options = [checkpoint(trained), f"--data.root={root}"]
    in_frames, in_s = (f"--data.list={tmp_path / unit}.csv" for unit in ("frames", "s"))
    assert main(["test", *options, in_frames, "--views=1x1", f"--out={tmp_path / 'frames'}"]) == INCOMPLETE
    output = capsys.readouterr().err
    line = f"could not be read and counts as wrong: {root / name} [frames 50-60]: no frame in the segment; it starts at"
    assert line in output and "[50-60 s]" not in output
    failed = json.loads((tmp_path / "frames" / "results.json").read_text())["failed"]
    assert [(each["start_frame"], each["stop_frame"]) for each in failed] == [(50, 60), (0, None)]
    assert not {"start_s", "end_s"} & failed[0].keys()
    predictions = load_predictions(tmp_path / "frames")
    assert predictions.spans_unit == "frames" and predictions.segment(1) == f"{name} [frames 10-20]"
    first = (tmp_path / "frames" / "predictions.csv").read_text().splitlines()[:3]
    assert first[0].startswith("path,start_frame,stop_frame,label") and first[2].startswith(f"{name},10,20,")
    assert main(["test", *options, in_s, "--views=1x1", f"--out={tmp_path / 's'}"]) == INCOMPLETE
    assert np.array_equal(load_predictions(tmp_path / "s").scores, predictions.scores)  # the same frames
    assert main(["analyze", str(tmp_path / "frames"), str(tmp_path / "s"), f"--out={tmp_path / 'both'}"]) == FAILED
    assert f"file 0 is '{name} [frames 0-10]' against '{name} [0-1 s]'" in error(capsys)

    assert main(["extract", *options, in_frames, "--views=1x1", f"--out={tmp_path / 'f.npz'}"]) == INCOMPLETE
    assert load_features(tmp_path / "f.npz").spans_unit == "frames"
    for unit, listing in (("frames", in_frames), ("s", in_s)):
        args = ["--views=2x1", "--per-clip", f"--out={tmp_path / unit}-clip_sampling.npz"]
        assert main(["extract", *options, listing, *args]) == INCOMPLETE
    per_clip, expected = (load_features(tmp_path / f"{unit}-clip_sampling.npz") for unit in ("frames", "s"))
    assert per_clip.spans_unit == "s" and np.array_equal(per_clip.features, expected.features)
    read = [0, 1, 2, 3, 6, 7]
    assert per_clip.spans[read] == pytest.approx(expected.spans[read], abs=1e-9)
    assert per_clip.spans[2:4] == pytest.approx(np.array([[1, 1.7], [1.3, 2]]), abs=1e-9)
    # The seconds of a segment in frames are unknown if the file failed; a whole file starts at 0 and has no end.
    assert np.isnan(per_clip.spans[4:6]).all() and per_clip.spans[8:].tolist() == [[0, np.inf]] * 2


def test_per_clip_features_of_images_are_refused(trained_on_images, digits, capsys):
    weights = checkpoint(trained_on_images)
    assert main(["extract", weights, f"--data.root={digits}", "--per-clip"]) == FAILED
    assert error(capsys).startswith("error: --per-clip is for videos, but ")
    assert main(["test", weights, "--per-clip"]) == USAGE


def test_features_need_no_labels_and_tests_do(trained, wide, classes, tmp_path, capsys):
    shutil.copytree(wide / "videos" / "test", tmp_path / "new")
    names = [f"new/{name}/a.mp4" for name in classes]
    (tmp_path / "list.txt").write_text("\n".join(names))
    common = [checkpoint(trained), f"--data.root={tmp_path}", "--data.list=list.txt", "--views=1x1"]
    assert main(["extract", *common, f"--out={tmp_path / 'a.npz'}"]) == OK
    features = load_features(tmp_path / "a.npz")
    assert features.labels.tolist() == [-1] * len(classes) and list(features.classes) == classes
    (tmp_path / "list.csv").write_text("".join(f"{path},{name}\n" for path, name in zip(names, classes, strict=True)))
    assert main(["extract", *common, "--data.list=list.csv", f"--out={tmp_path / 'b.npz'}"]) == OK
    assert np.array_equal(load_features(tmp_path / "b.npz").features, features.features)
    assert main(["probe", f"{tmp_path / 'a.npz'}", f"{tmp_path / 'b.npz'}"]) == FAILED
    assert f"{len(classes)} training files have no label; extract features from a list with labels" in error(capsys)
    assert main(["test", *common, f"--out={tmp_path / 'test'}"]) == FAILED
    assert "list.txt, line 1: has no label; write one for each file" in error(capsys)


def test_extracted_features_are_probed(trained, digits, tmp_path, capsys):
    for split in ("train", "test"):
        args = ["extract", checkpoint(trained), f"--data.root={digits}", f"--test.split={split}", "--views=1x1"]
        assert main([*args, f"--out={tmp_path / split}.npz"]) == OK
    assert main(["probe", f"{tmp_path / 'train'}.npz", f"{tmp_path / 'test'}.npz", "--json"]) == OK
    results = json.loads(capsys.readouterr().out)
    assert all(0 <= results[name]["top1"] <= 100 for name in ("knn", "linear"))


def test_other_segments_of_the_same_files_are_another_test(trained, wide, classes, tmp_path, capsys):
    parts = tmp_path / "parts.csv"
    test = ["test", checkpoint(trained), f"--data.root={wide}", f"--data.list={parts}", f"--out={tmp_path / 'out'}"]
    for start, code in ((0.0, OK), (0.25, FAILED)):
        rows = [f"videos/test/{name}/a.mp4,{name},{start},1" for name in classes]
        parts.write_text("\n".join(["path,label,start_s,end_s", *rows]))
        assert main([*test, "--views=1x1"]) == code
    assert "results.json: belongs to another test (list " in error(capsys)


def test_a_folder_is_refused_as_a_file_of_features(trained, digits, tmp_path, capsys):
    assert main(["extract", checkpoint(trained), f"--data.root={digits}", f"--out={tmp_path}"]) == FAILED
    assert error(capsys) == f"error: {tmp_path}: is a folder; --out must name the file to write"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [False, True])
def test_progress_bars_go_to_the_terminal_and_restore_it(bad, trained, digits, wide, tmp_path, monkeypatch, capsys):
    """The results go to the pipe and the bar to the terminal, whose cursor is visible at the end."""
    if bad:
        run = ["train", *VIDEO, f"--data.root={digits}", "--optim.lr=1e30", "--optim.warmup_lr=1e30"]
    else:
        run = ["test", checkpoint(trained), f"--data.root={wide}", "--views=1x1", "--json"]
    ours, theirs = os.openpty()
    output = []

    def read():
        with suppress(OSError):  # at the end of the terminal
            while some := os.read(ours, 4096):
                output.append(some)

    reader = Thread(target=read)
    reader.start()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        code = main([*run, f"--out={tmp_path / 'out'}"])
    reader.join()
    os.close(ours)
    output = b"".join(output)
    assert code == (FAILED if bad else OK), output
    assert output.count(b"\x1b[?25l") == output.count(b"\x1b[?25h") > 0
    assert bad or json.loads(capsys.readouterr().out)["scored"] == 8
