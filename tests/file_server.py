"""A real web server on loopback that sends files in several ways, and URLs with secrets."""

import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

SECRETS = ("anna", "pass", "token", "5678")


class Handler(SimpleHTTPRequestHandler):
    """Serves files in parts (`/ranges/`), only whole (`/whole/`), of unknown size (`/chunked/`), cut (`/cut/`), only
    the first part (`/first/`), or without a part in the middle (`/later/`, once `is_failing`)."""

    protocol_version = "HTTP/1.1"
    requests: ClassVar[list[str]] = []
    is_failing: ClassVar[bool] = False

    def do_GET(self):
        way, _, name = self.path.partition("?")[0].removeprefix("/").partition("/")
        file = self.server.root / name
        self.requests.append(f"{self.command} {self.headers.get('Range', 'all')}")
        if not file.is_file():
            self.send_error(404)
            return
        content, status = file.read_bytes(), 200
        if way in ("ranges", "cut", "first", "later") and "Range" in self.headers:
            first, last = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
            if first and (way == "first" or (way == "later" and self.is_failing and first == 6 * 2**20)):
                self.send_error(503)
                return
            total, content, status = len(content), content[first : last + 1], 206
            first, last = first, first + len(content) - 1
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        if way == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content if way != "cut" else content[: len(content) // 2])
            self.close_connection = way == "cut"

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@contextmanager
def serving(root):
    """Serve a folder; yield the start of its URLs, with secrets."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.root = root
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://anna:pass@127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def url_of(server, way, name):
    return f"{server}/{way}/{name}?token=5678"
