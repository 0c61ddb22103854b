"""The annotated picture of a stream in a browser: motion JPEG over HTTP, on the loopback interface."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from types import TracebackType
from typing import Any

from PIL import Image

from sparsevideo.io.stream import TimedFrame
from sparsevideo.reports.captions import Captions

_PAGE = b"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>sparsevideo stream</title>
<style>body { margin: 0; background: #111 } img { display: block; margin: auto; max-width: 100%; height: 100vh;
object-fit: contain }</style></head>
<body><img src="/stream.mjpg" alt="Live picture with the best class"></body></html>
"""
_BOUNDARY = "frame"


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, unless the browser has gone."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Preview:
    """Serves the newest frame with the best class on `http://127.0.0.1:PORT/`. Use it in a `with` block.

    Args:
        port: Port on 127.0.0.1; 0 takes a free one.
        classes: Class names.

    Attributes:
        port: The port.
        ranked: Best classes with their scores, best first; the first one is drawn.

    Raises:
        OSError: The port is in use.
    """

    def __init__(self, port: int, classes: tuple[str, ...]) -> None:
        self.ranked: list[tuple[str, float]] = []
        self._captions = Captions(classes)
        self._frame: TimedFrame | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        try:
            self._server = _Server(("127.0.0.1", port), self._handler())
        except OSError as error:
            raise OSError(f"--preview {port}: {error.strerror or error}; choose another port") from error
        self.port = self._server.server_address[1]

    def __enter__(self) -> "Preview":
        threading.Thread(target=self._server.serve_forever, name="preview", daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def show(self, frame: TimedFrame) -> None:
        """Show a frame from now on. It is converted and compressed only if someone watches."""
        with self._changed:
            self._frame = frame
            self._changed.notify_all()

    def _next_jpeg(self, after: TimedFrame | None) -> tuple[TimedFrame, bytes] | None:
        """Wait for another frame than `after`; return it and its annotated picture, or None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._frame is not after)
            if self._is_closed or self._frame is None:
                return None
            frame = self._frame
        buffer = BytesIO()
        Image.fromarray(self._captions.draw(frame.image, self.ranked[:1])).save(buffer, "JPEG", quality=85)
        return frame, buffer.getvalue()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        preview = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the name that http.server calls
                if self.path == "/":
                    self._start("text/html; charset=utf-8")
                    self.wfile.write(_PAGE)
                elif self.path == "/stream.mjpg":
                    self._start(f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
                    self._send_frames()
                else:
                    self.send_error(404)

            def _start(self, content_type: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Cache-Control", "no-store")
                self.end_headers()

            def _send_frames(self) -> None:
                frame = None
                while (shown := preview._next_jpeg(frame)) is not None:
                    frame, jpeg = shown
                    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    self.wfile.write(head.encode() + jpeg + b"\r\n")

            def log_message(self, *args: Any) -> None:
                """Log nothing: a line per request would disturb the answers."""

        return Handler
