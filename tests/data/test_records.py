"""Lists and folders become the same table, and mistakes in them stop at once, by name."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from numbered import REAL

from sparsevideo.data.records import Records, read_records


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def table(records: Records) -> list[tuple[str, int]]:
    return [(records.name(i), int(records.labels[i])) for i in range(len(records))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    touch(tmp_path, "videos/train/right/b.MP4", "videos/train/right/deep/a.webm", "videos/train/left/my clip, 1.avi")
    touch(tmp_path, "videos/train/left/notes.txt", "videos/train/empty/readme.md", "videos/train/.hidden/a.mp4")
    touch(tmp_path, "videos/train/left/._a.mp4")
    return tmp_path


LEFT, RIGHT_A, RIGHT_B = (
    "videos/train/left/my clip, 1.avi",
    "videos/train/right/deep/a.webm",
    "videos/train/right/b.MP4",
)


def test_class_folders(root: Path) -> None:
    """Sorted names are the classes; extensions in any case, any depth; no hidden files; a notes folder is no class."""
    records = read_records(root, "videos/train", kind="video")
    assert records.classes == ("left", "right")
    assert table(records) == [(LEFT, 0), (RIGHT_B, 1), (RIGHT_A, 1)]
    assert records.path(0) == root / LEFT and records.path(0).exists()
    assert records.labels.dtype == np.int64


@pytest.mark.parametrize("classes", [("00", "01"), ("1", "5"), ("1990", "2000")])
def test_a_folder_named_by_a_number_is_a_class_of_that_name(tmp_path: Path, classes: tuple[str, ...]) -> None:
    touch(tmp_path, *[f"{name}/a.mp4" for name in classes])
    records = read_records(tmp_path, kind="video")
    assert records.classes == classes and records.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match=f"{classes[0]}, {classes[1]} not among"):
        read_records(tmp_path, kind="video", classes=["left", "right"])


def test_zero_padded_labels_of_a_list_are_names(root: Path) -> None:
    (root / "list.txt").write_text(f"{RIGHT_A} 01\n{RIGHT_B} 00\n")
    records = read_records(root, "list.txt", kind="video")
    assert records.classes == ("00", "01") and records.labels.tolist() == [1, 0]


def test_a_link_back_is_not_followed_and_a_link_elsewhere_is(tmp_path: Path) -> None:
    touch(tmp_path, "set/left/a.mp4", "set/right/b.mp4", "elsewhere/c.mp4")
    (tmp_path / "set/left/loop").symlink_to(tmp_path / "set")
    (tmp_path / "set/right/self").symlink_to(tmp_path / "set/right")
    (tmp_path / "set/right/more").symlink_to(tmp_path / "elsewhere")
    records = read_records(tmp_path, "set", kind="video")
    assert table(records) == [("set/left/a.mp4", 0), ("set/right/b.mp4", 1), ("set/right/more/c.mp4", 1)]


def test_a_split_may_lie_outside_the_root(root: Path, tmp_path: Path) -> None:
    touch(tmp_path, "outside/up/a.mp4")
    records = read_records(root, str(tmp_path / "outside"), kind="video")
    assert records.path(0).samefile(tmp_path / "outside/up/a.mp4")


def test_images_and_videos_do_not_mix(root: Path) -> None:
    touch(root, "videos/train/left/x.JPEG", "videos/train/up/y.png")
    assert read_records(root, "videos/train", kind="video").classes == ("left", "right")
    assert table(read_records(root, "videos/train", kind="image")) == [
        ("videos/train/left/x.JPEG", 0),
        ("videos/train/up/y.png", 1),
    ]


@pytest.mark.parametrize(
    "text",
    [
        f'"{LEFT}",left\n{RIGHT_A},right\n',
        f'path,label\n"{LEFT}",left\n{RIGHT_A},right\n',
        f'\ufeffLabel,fold,Path\r\nleft,3, "{LEFT}"\r\n\r\nright ,2, {RIGHT_A}\r\n',
        f"{LEFT.replace(',', '')} left\n\n{RIGHT_A}\tright\n",
        f"./{LEFT.replace(',', '')}   0\nvideos//train/../train/right/deep/a.webm 1",
    ],
    ids=["commas", "header", "other columns, byte order mark, Windows line ends", "spaces", "numbers"],
)
def test_list_files(root: Path, text: str) -> None:
    left = LEFT if '"' in text else LEFT.replace(",", "")  # in a list with spaces the first path may hold no comma
    touch(root, left)
    (root / "list.csv").write_bytes(text.encode())
    records = read_records(root, "list.csv", kind="video")
    assert table(records) == [(left, 0), (RIGHT_A, 1)]
    assert records.classes == (("0", "1") if text.endswith("1") else ("left", "right"))


def test_given_classes_keep_their_order(root: Path) -> None:
    classes = ["up", "right", "left"]
    (root / "list.txt").write_text(f"{RIGHT_A},right\n{RIGHT_B},2\n")
    assert table(read_records(root, "list.txt", kind="video", classes=classes)) == [(RIGHT_A, 1), (RIGHT_B, 2)]
    records = read_records(root, "videos/train", kind="video", classes=classes)
    assert records.classes == ("up", "right", "left")
    assert records.labels.tolist() == [2, 1, 1]


def test_a_class_name_comes_before_a_number(root: Path) -> None:
    """Classes named 9 and 0, as digits in a checkpoint's order may be."""
    (root / "list.txt").write_text(f"{RIGHT_A},0\n{RIGHT_B},9\n")
    assert read_records(root, "list.txt", kind="video", classes=["9", "0"]).labels.tolist() == [1, 0]


def test_numbers_without_names_count_from_zero(root: Path) -> None:
    (root / "list.txt").write_text(f"{RIGHT_A},10\n{RIGHT_B},2\n")
    records = read_records(root, "list.txt", kind="video")
    assert records.classes == tuple(str(i) for i in range(11))
    assert records.labels.tolist() == [10, 2]


def test_unknown_labels_show_both_sides(root: Path) -> None:
    with pytest.raises(ValueError, match=r"videos/train: left, right not among the 2 classes expected: up, down"):
        read_records(root, "videos/train", kind="video", classes=["up", "down"])
    (root / "list.txt").write_text(f"{RIGHT_A},-1\n")
    with pytest.raises(ValueError, match="-1 not among the 2 classes"):
        read_records(root, "list.txt", kind="video", classes=["up", "down"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"list\.txt: lists no files"),
        ("path,label\n", r"list\.txt: lists no files"),
        (f"{RIGHT_A},right\n\n{RIGHT_B},right,3\n", r"list\.txt, line 3: wants a path and a label"),
        (f"{RIGHT_A},right\n{RIGHT_B},\n", r"list\.txt, line 2"),
        (f"path,label,x\n{RIGHT_A},right,3\n{RIGHT_B}\n", r"list\.txt, line 3"),
        (f"{RIGHT_A} 1\nlonely.mp4\n", r"list\.txt, line 2: wants a path and a label, got 'lonely\.mp4'"),
        (f"{RIGHT_A} 1700000000\n", "1700000000 is no class number"),
        (",\n,\n", r"list\.txt: lists no files"),
        (f'{RIGHT_A},"right\n' + 20_000 * f"{RIGHT_B},right\n", "quote that is not closed"),
    ],
)
def test_malformed_lists(root: Path, text: str, message: str) -> None:
    (root / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_records(root, "list.txt", kind="video")


def test_lists_that_are_no_text(root: Path) -> None:
    (root / "list.txt").write_bytes(b"caf\xe9.mp4,left\n")
    with pytest.raises(ValueError, match=r"list\.txt: is no text in UTF-8"):
        read_records(root, "list.txt", kind="video")


def test_absent_files_are_counted_and_named(root: Path) -> None:
    absent = [f"gone/{i}.mp4" for i in range(5)]
    (root / "list.txt").write_text("".join(f"{name},0\n" for name in [*absent, RIGHT_A]))
    with pytest.raises(
        FileNotFoundError, match=r"5 of 6 listed files .*: gone/0\.mp4, gone/1\.mp4, gone/2\.mp4, \.\.\."
    ):
        read_records(root, "list.txt", kind="video")


def test_missing_and_empty_places(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder; set data\.root"):
        read_records(root / "nowhere", "train", kind="video")
    with pytest.raises(FileNotFoundError, match=r"tain: no such folder or list file; .* holds: videos$"):
        read_records(root, "tain", kind="video")
    with pytest.raises(ValueError, match=r"empty: no video in it; looked in every <class>/ for .*\.mp4"):
        read_records(root, "videos/train/empty", kind="video")
    with pytest.raises(ValueError, match=r"left: holds my clip, 1\.avi outside any class folder"):
        read_records(root, "videos/train/left", kind="video")


def test_records_are_compact() -> None:
    """Workers get a copy each: 100,000 videos take little more than their names do."""
    names = [f"class/video_{i:06d}.mp4" for i in range(100_000)]
    records = Records.build(Path("/data"), ["class"], names, [0] * len(names))
    content = pickle.dumps(records)
    assert len(content) < len("".join(names)) + 17 * len(names)
    copy = pickle.loads(content)
    assert [copy.name(i) for i in (0, 777, -1)] == [names[0], names[777], names[-1]]
    with pytest.raises(IndexError):
        copy.name(len(names))


def test_names_of_any_spelling() -> None:
    names = ["ü/日本.mp4", "a b/\udce9.mp4", "c.mp4"]  # the second is no UTF-8 on the disk
    records = Records.build(Path("/data"), ["x"], names, [0, 0, 0])
    assert [records.name(i) for i in range(3)] == names


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared real videos are absent")
def test_a_real_list_is_the_real_folders() -> None:
    by_list = read_records(REAL / "scfd256", "metadata.csv", kind="video")
    by_folder = read_records(REAL / "scfd256", kind="video")
    assert by_list.classes == by_folder.classes == ("fight", "noFight")
    assert len(by_list) == 300 and sorted(table(by_list)) == sorted(table(by_folder))
