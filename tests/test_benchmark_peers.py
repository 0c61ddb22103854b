"""The peers of the benchmarks cost what our networks cost and resume exactly; folds are tested; boxes follow motion."""

import json

import numpy as np
import pytest
import torch
from toy_runs import NANO_ARGS, one_thread

from benchmarks import motion_boxes, peers, transfer
from benchmarks.pretraining import Run, train_and_test
from sparsevideo.cli import OK, main
from sparsevideo.io import write_video
from sparsevideo.models.create import create_model
from sparsevideo.models.weights import load_weights, read_weights
from sparsevideo.reports.profile import count_macs, count_parameters

SETTINGS = ["--config=quickstart/image_nano.yaml", "--model.name=resnet", "--data.num_workers=0", "--train.max_steps=4"]
SETTINGS += ["--train.batch_size=4", "--train.validate_every=0", "--train.checkpoint_every=2", "--train.ema=0.9"]


@pytest.mark.parametrize("name", [name for name in peers.PEERS if name != "frame_average"])
def test_peer_costs_what_our_network_costs(name):
    peer = peers.create_network(name)
    ours = create_model(peers.OURS[peer.ndim], num_classes=peers.NUM_CLASSES)
    shape = peers.INPUTS[peer.ndim]
    assert peers.count_gmac(peer, shape) == pytest.approx(count_macs(ours, shape).all_ops / 1e9, rel=0.1)
    assert peer.ndim == 2 or count_parameters(peer) <= count_parameters(ours)


def test_frame_average_is_the_mean_of_the_logits_of_an_image_network():
    image = create_model("sparseformer_nano", num_classes=5).eval()
    average = peers.create_network("frame_average", 5).eval()
    load_weights(average, image.state_dict(), strict=True)
    clip = torch.randn(2, 3, 3, 64, 64)
    with torch.no_grad():
        logits = torch.stack([image(frame) for frame in clip.unbind(2)]).mean(0)
        assert torch.allclose(average(clip), logits, atol=1e-5)
    with pytest.raises(ValueError, match="image weights do not fit a video model"):
        load_weights(create_model("video_sparseformer_nano"), average.state_dict())


def test_a_peer_of_differences_scores_all_still_clips_alike():
    torch.manual_seed(0)
    peer = peers.create_network("r2plus1d_differences", num_classes=5).eval()
    assert peer.hparams == {"num_classes": 5, "differences": True, **peers.PEERS["r2plus1d"]}
    still = torch.randn(2, 3, 1, 32, 32).expand(-1, -1, 4, -1, -1)
    moving = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.allclose(*peer(still), atol=1e-6)
        assert not torch.allclose(*peer(moving), atol=1e-6)
        assert torch.allclose(peer(moving), peer(moving + still), atol=1e-4)
        assert torch.equal(peer.forward_head(peer.forward_tokens(moving).tokens), peer(moving))
        ours = peers.create_network("sparseformer_differences", num_classes=5).eval()
        assert torch.allclose(*ours(still), atol=1e-6) and not torch.allclose(*ours(moving), atol=1e-6)
    with pytest.raises(ValueError, match="differences: an image has one frame"):
        peers.build_network(num_classes=5, differences=True, **peers.PEERS["resnet"])


def test_peer_is_trained_resumed_and_tested(digits, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    settings = [*SETTINGS, f"--data.root={digits}"]
    with one_thread(), peers.peers_allowed():
        assert train_and_test(whole, settings) == OK
        half = whole / "checkpoints" / "previous.pt"
        assert read_weights(half)["step"] == 2
        assert main(["train", *settings, f"--out={resumed}", f"--resume={half}"]) == OK
    ours, theirs = (read_weights(folder / "checkpoints" / "last.pt") for folder in (resumed, whole))
    for part in ("model", "model_ema"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in theirs[part])
    row = Run(whole).row()
    assert (row["network"], row["scored"], row["split"]) == ("resnet", 20, "test")


def test_transfer_trains_on_the_other_folds_and_gathers_the_results(digits, tmp_path):
    data, work = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    (data / "videos").symlink_to(digits / "videos" / "test")
    files = sorted((data / "videos").rglob("*/*.mp4"))
    rows = [f"{file.relative_to(data)},{file.parent.name},{index % 3}" for index, file in enumerate(files)]
    (data / "metadata.csv").write_text("\n".join(["path,label,fold", *rows]))
    settings = ["--config=quickstart/video_nano.yaml", *NANO_ARGS, "--train.max_steps=1", "--train.batch_size=2"]
    settings += ["--data.size=32", "--data.num_frames=4", "--data.num_workers=0"]
    for fold in ("0", "2"):
        transfer.main(["train", str(data), str(work / "fresh"), "--folds", fold, "--seeds", "3", "--", *settings])
    transfer.main(["probe", str(data), str(work / "features"), "--folds", "1", "--", *settings])
    transfer.main(["table", str(tmp_path / "table"), str(work)])

    results = json.loads((tmp_path / "table.json").read_text())
    assert [(run["fold"], run["seed"]) for run in results["fresh"]["runs"]] == [("0", 3), ("2", 3)]
    assert results["features"]["runs"][0].keys() == {"fold", "seed", "knn", "linear"}
    trained_on = (work / "folds" / "0" / "train.csv").read_text().splitlines()
    assert len(trained_on) == 16 and not {row.split(",")[0] for row in rows[::3]} & {
        row.split(",")[0] for row in trained_on
    }
    reversed_test = json.loads((work / "fresh" / "fold0-seed3" / "test-reversed" / "results.json").read_text())
    assert reversed_test["frame_order"] == "reversed"
    assert "| fresh |" in (tmp_path / "table.md").read_text()
    assert str(tmp_path) not in (tmp_path / "table.json").read_text()

    for fold in ("0", "2"):
        (work / "fresh" / f"fold{fold}-seed3").rename(work / "fresh" / f"fold{fold}-seed0")
    with pytest.raises(FileNotFoundError, match="work: has no folder fold"):
        motion_boxes.main(["compare", str(work), "boxes.csv", str(tmp_path / "motion")])
    motion_boxes.main(["make", str(data), str(tmp_path / "boxes.csv")])
    motion_boxes.main(["compare", str(work / "fresh"), str(tmp_path / "boxes.csv"), str(tmp_path / "motion")])
    compared = json.loads((tmp_path / "motion.json").read_text())
    assert compared.keys() == {"0", "2"} and compared["2"]["files"]["scored"] == 8
    assert str(tmp_path) not in (tmp_path / "motion.json").read_text()
    table = (tmp_path / "motion.md").read_text().splitlines()
    shares = compared["2"]["points"]["center"]
    cell = f"{shares['percent']['value']:.1f} ({shares['times_uniform']['value']:.2f})"
    assert table[0] == "| points in the box, % (times uniform) | fold 0 | fold 2 |"
    assert table[4].startswith("| center prior |") and table[4].endswith(f"| {cell} |")
    assert (tmp_path / "motion.png").stat().st_size > 1000


def test_motion_boxes_follow_a_moving_square(tmp_path):
    """A square of 48 pixels moves to the right by 8 pixels a frame; 0.1 s are two frames."""
    frames = np.zeros((10, 120, 160, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[36:84, 8 * index : 8 * index + 48] = 255
    still = np.zeros_like(frames)
    write_video(tmp_path / "square.mp4", np.concatenate((frames, still)), fps=20)
    boxes = motion_boxes.motion_boxes(tmp_path / "square.mp4")
    assert set(boxes) == {*range(2, 12)}  # the square disappears, then nothing moves
    for index in range(2, 10):
        x0, y0, x1, y1 = boxes[index]
        # Both edges move: the area between the places of the two frames, 16 pixels wide on either side of the square.
        assert (x0 + x1) / 2 == pytest.approx((8 * index + 16) / 160, abs=0.05)
        assert (y0 + y1) / 2 == pytest.approx(0.5, abs=0.05)
        assert y1 - y0 == pytest.approx(1 / 3, abs=0.01) and (x1 - x0) * 160 == pytest.approx((y1 - y0) * 120, abs=1)


def test_means_over_folds_and_seeds():
    runs = [{"fold": fold, "seed": seed, "top1": 10 * fold + seed} for fold in (1, 2) for seed in (3, 5)]
    assert transfer.over_folds(runs[::2], "top1") == "18.0"
    assert transfer.over_folds(runs, "top1") == "19.0 ± 1.4"
    assert transfer.over_folds(runs[:3], "top1") == "17.0 (not all folds with all seeds)"
    assert transfer.by_fold(runs, "top1") == "14.0 / 24.0"
