"""Measures of sampling against true boxes equal slow counts, and box files are read or refused by line."""

import json

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from sparsevideo.reports import localize
from sparsevideo.reports.localize import center_cdf, crop_boxes, mass_inside, read_boxes, uniform_cdf
from sparsevideo.reports.visualize import SamplingTrace, frame_densities


def random_trace(rng, steps=2, tokens=3, points=4):
    return SamplingTrace(np.zeros((steps, tokens, 6)), rng.uniform(-0.2, 1.2, (steps, tokens, points, 3)), num_tubes=1)


def weight_of(t, frame, num_frames):
    """Interpolation weight of a frame at time t, as in `sample_points`."""
    position = min(max(t * num_frames - 0.5, 0), num_frames - 1)
    return max(0.0, 1 - abs(position - frame))


def test_count_points_weighs_each_point_on_each_annotated_frame():
    rng, num_frames = np.random.default_rng(0), 4
    trace = random_trace(rng)
    boxes = {0: np.array([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.9, 0.9]]), 3: np.array([[0.1, 0.4, 1.0, 1.0]])}
    expected = np.zeros((2, 2))
    for step in range(2):
        for x, y, t in trace.points[step].reshape(-1, 3):
            for frame, each in boxes.items():
                weight = weight_of(t, frame, num_frames)
                inside = any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in each)
                expected[step] += weight * inside, weight
    assert localize.count_points(trace, boxes, num_frames) == pytest.approx(expected)
    assert (expected[:, 0] > 0).all() and (expected[:, 0] < expected[:, 1]).all()


def test_count_peaks_counts_frames_whose_densest_cell_is_in_a_box():
    rng, num_frames = np.random.default_rng(1), 4
    corners = np.sort(rng.random((4, 2, 2, 2)), axis=2)  # (frames, M, low and high, x and y)
    boxes = {frame: corners[frame].reshape(2, 4) for frame in (0, 1, 3)}
    height, width = 64, 114
    densities = frame_densities(random_trace(rng, points=8), 1, (height, width), num_frames)
    expected = np.zeros(2)
    for frame, each in boxes.items():
        row, column = divmod(int(densities[frame].argmax()), width)
        x, y = (column + 0.5) / width, (row + 0.5) / height
        expected += any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in each), 1
    assert localize.count_peaks(densities, boxes).tolist() == expected.tolist()
    assert 0 < expected[0] < 3


def test_densities_have_64_cells_along_the_short_side():
    assert [localize.density_shape(shape) for shape in ((224, 224), (90, 160), (720, 406))] == [
        (64, 64),
        (64, 114),
        (113, 64),
    ]


def test_count_peaks_of_a_frame_without_points_is_a_miss():
    trace = SamplingTrace(np.zeros((1, 1, 6)), np.full((1, 1, 1, 3), 0.1), num_tubes=1)
    boxes = {frame: np.array([[0.0, 0.0, 1.0, 1.0]]) for frame in range(4)}
    assert localize.count_peaks(frame_densities(trace, 0, (64, 64), 4), boxes).tolist() == [1, 4]


def test_sum_around_moves_each_box_center_to_the_middle_and_counts_cells_on_the_frame():
    rng = np.random.default_rng(3)
    densities = rng.random((2, 8, 12))  # cells of 1/8 and 1/12 of the frame
    boxes = {0: np.array([[0.0, 0.0, 0.1, 0.1]]), 1: np.array([[0.2, 0.5, 0.6, 1.0], [0.9, 0.1, 1.0, 0.2]])}
    expected = np.zeros((2, 9, 9))
    for frame, row, column in ((0, 0, 0), (1, 6, 4), (1, 1, 11)):  # cell of each center
        for i in range(9):
            for j in range(9):
                y, x = row + i - 4, column + j - 4
                if 0 <= y < 8 and 0 <= x < 12:
                    expected[:, i, j] += densities[frame, y, x], 1
    assert localize.sum_around(densities, boxes) == pytest.approx(expected)


def test_sum_around_a_box_at_the_very_edge():
    boxes = {0: np.array([[np.nextafter(1, 0), 0.0, 1.0, 1.0]])}  # its center is rounded to 1
    _, count = localize.sum_around(np.ones((1, 8, 8)), boxes)
    assert count[:, 4].tolist() == [1.0] * 8 + [0.0] and not count[:, 5:].any()


def test_center_density_is_that_of_the_center_prior():
    found = localize.center_density((32, 48))
    assert found.mean() == pytest.approx(1)
    box = np.array([[0.25, 0.5, 0.75, 0.75]])
    assert found[16:24, 12:36].sum() / found.size == pytest.approx(mass_inside(box, center_cdf))


def test_mass_inside_is_the_share_of_random_points_in_the_union_of_the_boxes():
    rng = np.random.default_rng(2)
    corners = np.sort(rng.random((4, 2, 2)), axis=1)  # (M, low and high, x and y)
    boxes = corners.reshape(4, 4)
    uniform = rng.random((200_000, 2))
    assert mass_inside(boxes, uniform_cdf) == pytest.approx(localize.is_inside(uniform, boxes).mean(), abs=0.004)
    normal = rng.normal(0.5, localize.CENTER_STD, (200_000, 2))
    normal = normal[((normal >= 0) & (normal <= 1)).all(1)]
    assert mass_inside(boxes, center_cdf) == pytest.approx(localize.is_inside(normal, boxes).mean(), abs=0.004)
    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    assert mass_inside(whole, uniform_cdf) == mass_inside(whole, center_cdf) == pytest.approx(1)


def test_baselines_are_means_over_annotated_frames():
    boxes = {0: np.array([[0.0, 0.0, 0.5, 1.0]]), 2: np.array([[0.4, 0.4, 0.6, 0.6]])}
    assert localize.count_baseline(boxes, uniform_cdf) == pytest.approx([0.54, 2])
    assert localize.count_center(boxes).tolist() == [1, 2]


def test_crop_boxes_maps_to_the_crop_and_cuts_off():
    boxes = np.array([[0.0, 0.0, 0.5, 1.0], [0.3, 0.5, 0.4, 0.6], [0.0, 0.0, 0.2, 1.0]])
    crop = np.array([0.2, 0.0, 0.7, 1.0])
    assert crop_boxes(boxes, crop) == pytest.approx(np.array([[0, 0, 0.6, 1], [0.2, 0.5, 0.4, 0.6]]))
    assert crop_boxes(boxes[2:], crop).shape == (0, 4)


def test_summarize_is_a_ratio_of_sums_with_bootstrap_intervals():
    rng = np.random.default_rng(3)
    whole = rng.uniform(5, 10, size=(40, 3))
    network = np.stack([whole * rng.uniform(0.3, 0.5, size=(40, 3)), whole], axis=-1)
    uniform = np.stack([rng.uniform(0.1, 0.2, size=40), np.ones(40)], axis=-1)
    results = localize.summarize({"network": network, "uniform": uniform}, seed=0)
    for step, (percent, times) in enumerate(zip(*results["network"].values(), strict=True)):
        share = network[:, step, 0].sum() / network[:, step, 1].sum()
        assert percent["value"] == pytest.approx(100 * share)
        assert times["value"] == pytest.approx(share / uniform[:, 0].mean())
        rows = rng.integers(40, size=(2000, 40))
        drawn = 100 * network[rows, step, 0].sum(1) / network[rows, step, 1].sum(1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        assert (percent["low"], percent["high"]) == pytest.approx((low, high), abs=0.4)
    assert results["uniform"]["times_uniform"] == {"value": 1, "low": 1, "high": 1}
    assert results == localize.summarize({"network": network, "uniform": uniform}, seed=0)


def test_read_boxes_reads_fractions_or_pixels(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("frame,path,x0,y0,x1,y1\n0,a.mp4,0,0.5,1,1\n0,a.mp4,0.1,0.1,0.2,0.2\n7,b/c.mp4,0,0,0.5,0.5\n")
    found = read_boxes(path)
    assert not found.in_pixels and found.boxes["a.mp4"][0].shape == (2, 4)
    whole = np.array([0.0, 0.0, 1.0, 1.0])
    assert {k: v.tolist() for k, v in found.in_view("b/c.mp4", np.array([0, 7, 7]), (40, 80), whole).items()} == {
        1: [[0, 0, 0.5, 0.5]],
        2: [[0, 0, 0.5, 0.5]],
    }
    assert found.in_view("other.mp4", np.array([0]), (40, 80), whole) == {}
    path.write_text("path,frame,x0,y0,x1,y1\na.mp4,0,20,10,40,20\n", encoding="utf-8-sig")
    found = read_boxes(path)
    assert found.in_pixels
    crop = np.array([0.25, 0.0, 0.75, 1.0])  # the middle square of 80 x 40 pixels
    assert found.in_view("a.mp4", np.array([0]), (40, 80), crop)[0].tolist() == [[0, 0.25, 0.5, 0.5]]
    outside = np.array([0.5, 0.0, 1.0, 1.0])
    assert found.in_view("a.mp4", np.array([0]), (40, 80), outside)[0].shape == (0, 4)


def test_read_boxes_reads_sidecars_of_the_digits(digits):
    found = read_boxes(digits / "videos.json")
    record = json.loads((digits / "videos.json").read_text())["videos/test/left/0000.mp4"]
    assert not found.in_pixels
    for frame, box in enumerate(record["boxes"]):
        assert found.boxes["videos/test/left/0000.mp4"][frame].tolist() == [box]


HEADER = "path,frame,x0,y0,x1,y1\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path,frame,x,y,w,h\n", "has no column x0; the first line must be path,frame,x0,y0,x1,y1"),
        ("a.csv", "", "has no column path"),
        ("a.csv", HEADER, "has no boxes"),
        ("a.csv", HEADER + "a.mp4,0,0,0,1,1\na.mp4,first,0,0,1,1\n", "line 3: frame must be an integer .* 'first'"),
        ("a.csv", HEADER + "a.mp4,0,0,0,1\n", "line 2: frame must be an integer and the corners numbers"),
        ("a.csv", HEADER + "a.mp4,0,1,0,0.5,1\n", "line 2: a box needs .* x0 < x1"),
        ("a.csv", HEADER + "a.mp4,-1,0,0,1,1\n", "line 2: a box needs frame >= 0"),
        ("a.csv", HEADER + "a.mp4,0,nan,0,1,1\n", "line 2: a box needs"),
        ("a.csv", HEADER + "a.mp4,0,0,0,1e9,1\n", "line 2: a box needs"),
        ("a.json", "{", "must map each path to a record"),
        ("a.json", "[1]", "must map each path to a record"),
        ("a.json", '{"a.mp4": {}}', "must map each path to a record"),
        ("a.json", '{"a.mp4": {"boxes": [1, 2]}}', r"a.mp4 has no boxes \(x0, y0, x1, y1\)"),
        ("a.json", "{}", "holds no boxes"),
    ],
)
def test_read_boxes_names_the_line_that_is_wrong(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}(, |: ){message}"):
        read_boxes(tmp_path / name)


def test_read_boxes_names_missing_and_binary_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.csv: no such file of boxes"):
        read_boxes(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a.csv: not encoded in UTF-8"):
        read_boxes(tmp_path / "a.csv")


def test_save_plot_draws_both_measures_and_all_baselines(tmp_path):
    intervals = [{"value": value, "low": value - 1, "high": value + 1} for value in (40.0, 30.0, 20.0, 10.0)]
    results = {name: {"percent": [intervals[i]] * 3} for i, name in enumerate(("network", "untrained"))}
    results |= {name: {"percent": intervals[i]} for i, name in enumerate(("uniform", "center"), start=2)}
    localize.save_plot(tmp_path / "localize.png", results, results)
    picture = (imread(tmp_path / "localize.png")[..., :3] * 255).round().astype(int)
    for color, *_ in localize.STYLES.values():
        rgb = [int(color[index : index + 2], 16) for index in (1, 3, 5)]
        for half in (picture[:-150, : picture.shape[1] // 2], picture[:-150, picture.shape[1] // 2 :]):
            assert (np.abs(half - rgb).max(-1) < 12).sum() > 20


def test_save_around_draws_the_mean_density_where_a_box_has_cells(tmp_path):
    count = np.ones((33, 33))
    count[:, :16] = 0  # the left half is outside every frame: it stays white
    names = ("network", "untrained", "center")
    around = {name: np.stack([count * scale, count]) for name, scale in zip(names, (3.0, 1.5, 0.0), strict=True)}
    localize.save_around(tmp_path / "around.png", around)
    picture = imread(tmp_path / "around.png")[..., :3]
    for level in (1.0, 0.5, 0.0):  # of the common scale
        color = np.array(matplotlib.colormaps["viridis"](level)[:3])
        assert (np.abs(picture - color).max(-1) < 0.02).sum() > 10_000
    assert (picture.min(-1) > 0.99).mean() > 0.4
