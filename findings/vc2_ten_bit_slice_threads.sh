#!/usr/bin/env bash
# FFmpeg decodes 10-bit VC-2 to wrong pixels with slice threads, which PyAV uses by default.
#
# A file of 10-bit VC-2 (SMPTE ST 2042, FFmpeg's own encoder) is decoded with one thread, with two frame threads and with
# two slice threads. One thread and frame threads agree bit for bit. With slice threads some samples are off by hundreds
# of 1023 levels, and not always the same ones; no error is raised. 8-bit VC-2 agrees everywhere. PyAV's default is as
# many slice threads as there are cores, so a plain loop over `container.decode` reads such files wrongly.
# Seen with PyAV 18.1.0 (FFmpeg 8.1.2) on x86-64 Linux. Prints the largest differences; fails if they change in kind.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import av
import numpy as np


def encode(path, pix_fmt):
    with av.open(path, "w") as file:
        stream = file.add_stream("vc2", rate=25, options={"strict": "experimental", "b": "2M"})
        stream.width, stream.height, stream.pix_fmt = 176, 144, pix_fmt
        for number in range(16):
            ramp = (np.arange(176)[None] + 2 * np.arange(144)[:, None] + 9 * number) % 200
            image = np.stack([ramp] * 3, -1).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image).reformat(format=pix_fmt)))
        file.mux(stream.encode())


def decode(path, threads, kind):
    with av.open(path) as file:
        file.streams.video[0].thread_count, file.streams.video[0].thread_type = threads, kind
        return np.stack([frame.to_ndarray() for frame in file.decode(video=0)]).astype(int)


print(f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}")
worst = {}
for pix_fmt in ("yuv420p", "yuv420p10le"):
    path = f"{pix_fmt}.mkv"
    encode(path, pix_fmt)
    one = decode(path, 1, "SLICE")
    for kind in ("FRAME", "SLICE"):
        worst[pix_fmt, kind] = max(int(np.abs(decode(path, 2, kind) - one).max()) for _ in range(5))
        print(f"{pix_fmt}, two {kind.lower()} threads: up to {worst[pix_fmt, kind]} levels from one thread's")
assert worst["yuv420p", "FRAME"] == worst["yuv420p", "SLICE"] == worst["yuv420p10le", "FRAME"] == 0
assert worst["yuv420p10le", "SLICE"] > 100, "slice threads are right now: this finding is history"
PYTHON
