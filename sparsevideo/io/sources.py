"""Files: on this machine, inside tar files, or at a URL."""

import hashlib
import re
from collections.abc import Callable
from io import SEEK_CUR, SEEK_END, SEEK_SET
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

from sparsevideo.io.errors import DecodeError

_CONNECT_S, _READ_S = 10, 30  # longest time until a server accepts a connection, and between two parts of its answer
_BLOCK, _NUM_BLOCKS = 2**20, 64  # bytes of a request, and blocks of a file that are kept in memory


class Member(NamedTuple):
    """A file inside an uncompressed tar file; it is read without extraction."""

    tar: Path
    name: str
    offset: int  # of its first byte in the tar file
    size: int  # in bytes

    def __str__(self) -> str:
        return str(self.tar / self.name)

    def check(self) -> None:
        """Raise DecodeError if the tar file has become too short, FileNotFoundError if it does not exist."""
        if self.tar.stat().st_size < self.offset + self.size:
            raise DecodeError(f"{self}: its shard has become shorter; download it or make it again")

    def read(self) -> bytes:
        """Read all bytes; raises the errors of `check`."""
        self.check()
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Encoded(NamedTuple):
    """The bytes of a video file, as an object store or a tar reader hands them over."""

    content: bytes

    def __repr__(self) -> str:
        return f"{len(self.content)} bytes in memory"

    def read(self) -> bytes:
        """Return all bytes."""
        return self.content


class Remote(NamedTuple):
    """A file at a URL, which fsspec reads: http, https, s3, gs, ...

    Its text, which messages and results show, has neither the user and password of the URL nor the values of its query:
    `?hidden-` and a hash stand for the query.
    """

    url: str

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        query = parts.query
        if query and not re.fullmatch("hidden-[0-9a-f]{8}", query):
            query = f"hidden-{hashlib.sha256(query.encode()).hexdigest()[:8]}"
        return parts._replace(netloc=host, query=query, fragment="").geturl()

    def read(self) -> bytes:
        """Read all bytes; raises the errors of `RemoteFile`."""
        return RemoteFile(self).read()


class RemoteFile:
    """A remote file open for reading: blocks are downloaded when they are needed, and the latest ones are kept.

    An error is raised once; after it the file seems to end. PyAV prints an error that comes before it has raised an
    earlier one. `rewind` raises the error again, so that nobody takes it for the real end.

    Raises:
        DecodeError: The file cannot be reached, or the connection breaks; also while it is read.
        ImportError: See `check_url`.
        ValueError: See `check_url`.
    """

    def __init__(self, remote: Remote) -> None:
        self.name = PurePosixPath(urlsplit(remote.url).path).name  # FFmpeg looks at the ending
        self._remote, self._position, self._is_copy = remote, 0, False
        self._error: DecodeError | None = None
        check_url(remote.url)
        self._checked(self._open)

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Go to a position, in bytes, not before the start; nothing is downloaded."""
        base = {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def rewind(self) -> None:
        """Go to the start, to read the file again."""
        if self._error is not None:
            raise self._error
        self.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes, or up to the end of the file."""
        if self._error is not None:
            return b""
        left = max(0, self._size - self._position)
        content: bytes = self._checked(self._fetch, left if size < 0 else min(size, left))
        self._position += len(content)
        return content

    def _open(self) -> None:
        from fsspec.core import url_to_fs

        self._fs, self._path = url_to_fs(self._remote.url, **_options(self._remote.url))
        blocks = {"block_size": _BLOCK, "cache_type": "blockcache", "cache_options": {"maxblocks": _NUM_BLOCKS}}
        self._file: Any = self._fs.open(self._path, "rb", **blocks)
        if getattr(self._file, "size", None) is None:
            self._copy(self._file)
        self._size: int = self._file.seek(0, SEEK_END)

    def _fetch(self, size: int) -> bytes:
        try:
            self._file.seek(self._position)
            content = self._file.read(size)
        except ValueError:  # of fsspec: the server does not send parts of a file
            if self._is_copy:
                raise
            self._copy(self._fs.open(self._path, "rb", block_size=0))
            return self._fetch(size)
        if len(content) < size:
            raise EOFError(f"it ends after {self._position + len(content)} of {self._size} bytes")
        return content

    def _copy(self, stream: BinaryIO) -> None:
        """Download the whole file, for a server that does not state its size or does not send parts of it."""
        copy = TemporaryFile()  # noqa: SIM115  # it is open as long as this object exists
        with stream:
            copyfileobj(stream, copy, _BLOCK)
        self._file, self._is_copy = copy, True

    def _checked(self, action: Callable[..., Any], *args: Any) -> Any:
        """Call a function; convert its errors to a DecodeError without secrets."""
        try:
            return action(*args)
        except Exception as error:  # fsspec and the packages behind it raise many kinds
            self._error = DecodeError(
                f"{self._remote}: cannot be read ({_reason(error)}); check the address and the connection"
            )
        raise self._error  # without the cause, whose message may hold secrets


def is_url(text: str) -> bool:
    """Return whether a text is the URL of a file, such as `https://host/a.mp4` or `s3://bucket/a.mp4`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def check_url(url: str) -> None:
    """Check that files at this kind of URL can be read; nothing is downloaded.

    Raises:
        ImportError: The package for it is not installed.
        ValueError: There is no such package.
    """
    from fsspec.registry import get_filesystem_class

    kind = url.partition("://")[0].lower()
    try:
        get_filesystem_class(kind)
    except ImportError as error:
        raise ImportError(
            f"{Remote(url)}: cannot be read ({error}); run `pip install '.[remote]'` in the folder of sparsevideo"
        ) from error
    except ValueError as error:
        raise ValueError(f"{Remote(url)}: {kind}:// is not supported; use http, https, s3 or gs") from error


def _options(url: str) -> dict[str, Any]:
    """Return the arguments that limit the time for an answer."""
    kind = url.partition("://")[0].lower()
    if kind in ("http", "https"):
        import aiohttp

        # No limit in all: a slow download is no error.
        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(connect=_CONNECT_S, sock_read=_READ_S)}}
    if kind == "s3":
        limits = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S, "retries": {"max_attempts": 1}}
        return {"config_kwargs": limits}
    return {}


def _reason(error: BaseException) -> str:
    """Return why a remote file cannot be read. The messages of other packages may hold the URL with its secrets."""
    if isinstance(error, FileNotFoundError):  # fsspec raises it in place of other errors
        if error.__cause__ is None:
            return "no such file"
        return _reason(error.__cause__)
    if isinstance(status := getattr(error, "status", None), int):
        return f"HTTP status {status} {getattr(error, 'message', '')}".strip()
    if "Timeout" in type(error).__name__:
        return f"no answer within {_CONNECT_S} s, or no data within {_READ_S} s"
    text = " ".join(re.sub(r"[A-Za-z][A-Za-z0-9+.-]+://\S+", "...", str(error)).split())
    return text or type(error).__name__


def ffmpeg_url(path: str | Path | Member) -> str:
    """Return the URL of a file, or of a part of a tar file, for FFmpeg; raises the errors of `Member.check`."""
    if not isinstance(path, Member):
        return f"file:{path}"  # without "file:", FFmpeg takes a name such as "concat:a" for a protocol
    path.check()
    return f"subfile,,start,{path.offset},end,{path.offset + path.size},,:file:{path.tar}"
