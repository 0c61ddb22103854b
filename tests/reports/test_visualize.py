"""Drawings show RoIs and points at the positions and on the frames that the network samples."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from sparsevideo import create_model
from sparsevideo.models.sampling import sample_points
from sparsevideo.reports.visualize import (
    BANDWIDTH,
    SamplingTrace,
    density,
    frame_densities,
    overlay_density,
    render_frames,
    save_density,
    save_strip,
    trace_batch,
    trace_sampling,
)

HEIGHT = 200
FAR = [7.0, 7.0, 0.0, 8.0, 8.0, 1.0]  # a box outside the frame


def trace(rois=(FAR,), points=((9.0, 9.0, 0.5),), num_tubes=1):
    """One sampling step of tokens that have the same points."""
    rois = np.array(rois, dtype=np.float32)[None]
    points = np.broadcast_to(np.array(points, dtype=np.float32), (1, rois.shape[1], len(points), 3))
    return SamplingTrace(rois, points, num_tubes)


def ink(num_frames, sampled, boxes=None, size=(30, 40)):
    """Return the drawings on black frames as brightness (T, H', W'), of the left side alone."""
    drawn = render_frames(np.zeros((num_frames, *size, 3), np.uint8), sampled, boxes=boxes, height=HEIGHT)
    return drawn[:, :, : drawn.shape[2] // 2].max(-1).astype(float)


def centroid(image):
    """Return the center of brightness (x, y), in fractions of the picture."""
    y, x = np.indices(image.shape)
    return ((x + 0.5) * image).sum() / image.sum() / image.shape[1], (
        ((y + 0.5) * image).sum() / image.sum() / image.shape[0]
    )


@pytest.mark.parametrize(("x", "y"), [(0.5, 0.5), (0.25, 0.5), (0.9, 0.1), (0.333, 0.777)])
def test_point_is_drawn_at_its_fraction_of_the_frame(x, y):
    drawn = ink(1, trace(points=[(x, y, 0.5)]))[0]
    width = drawn.shape[1]
    assert drawn.sum() / drawn.max() == pytest.approx(np.pi * (0.01 * HEIGHT) ** 2, rel=0.2)  # one round dot
    assert centroid(drawn) == pytest.approx((x, y), abs=1 / width)


def test_point_opacity_is_the_interpolation_weight_of_the_frame():
    """Compare with the features that are sampled from a clip whose frame f holds 1 in channel f."""
    num_frames = 5
    feat = torch.eye(num_frames).view(1, num_frames, num_frames, 1, 1).expand(-1, -1, -1, 4, 4)
    brightest = ink(1, trace(points=[(0.5, 0.5, 0.5)])).max()
    for t in (-0.3, 0.0, 0.1, 0.25, 0.5, 0.55, 0.88, 1.0, 1.7):
        weight = sample_points(feat, torch.tensor([[[[0.5, 0.5, t]]]])).flatten().numpy()
        drawn = ink(num_frames, trace(points=[(0.5, 0.5, t)])).max((1, 2))
        assert drawn / brightest == pytest.approx(weight, abs=0.02)


def test_roi_outline_is_drawn_at_its_corners():
    drawn = ink(1, trace([[0.2, 0.3, 0.0, 0.7, 0.9, 1.0]]))[0]
    height, width = drawn.shape
    rows, columns = np.nonzero(drawn > drawn.max() / 2)
    assert (columns.min() / width, columns.max() / width) == pytest.approx((0.2, 0.7), abs=0.01)
    assert (rows.min() / height, rows.max() / height) == pytest.approx((0.3, 0.9), abs=0.01)
    assert drawn[height // 2, width // 2] == 0  # an outline only


def test_roi_that_leaves_the_frame_is_clipped():
    """An RoI on the left side must not continue on the right side, and its far edge must not move to the border."""
    drawn = ink(1, trace([[0.5, -1.0, 0.0, 3.0, 2.0, 1.0]]))[0]
    lit = np.flatnonzero((drawn > drawn.max() / 2).any(0)) / drawn.shape[1]
    assert lit == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("num_frames", "num_tubes", "frames_of_tube"),
    [
        (8, 4, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (7, 7, [[0], [1], [2], [3], [4], [5], [6]]),  # in float32 some sevenths end beyond where the next ones start
        (4, 8, [[0], [0], [1], [1], [2], [2], [3], [3]]),
        (1, 2, [[0], [0]]),
    ],
)
def test_roi_is_drawn_on_the_frames_that_its_span_covers(num_frames, num_tubes, frames_of_tube):
    model = create_model("video_sparseformer_nano", num_tubes=num_tubes)
    for roi, frames in zip(model.token_roi.detach().numpy()[::9], frames_of_tube, strict=True):
        drawn = ink(num_frames, trace([[0.2, 0.2, roi[2], 0.8, 0.8, roi[5]]]))
        assert np.flatnonzero(drawn.any((1, 2))).tolist() == frames


@pytest.mark.parametrize(("start", "end", "frames"), [(0.3, 0.31, [1]), (-2.0, -1.0, [0]), (1.2, 1.5, [3])])
def test_roi_shorter_than_a_frame_or_outside_the_clip_is_drawn_on_the_sampled_frame(start, end, frames):
    drawn = ink(4, trace([[0.2, 0.2, start, 0.8, 0.8, end]]))
    assert np.flatnonzero(drawn.any((1, 2))).tolist() == frames


def test_true_boxes_are_drawn_on_their_frames():
    boxes = np.array([[0.1, 0.1, 0.3, 0.3], [0.6, 0.6, 0.8, 0.8]])
    drawn = ink(2, trace(), boxes)
    for image, box in zip(drawn, boxes, strict=True):
        assert centroid(image) == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), abs=0.03)


def test_tubes_have_different_colors():
    rois = [[0.1, 0.1, 0.0, 0.2, 0.9, 1.0], [0.3, 0.1, 0.0, 0.4, 0.9, 1.0], [0.6, 0.1, 0.0, 0.7, 0.9, 1.0]]
    drawn = render_frames(np.zeros((1, 40, 40, 3), np.uint8), trace(rois, num_tubes=3), height=HEIGHT)[0]
    left_edges = [drawn[HEIGHT // 2, int(HEIGHT * roi[0]) - 2 : int(HEIGHT * roi[0]) + 3].max(0) for roi in rois]
    assert len({tuple(edge) for edge in left_edges}) == 3


def test_render_frames_has_the_first_step_left_and_the_last_right():
    sampled = trace()
    points = np.array([[[[0.2, 0.5, 0.5]]], [[[0.5, 0.1, 0.5]]], [[[0.9, 0.5, 0.5]]]])
    sampled = SamplingTrace(sampled.rois.repeat(3, axis=0), points, num_tubes=1)
    drawn = render_frames(np.zeros((1, 40, 40, 3), np.uint8), sampled, height=HEIGHT)[0].max(-1)
    assert centroid(drawn[:, :HEIGHT])[0] == pytest.approx(0.2, abs=0.01)
    assert centroid(drawn[:, HEIGHT:])[0] == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("size", [(64, 64), (50, 19), (31, 57), (240, 427)])
def test_render_frames_can_be_encoded(size):
    """uint8 RGB with even sides: H.264 takes no others; and the frame itself is under the drawing."""
    frames = np.full((2, *size, 3), (200, 30, 60), np.uint8)
    drawn = render_frames(frames, trace(), height=150)
    assert drawn.dtype == np.uint8 and drawn.shape[:2] == (2, 150) and drawn.shape[2] % 2 == 0
    assert drawn.shape[2] / 300 == pytest.approx(size[1] / size[0], rel=0.02)
    assert (drawn == [200, 30, 60]).all()


def test_trace_sampling_returns_every_step():
    model = create_model("video_sparseformer_nano", num_classes=3, drop_path=0.5)  # drop path is off in the trace
    torch.nn.init.normal_(model.focus.adjust.proj.weight)
    clip = torch.randn(3, 6, 32, 48)
    sampled = trace_sampling(model, clip)
    assert model.training
    model.eval()
    features = model.forward_features(clip[None])
    assert sampled.num_tubes == 4
    assert np.array_equal(sampled.rois, torch.stack(features.rois)[:, 0].detach())
    assert np.array_equal(sampled.points, torch.stack(features.points)[:, 0].detach())
    trace_sampling(model, clip)
    assert not model.training


def test_trace_sampling_of_an_image_is_a_clip_of_one_frame():
    model = create_model("sparseformer_nano", num_classes=3)
    sampled = trace_sampling(model, torch.randn(3, 32, 32))
    assert sampled.rois.shape == (4, 9, 6) and sampled.points.shape == (4, 9, 16, 3)
    grid = model.token_roi.detach().numpy()  # fresh weights leave the boxes where they start
    assert np.allclose(sampled.rois[-1][:, [0, 1, 3, 4]], grid, atol=1e-6)
    assert (
        (sampled.rois[..., 2] == 0).all()
        and (sampled.rois[..., 5] == 1).all()
        and (sampled.points[..., 2] == 0.5).all()
    )


def test_trace_sampling_refuses_wrong_input():
    model = create_model("video_sparseformer_nano").train()
    with pytest.raises(ValueError, match="clips"):
        trace_sampling(model, torch.randn(3, 32, 32))
    assert model.training


@pytest.mark.parametrize(
    ("name", "shape"), [("video_sparseformer_nano", (3, 12, 32, 48)), ("sparseformer_nano", (3, 32, 48))]
)
def test_save_strip_shows_the_frames_of_the_clip(tmp_path, name, shape):
    """Frames of plain colors: each shown column holds its own, undisturbed in the first row."""
    num_frames = shape[1] if len(shape) == 4 else 1
    sampled = trace_sampling(create_model(name), torch.randn(shape))
    frames = np.zeros((num_frames, 32, 48, 3), np.uint8)
    frames[..., 0] = np.linspace(100, 250, num_frames).astype(np.uint8)[:, None, None]
    boxes = np.tile([0.2, 0.2, 0.6, 0.6], (num_frames, 1))
    save_strip(tmp_path / "strip.png", frames, sampled, boxes=boxes, title="$5_{$ is not a formula", columns=5)
    picture = (imread(tmp_path / "strip.png")[..., :3] * 255).round().astype(int)
    picture = picture[: len(picture) // 3]
    reds = {red for red in range(100, 251) if (picture == [red, 0, 0]).all(-1).sum() > 5000}
    assert reds == set(frames[np.unique(np.linspace(0, num_frames - 1, 5).round().astype(int)), 0, 0, 0].tolist())


def slow_density(points, weights, height, width):
    """Add a Gaussian for each point at each pixel, then divide by the mean."""
    sigma = BANDWIDTH * min(height, width)  # pixels
    total = np.zeros((height, width))
    for (x, y, _), weight in zip(points, weights, strict=True):
        for row in range(height):
            for column in range(width):
                square = (column + 0.5 - x * width) ** 2 + (row + 0.5 - y * height) ** 2
                total[row, column] += weight * np.exp(-square / (2 * sigma**2))
    return total / total.mean()


@pytest.mark.parametrize(("height", "width"), [(24, 24), (18, 40)])
def test_density_is_a_sum_of_gaussians_around_the_points(height, width):
    rng, num_frames = np.random.default_rng(0), 5
    sampled = SamplingTrace(np.zeros((2, 6, 6)), rng.uniform(-0.1, 1.1, size=(2, 6, 4, 3)), num_tubes=1)
    points = sampled.points[1].reshape(-1, 3)
    whole = density(sampled, 1, (height, width))
    assert whole == pytest.approx(slow_density(points, np.ones(24), height, width), rel=1e-4, abs=1e-6)
    frames = frame_densities(sampled, 1, (height, width), num_frames)
    feat = torch.eye(num_frames).view(1, num_frames, num_frames, 1, 1)  # frame f holds 1 in channel f
    times = torch.from_numpy(points.copy()[None, None]).float()
    times[..., :2] = 0.5
    weights = sample_points(feat, times)[0, 0].numpy()  # (points, frames)
    for frame in range(num_frames):
        expected = slow_density(points, weights[:, frame], height, width)
        assert frames[frame] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert np.allclose(density(sampled, -1, (height, width), frame, num_frames), frames[frame])


@pytest.mark.parametrize("shape", [(7, 7), (30, 50), (224, 224)])
def test_density_integrates_to_1_over_the_frame(shape):
    found = density(trace(points=[(0.1, 0.9, 0.5), (0.7, 0.2, 0.5), (1.2, 0.5, 0.5)]), 0, shape)
    assert found.dtype == np.float32 and found.shape == shape
    cell = 1 / found.size  # area of a pixel in a frame of area 1
    assert found.sum(dtype=np.float64) * cell == pytest.approx(1, abs=1e-5)


def test_density_of_even_points_is_1_and_of_no_points_0():
    x, y = np.meshgrid(np.linspace(-0.5, 1.5, 101), np.linspace(-0.5, 1.5, 101))
    even = trace(points=np.stack([x.ravel(), y.ravel(), np.full(x.size, 0.1)], axis=-1))
    assert density(even, 0, (32, 32)) == pytest.approx(np.ones((32, 32)), abs=0.01)
    assert (density(even, 0, (32, 32), frame=3, num_frames=4) == 0).all()  # all points sample the first frame


def test_overlay_density_is_brightest_at_the_peak_and_keeps_frames_visible():
    frames = np.zeros((2, 20, 30, 3), np.uint8)
    frames[:, :, 15:] = 200
    densities = np.stack([density(trace(points=[(x, 0.5, 0.5)]), 0, (20, 30)) for x in (0.2, 0.8)])
    drawn = overlay_density(frames, densities)
    assert drawn.shape == frames.shape and drawn.dtype == np.uint8
    row, column = np.unravel_index(drawn[0].astype(int).sum(-1)[:, :15].argmax(), (20, 15))
    assert (column + 0.5) / 30 == pytest.approx(0.2, abs=0.05) and (row + 0.5) / 20 == pytest.approx(0.5, abs=0.05)
    assert drawn[0, 0, 29].min() > 100 and drawn[0, 0, 0].max() < 20  # far from the points
    assert np.array_equal(overlay_density(frames[1], densities[1], densities.max()), drawn[1])
    assert overlay_density(frames, np.zeros_like(densities))[0, 0, 0].max() < 5


@pytest.mark.parametrize(("name", "rows"), [("video_sparseformer_nano", 3), ("sparseformer_nano", 1)])
def test_save_density_has_rows_of_frames_and_all_steps_of_an_image_in_one_row(tmp_path, name, rows):
    shape = (3, 12, 32, 48) if rows == 3 else (3, 32, 48)
    sampled = trace_sampling(create_model(name), torch.randn(shape))
    frames = np.zeros((12 if rows == 3 else 1, 32, 48, 3), np.uint8)
    boxes = np.tile([0.2, 0.2, 0.6, 0.6], (len(frames), 1))
    save_density(tmp_path / "density.png", frames, sampled, boxes=boxes, title="$5_{$", columns=5)
    height, width, _ = imread(tmp_path / "density.png").shape
    assert (width / height > 3) == (rows == 1)


def test_trace_batch_returns_the_trace_of_each_input():
    model = create_model("video_sparseformer_nano", num_classes=3)
    torch.nn.init.normal_(model.focus.adjust.proj.weight)
    clips = torch.randn(2, 3, 6, 32, 32)
    for clip, sampled in zip(clips, trace_batch(model, clips), strict=True):
        alone = trace_sampling(model, clip)
        assert np.allclose(sampled.points, alone.points, atol=1e-5) and np.allclose(sampled.rois, alone.rois, atol=1e-5)


def test_render_frames_with_a_title_keeps_the_frames_below_it():
    frames = np.full((2, 32, 48, 3), (200, 30, 60), np.uint8)
    plain, titled = (render_frames(frames, trace(), height=150, title=title) for title in (None, "$5: left"))
    assert titled.shape == (2, 194, *plain.shape[2:])
    assert np.array_equal(titled[:, 44:], plain) and not np.array_equal(titled[0, :44], titled[1, :44])
