"""Downloads from a real server that is slow, stops early, changes its file, or is gone."""

import hashlib
import multiprocessing
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sparsevideo.utils import download
from sparsevideo.utils.download import download_once

CONTENT = bytes(range(256)) * 4096 * 3  # 3 MiB


class Handler(BaseHTTPRequestHandler):
    """Sends `content`; the first answers end as `faults` say: a number of bytes, or a status."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.requests.append(self.headers.get("Range"))
        fault = server.faults.pop(0) if server.faults else None
        tag = f'"{hashlib.sha256(server.content).hexdigest()}"'
        start = 0
        if self.headers.get("Range") and self.headers.get("If-Range") == tag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if isinstance(fault, str) or start >= len(server.content):
            self.send_error(int(fault or 416))
            return
        self.send_response(206 if start else 200)
        if server.has_tags:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start:] if fault is None else server.content[start : start + fault])
        self.close_connection = fault is not None

    def log_message(self, *args):
        pass


@contextmanager
def serving(*faults, content=CONTENT, has_tags=True):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.faults, server.content, server.has_tags, server.requests = [*faults], content, has_tags, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/weights.pth", server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


def files(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("faults", [(), ("503", "500"), (10**6, 10**6), (0, 2 * 10**6, "502", 10)])
def test_a_download_is_repeated_and_continued(faults, tmp_path):
    with serving(*faults) as (url, server):
        digest = download_once(url, tmp_path / "folder" / "weights.pth")
    assert (tmp_path / "folder" / "weights.pth").read_bytes() == CONTENT
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert files(tmp_path / "folder") == {"weights.pth", "weights.pth.sha256"}
    assert len(server.requests) == 1 + len(faults)
    if faults and faults[-1] == 10:
        assert server.requests[-1] == f"bytes={2 * 10**6 + 10}-"


def test_a_part_of_another_version_of_the_file_is_not_continued(tmp_path):
    with serving(10**6, *["503"] * 9) as (url, server), pytest.raises(ConnectionError, match="503"):
        download_once(url, tmp_path / "weights.pth")
    assert files(tmp_path) == {"weights.pth.part", "weights.pth.part.etag"}
    with serving(content=CONTENT[::-1]) as (url, server):
        download_once(url, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT[::-1]
    assert server.requests == ["bytes=1000000-"]


def test_without_etags_a_download_starts_again(tmp_path):
    with serving(10**6, has_tags=False) as (url, server):
        download_once(url, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT and server.requests == [None, None]


def test_a_part_that_is_longer_than_the_file_is_discarded(tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(CONTENT + b"more")
    (tmp_path / "weights.pth.part.etag").write_text(f'"{hashlib.sha256(CONTENT).hexdigest()}"')
    with serving() as (url, server):
        download_once(url, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT and server.requests == [
        f"bytes={len(CONTENT) + 4}-",
        None,
    ]


def test_a_file_that_is_there_is_not_downloaded_but_checked(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"put here by hand")
    url = "http://127.0.0.1:9/weights.pth"
    assert download_once(url, file) == download_once(url, file) == hashlib.sha256(b"put here by hand").hexdigest()
    file.write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"weights\.pth: has the SHA-256 \w+, but had \w+; delete it and weights"):
        download_once(url, file)


def test_errors_say_what_to_do(tmp_path):
    file = tmp_path / "weights.pth"
    with serving("404") as (url, server), pytest.raises(FileNotFoundError, match="the server answers 404 Not Found"):
        download_once(url, file)
    assert len(server.requests) == 1
    with pytest.raises(ConnectionError, match=r"refused.*put the file at .*weights\.pth, or set SPARSEVIDEO_WEIGHTS"):
        download_once(url, file)  # the server is gone
    with (
        serving(*[10**6] * 2, *[0] * 9) as (url, server),
        pytest.raises(ConnectionError, match="ended after 2000000 of"),
    ):
        download_once(url, file)
    assert len(server.requests) == 2 + download._ATTEMPTS
    assert not file.exists()


def test_processes_download_a_file_once(tmp_path):
    with serving(10**6) as (url, server):
        context = multiprocessing.get_context("spawn")
        with context.Pool(3) as pool:
            digests = pool.starmap(download_once, [(url, tmp_path / "weights.pth")] * 3)
    assert len({*digests}) == 1 and len(server.requests) == 2
