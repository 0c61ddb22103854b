"""The preview of a stream serves browsers that come and go."""

import socket
import struct
import time
import urllib.request

import pytest

from sparsevideo.commands.preview import Preview


@pytest.mark.parametrize(
    "request_start", [b"GET / HTTP/1.0\r\n", b"GET / HTTP/1.0\r\n\r\n", b"GET /stream.mjpg HTTP/1.0\r\n\r\n"]
)
def test_preview_ignores_a_browser_that_has_gone(request_start, capfd):
    with Preview(0, ("left", "right")) as preview:
        with socket.create_connection(("127.0.0.1", preview.port)) as browser:
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by a reset
            browser.sendall(request_start)
            time.sleep(0.1)
        time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{preview.port}/", timeout=20) as page:
            assert b"/stream.mjpg" in page.read()
    assert capfd.readouterr().err == ""
