"""Read thousands of damaged video files: each decodes or is refused with path and reason; none crashes or hangs.

Run as a script, it prints the outcomes: python tests/io/fuzz.py --count 2000 --seed 0 --keep faults
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numbered_videos import mp4_boxes, write_numbered

from sparsevideo.data.datasets import VideoDataset
from sparsevideo.data.loader import test_loader
from sparsevideo.data.records import Records
from sparsevideo.data.transforms import TestTransform
from sparsevideo.io.backends import open_video
from sparsevideo.io.errors import DecodeError
from sparsevideo.utils.processes import ChildError, run_all

LIMIT_S = 20.0  # for one file
LIMIT_MB = 3000  # for one file; the import of the package takes about 300, six of the largest allowed frames 1,200
DECODED, REFUSED = "decoded", "refused"  # other outcomes are faults

# name, whose ending is the container -> codec and encoder options
WHOLE = {
    "h264.mp4": ("libx264", {"g": "6", "bf": "2"}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none:keyint=8:bframes=2:pools=1"}),
    "av1.mp4": ("libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}),
    "mpeg4.mov": ("mpeg4", {"g": "6", "bf": "2"}),
    "h263.3gp": ("h263", {}),
    "h264.mkv": ("libx264", {"g": "6", "bf": "2"}),
    "ffv1.mkv": ("ffv1", {}),
    "vp8.webm": ("libvpx", {"g": "8", "auto-alt-ref": "1", "lag-in-frames": "8"}),
    "vp9.webm": ("libvpx-vp9", {"g": "8", "cpu-used": "8", "deadline": "realtime"}),
    "mpeg4.avi": ("mpeg4", {"g": "6", "bf": "0"}),
    "h264.avi": ("libx264", {"g": "6", "bf": "2"}),
    "mjpeg.avi": ("mjpeg", {}),
    "h264.ts": ("libx264", {"g": "6", "bf": "2"}),
    "mpeg2.mpg": ("mpeg2video", {"g": "6", "bf": "2"}),
    "h264.flv": ("libx264", {"g": "6", "bf": "2"}),
    "flv1.flv": ("flv", {"g": "6"}),
    "wmv2.wmv": ("wmv2", {"g": "6"}),
}
SEVERAL_STREAMS = ("mp4", "mkv", "avi", "ts", "mpg", "flv", "wmv")  # containers also written with more streams


@dataclass(frozen=True)
class Outcome:
    """Outcome of one file."""

    name: str
    what: str
    reason: str = ""
    peak_mb: int = 0  # memory of the process that read it


def write_whole(folder: Path) -> dict[str, bytes]:
    """Encode the undamaged files: name -> content."""
    os.environ["SVT_LOG"] = "1"  # the AV1 encoder prints errors alone
    for number, (name, (codec, options)) in enumerate(WHOLE.items()):
        size = {"height": 96, "width": 128} if codec == "h263" else {}  # it allows five sizes
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        write_numbered(folder / name, 24 + number, codec=codec, options=options, pix_fmt=pix_fmt, **size)
    for suffix in SEVERAL_STREAMS:
        source = next(name for name in WHOLE if name.endswith(suffix))
        _add_streams(folder / source, folder / f"streams.{suffix}")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _add_streams(source: Path, target: Path) -> None:
    """Copy a file's video, twice if the container allows it, and add one second of sound."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        copies = 1 if target.suffix == ".flv" else 2
        videos = [writer.add_stream_from_template(reader.streams.video[0]) for _ in range(copies)]
        sound = writer.add_stream("mp2" if target.suffix == ".mpg" else "aac", rate=44100)
        for start in range(0, 44100, 1152):
            samples = (2**14 * np.sin(np.arange(start, start + 1152) / 16)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 44100, start
            writer.mux(sound.encode(frame))
        for packet in reader.demux(video=0):
            for stream in videos if packet.size else ():
                packet.stream = stream
                writer.mux(packet)
        writer.mux(sound.encode())


Mutation = Callable[[bytes, bytes, np.random.Generator], bytes]  # a file, another one, choices -> the damaged file


def _flip(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Change bits all over the file."""
    content = np.frombuffer(data, np.uint8).copy()
    positions = rng.integers(len(content), size=int(2 ** rng.uniform(0, 8)))
    content[positions] ^= (1 << rng.integers(8, size=len(positions))).astype(np.uint8)
    return content.tobytes()


def _flip_in_head(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    head = int(2 ** rng.uniform(5, 11))
    return _flip(data[:head], other, rng) + data[head:]


def _flip_in_tail(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Change bits where mp4 has its tables, and avi and mkv have their index."""
    tail = int(2 ** rng.uniform(5, 11))
    return data[:-tail] + _flip(data[-tail:], other, rng)


def _replace_block(data: bytes, rng: np.random.Generator, replace: Callable[[int], bytes]) -> bytes:
    """Replace a block of 1 to 4096 bytes by a function of its size."""
    start, end = _block(data, rng)
    return data[:start] + replace(end - start) + data[end:]


def _repeat(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start, end = _block(data, rng)
    position = rng.integers(len(data) + 1)
    return data[:position] + data[start:end] + data[position:]


def _swap(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Exchange two adjacent blocks."""
    start, middle, end = np.sort(rng.integers(len(data) + 1, size=3))
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def _cut(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(len(data))]


def _behead(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return data[int(2 ** rng.uniform(0, 12)) :]


def _graft(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Put the head of another file on this one's body."""
    head = int(2 ** rng.uniform(3, 12))
    return other[:head] + data[head:]


def _splice(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Continue with another file."""
    return data[: rng.integers(len(data) + 1)] + other[rng.integers(len(other) + 1) :]


def _claim(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Write a number that is too large, too small or negative over another."""
    content = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        size = int(rng.choice([1, 2, 4, 8]))
        top = 1 << 8 * size
        value = (0, 1, top - 1, top // 2, top // 2 - 1, 1 << 4 * size)[rng.integers(6)]
        last = len(data) - 8
        start = int(2 ** rng.uniform(0, np.log2(last))) if rng.random() < 0.7 else rng.integers(last)
        content[start : start + size] = value.to_bytes(size, "big" if rng.random() < 0.5 else "little")
    return bytes(content)


def _claim_size(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Replace 64, the size of the frames, by thousands of pixels."""
    order = "big" if rng.random() < 0.5 else "little"
    was, new = (64).to_bytes(2, order), int(rng.choice([4095, 8191, 16000, 60000, 65535])).to_bytes(2, order)
    return data.replace(was, new, int(rng.integers(1, 9)))


def _rearrange(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Swap, drop or double the boxes of an mp4 file, or replace one by that of another file."""
    boxes, start, end = mp4_boxes(data, 0, len(data)), 0, len(data)
    while inner := [box for box in boxes if box[0] in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")]:
        if rng.random() < 0.2:
            break
        _, start, end = inner[rng.integers(len(inner))]
        start += 8
        boxes = mp4_boxes(data, start, end)
    parts = [data[first:last] for _, first, last in boxes]
    i, j = rng.integers(len(parts), size=2)
    match rng.integers(4):
        case 0:
            parts[i], parts[j] = parts[j], parts[i]
        case 1:
            del parts[i]
        case 2:
            parts.insert(i, parts[j])
        case 3:
            found = other.find(boxes[i][0]) - 4  # its size comes first
            parts[i] = other[found : found + len(parts[i])] if found >= 0 else parts[i][::-1]
    return data[:start] + b"".join(parts) + data[end:]


def _block(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """Choose a block of 1 to 4096 bytes."""
    start = int(rng.integers(len(data)))
    return start, min(start + int(2 ** rng.uniform(0, 12)), len(data))


MUTATIONS: dict[str, Mutation] = {
    "flip": _flip,
    "flip-in-head": _flip_in_head,
    "flip-in-tail": _flip_in_tail,
    "garble": lambda data, other, rng: _replace_block(data, rng, rng.bytes),
    "zero": lambda data, other, rng: _replace_block(data, rng, bytes),
    "repeat": _repeat,
    "remove": lambda data, other, rng: _replace_block(data, rng, lambda size: b""),
    "swap": _swap,
    "cut": _cut,
    "behead": _behead,
    "graft": _graft,
    "splice": _splice,
    "claim": _claim,
    "claim-size": _claim_size,
    "rearrange": _rearrange,
}
BOXED = (".mp4", ".mov", ".3gp")


def damaged(whole: dict[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of damaged files; each depends only on the seed and its index."""
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        mutation = list(MUTATIONS)[index % len(MUTATIONS)]
        names = [name for name in whole if mutation != "rearrange" or name.endswith(BOXED)]
        source, other = rng.choice(names, size=2)
        content = MUTATIONS[mutation](whole[source], whole[other], rng)
        if content == whole[source] or rng.random() < 0.2:  # the mutation changed nothing, or a second change
            content = _flip(content or b"\0", b"", rng)
        yield f"{index:05d}-{mutation}-{source}", content


def read_one(path: Path, decoder: str) -> Outcome:
    """Read frames of a file; every exception except a DecodeError that names the file is a fault."""
    _reset_peak()
    rng = np.random.default_rng(0)
    try:
        with open_video(path, decoder) as video:
            frames = video.read(rng.integers(video.num_frames, size=6))
        what, reason = (DECODED, "") if frames.dtype == np.uint8 and len(frames) == 6 else ("bad frames", str(frames))
    except DecodeError as error:
        has_reason = str(error).startswith(f"{path}: ") and len(str(error)) > len(f"{path}: ")
        what, reason = REFUSED if has_reason else "bad message", str(error)
    except Exception as error:
        what, reason = type(error).__name__, repr(error)
    peak_mb = _peak_mb()
    if peak_mb > LIMIT_MB:
        what, reason = "too much memory", f"{what}, with {peak_mb} MB; {reason}"
    return Outcome(path.name, what, reason, peak_mb)


def read_alone(
    paths: Sequence[Path],
    decoder: str = "auto",
    processes: int = 2,
    *,
    read: Callable[[Path, str], Outcome] = read_one,
    limit_s: float = LIMIT_S,
) -> list[Outcome]:
    """Read each file in a child process; crashes and hangs are faults."""
    outcomes = {}
    jobs = [(path, decoder) for path in paths]
    for (path, _), result in run_all(read, jobs, description="fuzz", num_workers=processes, timeout_s=limit_s):
        if isinstance(result, ChildError):
            result = Outcome(path.name, "hang" if "took longer" in str(result) else "crash", str(result))
        outcomes[path] = result
    return [outcomes[path] for path in paths]


def read_in_batches(paths: Sequence[Path], decoder: str = "auto", num_workers: int = 2) -> list[Outcome]:
    """Read all files with a test loader: each must be in a batch or among the failures, and only once."""
    names = [path.name for path in paths]
    records = Records.build(paths[0].parent, ["any"], names, [0] * len(paths))
    dataset = VideoDataset(
        records, num_frames=4, frame_stride=2, transform=TestTransform(32), num_clips=2, decoder=decoder
    )
    by_name: dict[str, list[Outcome]] = {name: [] for name in names}
    loader = test_loader(dataset, range(len(paths)), batch_size=4, num_workers=num_workers, timeout_s=LIMIT_S)
    try:
        for batch in loader:
            for name in batch["video_name"]:
                by_name[name].append(Outcome(name, DECODED))
            for index, name, reason in batch["failures"]:
                what = REFUSED if str(paths[index]) in reason else "bad message"
                by_name[name].append(Outcome(name, what, reason))
    except Exception as error:
        return [Outcome("the loader", "stopped", str(error))]
    return [
        each[0] if len(each) == 1 else Outcome(name, f"reported {len(each)} times") for name, each in by_name.items()
    ]


def faults(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Select the faults."""
    return [outcome for outcome in outcomes if outcome.what not in (DECODED, REFUSED)]


def _reset_peak() -> None:
    """Reset the peak memory of this process, if the kernel records it."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> int:
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="number of damaged files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoder", default="auto")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for copies of the files with a fault or the largest memory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole_folder, root = Path(folder) / "whole", Path(folder) / "damaged"
        whole_folder.mkdir()
        root.mkdir()
        paths = []
        for name, content in damaged(write_whole(whole_folder), arguments.count, arguments.seed):
            (root / name).write_bytes(content)
            paths.append(root / name)
        alone = read_alone(paths, arguments.decoder, arguments.processes)
        counts = Counter((outcome.name.split("-", 1)[1].rsplit("-", 1)[0], outcome.what) for outcome in alone)
        columns = sorted({what for _, what in counts})
        print(f"{'':14}" + "".join(f"{what:>12}" for what in columns))
        for mutation in MUTATIONS:
            print(f"{mutation:14}" + "".join(f"{counts[mutation, what]:12}" for what in columns))
        print(f"{'all':14}" + "".join(f"{sum(o.what == what for o in alone):12}" for what in columns))
        largest = max(alone, key=lambda outcome: outcome.peak_mb)
        print(f"peak memory {largest.peak_mb} MB: {largest.name}")
        batches = read_in_batches(paths, arguments.decoder, arguments.processes)
        print(f"in batches: {dict(Counter(outcome.what for outcome in batches))}")
        found = faults(alone + batches)
        for outcome in found:
            print(f"FAULT {outcome.what}: {outcome.name}: {outcome.reason}")
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            for path in {root / outcome.name for outcome in [*found, largest]}:
                if path.is_file():
                    shutil.copy(path, arguments.keep)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
