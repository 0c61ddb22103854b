"""Files, and files inside tar files."""

from pathlib import Path
from typing import NamedTuple

from sparsevideo.io.errors import DecodeError


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


def ffmpeg_url(path: str | Path | Member) -> str:
    """Return the URL of a file, or of a part of a tar file, for FFmpeg; raises the errors of `Member.check`."""
    if not isinstance(path, Member):
        return f"file:{path}"  # without "file:", FFmpeg takes a name such as "concat:a" for a protocol
    path.check()
    return f"subfile,,start,{path.offset},end,{path.offset + path.size},,:file:{path.tar}"
