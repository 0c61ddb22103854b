"""Compare every reader with plain decoding, for every codec, pixel format and container that this FFmpeg can write.

Each file has `--frames` different frames, at a constant or a variable rate. The reference is the output of PyAV when it
decodes the file from start to end. Every reader must return equal frames, read one by one in random order, with and
without an index, or refuse the file with an error that names it. The files are read in child processes, whose crashes
and timeouts are also counted.

    python -m benchmarks.sweep_codecs --out docs/benchmarks       # about half an hour on two cores
    python -m benchmarks.sweep_codecs --codecs qtrle,smc --containers mov
"""

import argparse
import json
import logging
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange

from benchmarks.data import environment
from sparsevideo.io.backends import open_video, resolve_decoder
from sparsevideo.io.errors import DecodeError
from sparsevideo.utils.processes import ChildError, run_all

CONTAINERS = ("mov", "mp4", "mkv", "avi", "nut", "ts", "webm", "flv")
DECODERS = ("pyav", "torchcodec", "decord")
SIZE = (144, 176)  # height and width; nearly all codecs with restricted sizes accept this one
SIZES = {"dnxhd": (256, 256), "dvvideo": (576, 720), "xface": (48, 48)}  # exceptions
OPTIONS = {"dnxhd": {"profile": "dnxhr_lb"}, "vc2": {"strict": "experimental", "b": "2M"}}  # required by the encoders
MUXERS = {"mkv": "matroska", "ts": "mpegts"}
_ABOUT = ("codec", "pix_fmt", "container", "rate")  # keys of a result; all others are readers
Case = tuple[str, str, str, str, int, bool]


def encoders() -> list[str]:
    """Return the video encoders of this FFmpeg that run without special hardware."""
    names = []
    # SVT-AV1 comes last: another encoder may hang in a process that has used it.
    for name in sorted(av.codecs_available, key=lambda name: (name == "libsvtav1", name)):
        try:
            codec = av.Codec(name, "w")
        except (av.FFmpegError, ValueError):  # it has only a decoder
            continue
        # The name of a codec finds its first encoder, which is listed again under its own name.
        if (
            codec.type == "video"
            and codec.name == name
            and not name.endswith(("_nvenc", "_qsv", "_amf", "_v4l2m2m", "_vaapi", "_vulkan"))
        ):
            names.append(name)
    return names


def pixel_formats(codec: str) -> list[str]:
    """Return up to four formats: the first of the encoder, and formats with a different memory layout."""
    known = [each.name for each in av.Codec(codec, "w").video_formats or []] or ["yuv420p", "rgb24", "gray", "pal8"]
    special = [name for name in ("yuv420p", "gray", "pal8", "rgb24", "yuv420p10le") if name in known]
    return list(dict.fromkeys([known[0], *special]))[:4]


def picture(index: int, size: tuple[int, int]) -> np.ndarray:
    """Draw frame `index`, (H, W) uint8: a moving gradient with a bright bar whose position depends on the index."""
    image = (np.arange(size[1])[None] + 2 * np.arange(size[0])[:, None] + 9 * index) % 200
    left = 4 * index % size[1]
    image[:, left : left + 4] = 255
    return image.astype(np.uint8)


def write(path: Path, container: str, codec: str, pix_fmt: str, num_frames: int, variable: bool) -> None:
    """Encode the file; raises the error of the encoder or the container if the two are incompatible."""
    with av.open(str(path), "w", format=MUXERS.get(container, container)) as file:
        stream = file.add_stream(codec, rate=25, options=OPTIONS.get(codec, {}))
        size = SIZES.get(codec, SIZE)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.gop_size = 10
        palette = np.stack([np.full(256, 255), np.arange(256), np.arange(256)[::-1], np.arange(256)], 1).astype(
            np.uint8
        )
        for index in range(num_frames):
            image = picture(index, size)
            if pix_fmt == "pal8":
                frame = av.VideoFrame.from_ndarray((image, palette), format="pal8")
            else:
                colors = np.stack([image, image[::-1], image[:, ::-1]], -1)
                frame = av.VideoFrame.from_ndarray(colors, format="rgb24").reformat(format=pix_fmt)
            frame.pts = index + index // 3 if variable else index
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def plain(path: Path) -> list[np.ndarray]:
    """Decode from start to end; expand gray of limited range, which swscale treats as full range."""
    images = []
    with av.open(str(path)) as file:
        file.streams.video[0].thread_count = 1  # with several threads, 10-bit VC-2 has other pixels in every run
        for frame in file.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            if frame.format.name.startswith("gray") and frame.color_range == ColorRange.MPEG:
                image = ((image.astype(float) - 16) * 255 / 219).round().clip(0, 255).astype(np.uint8)
            images.append(image)
    return images


def compare(codec: str, pix_fmt: str, container: str, folder: str, num_frames: int, variable: bool) -> dict[str, str]:
    """Return the outcome of each reader for one file: "equal", "refused" or the difference."""
    logging.disable(logging.WARNING)
    av.logging.set_level(av.logging.PANIC)
    path = Path(folder) / f"{codec}-{pix_fmt}-{variable}.{container}"
    try:
        write(path, container, codec, pix_fmt, num_frames, variable)
        truth = plain(path)
    except (av.FFmpegError, ValueError, TypeError, OSError, IndexError) as error:  # IndexError: the file has no stream
        return {"not written": f"{type(error).__name__}: {error}".replace(folder, "")[:200]}
    if not truth:
        return {"not written": "no frame decodes"}
    results = {}
    order = np.random.default_rng(0).permutation(len(truth)).tolist()
    for decoder in DECODERS:
        try:
            resolve_decoder(decoder)
        except ValueError:
            continue
        table = None
        for with_index in (False, True):
            if with_index and table is None:
                continue
            name = decoder + " with index" * with_index
            try:
                with open_video(path, decoder, table=table) as video:
                    count = video.num_frames
                    if count == len(truth):
                        alone = [differ(video.read([i])[0], truth[i]) for i in order]
                        together = [
                            differ(image, truth[i])
                            for i, image in zip(order, video.read(order[: count // 2]), strict=False)
                        ]
                        worst = max(alone + together)
                        results[name] = f"differs by {worst:.0f} levels" if worst > 2 else "equal"
                    else:
                        results[name] = f"counted {count} frames of {len(truth)}"
                    table = video.table
            except DecodeError as error:
                results[name] = f"refused: {str(error).replace(str(path), path.name)}"[:200]
            except Exception as error:  # counted, because readers must raise nothing else
                results[name] = f"raised {type(error).__name__}: {error}"[:200]
    path.unlink()
    return results


def differ(image: np.ndarray, truth: np.ndarray) -> float:
    """Return the largest difference of a byte; differences up to 2 are rounding."""
    return float(np.abs(image.astype(int) - truth).max()) if image.shape == truth.shape else float("inf")


def main() -> None:
    """Run the sweep, print what is not equal and write everything to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", default=None, help="comma-separated; default: all")
    parser.add_argument("--containers", default=",".join(CONTAINERS))
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    codecs = args.codecs.split(",") if args.codecs else encoders()
    with tempfile.TemporaryDirectory() as folder:
        cases: list[Case] = [
            (codec, pix_fmt, container, folder, args.frames, variable)
            for codec, container, variable in product(codecs, args.containers.split(","), (False, True))
            for pix_fmt in pixel_formats(codec)
        ]
        outcomes = []
        for case, result in run_all(compare, cases, description="files", num_workers=args.workers, timeout_s=60):
            codec, pix_fmt, container, _, _, variable = case
            readers = {"any": str(result)} if isinstance(result, ChildError) else result
            rate = "variable" if variable else "constant"
            outcomes.append({"codec": codec, "pix_fmt": pix_fmt, "container": container, "rate": rate} | readers)
            bad = {name: text for name, text in readers.items() if name != "not written" and text != "equal"}
            if bad:
                print(f"{codec} {pix_fmt} {container} {rate}: {bad}", flush=True)
    kinds = Counter(
        (name, text.split(":")[0].split(" ")[0])
        for outcome in outcomes
        for name, text in outcome.items()
        if name not in _ABOUT
    )
    for (name, kind), count in sorted(kinds.items()):
        print(f"{name:24} {kind:10} {count}")
    if args.out:
        outcomes.sort(key=lambda outcome: [outcome[key] for key in ("codec", "container", "pix_fmt", "rate")])
        about = environment(Path()) | {"ffmpeg": av.ffmpeg_version_info, "frames": args.frames}
        args.out.mkdir(parents=True, exist_ok=True)
        rows = ",\n".join(json.dumps(outcome) for outcome in outcomes)
        content = f'{{"environment": {json.dumps(about)},\n"files": [\n{rows}\n]}}\n'
        (args.out / "codecs.json").write_text(content, encoding="utf-8")
        (args.out / "codecs.md").write_text(table(about, outcomes), encoding="utf-8")


def table(about: dict[str, Any], outcomes: list[dict[str, str]]) -> str:
    """Return the number of files by container and outcome, in Markdown."""
    versions = ", ".join(f"{name} {about['packages'][name]}" for name in ("av", "torchcodec", "decord"))
    lines = [
        f"Files of {about['frames']} frames at constant and variable rates; {versions}, FFmpeg {about['ffmpeg']};",
        f"commit {about['commit'][:7]}. Each reader gives every frame in random order, or leaves the file to PyAV.",
        "",
        "| container | encoders | files | equal to plain decoding with all readers | other |",
        "|---|--:|--:|--:|---|",
    ]
    for container in CONTAINERS:
        written = [each for each in outcomes if each["container"] == container and "not written" not in each]
        other = Counter(text for each in written for key, text in each.items() if key not in _ABOUT and text != "equal")
        equal = sum(all(each[key] == "equal" for key in each if key not in _ABOUT) for each in written)
        codecs = len({each["codec"] for each in written})
        others = ", ".join(f"{count} x {text}" for text, count in other.items()) or "none"
        lines.append(f"| {container} | {codecs} | {len(written)} | {equal} | {others} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
