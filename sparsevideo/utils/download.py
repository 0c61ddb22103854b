"""Download a file once, with retries and a progress bar; a part from before is continued."""

import errno
import http.client
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock

from sparsevideo.utils.files import sha256
from sparsevideo.utils.progress import progress_bar

_ATTEMPTS = 5  # in a row without a new byte
_TIMEOUT_S = 30.0  # longest wait for a connection, and for the next part of an answer
_BLOCK = 2**20
_MB = 1e6


def download_once(url: str, file: Path) -> str:
    """Download a file if it is not there, and return its SHA-256; several processes may call this at once.

    The SHA-256 is written to `FILE.sha256` and checked from then on. A file without it, put there by hand, gets it.

    Raises:
        ValueError: The file has changed since then, or the address has a user and a password.
        FileNotFoundError: The server does not have the file.
        ConnectionError: The server cannot be reached, or the download ended early several times in a row.
    """
    record = file.with_name(f"{file.name}.sha256")
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        if not file.exists():
            part = file.with_name(f"{file.name}.part")
            _download(url, part, file)
            record.unlink(missing_ok=True)  # of an older file
            part.replace(file)
        digest = sha256(file)
        if not record.exists():
            record.write_text(f"{digest}\n", encoding="utf-8")
        if (before := record.read_text(encoding="utf-8").strip()) != digest:
            raise ValueError(
                f"{file}: has the SHA-256 {digest}, but had {before}; delete it and {record.name} to download it again"
            )
    return digest


def _download(url: str, part: Path, file: Path) -> None:
    """Write a file to `part`; wait longer after each failure in a row."""
    if "@" in urlsplit(url).netloc:
        raise ValueError("an address with a user and a password is not supported; use one without")
    failures = 0
    while True:
        size = part.stat().st_size if part.exists() else 0
        try:
            return _continue(url, part)
        except HTTPError as error:
            if error.code == 416:  # there is nothing after the part: it is of another file
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise FileNotFoundError(f"{url}: the server answers {error.code} {error.reason}") from error
            reason = f"{error.code} {error.reason}"
        except (http.client.HTTPException, OSError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
                raise
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 0 if part.exists() and part.stat().st_size > size else failures + 1
        if failures == _ATTEMPTS:
            raise ConnectionError(
                f"{url}: cannot be downloaded ({reason}); without network, put the file at {file}, or set"
                " SPARSEVIDEO_WEIGHTS to a folder or an address that has it"
            )
        time.sleep(2**failures / 2)


def _continue(url: str, part: Path) -> None:
    """Download what is missing in `part`, or all of it if the server's file has changed since, or has no ETag."""
    tag = part.with_name(f"{part.name}.etag")
    start = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"Range": f"bytes={start}-", "If-Range": tag.read_text(encoding="utf-8")} if start else {}
    with urlopen(Request(url, headers=headers), timeout=_TIMEOUT_S) as answer:
        if answer.status != 206:
            start = 0
            part.unlink(missing_ok=True)
            tag.unlink(missing_ok=True)
            if "ETag" in answer.headers:
                tag.write_text(answer.headers["ETag"], encoding="utf-8")
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with (
            part.open("ab") as output,
            progress_bar(f"{part.stem}, MB", round((total or 0) / _MB), round(start / _MB)) as bar,
        ):
            while block := answer.read(_BLOCK):
                output.write(block)
                bar.update(bar.task_ids[0], completed=round(output.tell() / _MB))
            size = output.tell()
    if total is not None and size < total:
        raise ConnectionError(f"ended after {size} of {total} bytes")
    tag.unlink(missing_ok=True)
