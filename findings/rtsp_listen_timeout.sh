#!/usr/bin/env bash
# FFmpeg's RTSP demuxer cannot listen with its own default timeout.
#
# `rtsp_flags=listen` waits for a camera or an encoder that pushes its stream. The documented default of `listen_timeout`
# is -1, which means forever. With it, opening fails at once with "Numerical result out of range", as if the stream were
# damaged; a timeout in seconds makes it listen. FFmpeg 5.1 listens with the default; the ffmpeg program of the system, if
# there is one, is tried as well.
# Observed with PyAV 18.1.0 (FFmpeg 8.1.2) on x86-64 Linux. Prints what each option does; fails if the finding changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import socket
import time

import av


def listen(options):
    """Return the error with which opening ends, and how long it takes; nobody sends anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start = time.monotonic()
    try:
        av.open(f"rtsp://127.0.0.1:{port}/live", options=options, timeout=(2, 2))
    except av.FFmpegError as error:
        return type(error).__name__, time.monotonic() - start
    raise AssertionError("a stream that nobody sends was opened")


print(f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}")
results = {}
for name, options in (("default", {}), ("20 s", {"listen_timeout": "20"})):
    results[name] = listen({"rtsp_flags": "listen", **options})
    print(f"listen_timeout {name}: {results[name][0]} after {results[name][1]:.1f} s")
assert results["default"][0] == "OverflowError" and results["default"][1] < 1, "the default listens now: remove this"
assert results["20 s"][0] == "ExitError" and results["20 s"][1] > 1.5, "it does not wait with a timeout"
PYTHON
if command -v ffmpeg > /dev/null; then
    ffmpeg -hide_banner -version | head -n 1
    timeout 2 ffmpeg -v error -rtsp_flags listen -i rtsp://127.0.0.1:28599/live -f null - || echo "the program: exit code $? (124: it listened)"
fi
