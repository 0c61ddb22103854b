"""Errors that name the file."""

from collections.abc import Iterator
from contextlib import contextmanager

import av

ADVICE = "remove it or make it again"


class DecodeError(ValueError):
    """Error of a file that cannot be decoded; the message names the file and the reason."""


@contextmanager
def as_decode_error(source: object) -> Iterator[None]:
    """Convert any error caused by a file to a DecodeError that names it.

    FFmpeg's errors are not the only ones: on unexpected content PyAV raises IndexError, ValueError, UnicodeDecodeError,
    ...
    """
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{source}: no such file") from None
    except Exception as error:
        out_of_memory = isinstance(error, MemoryError) and not isinstance(error, av.FFmpegError)
        if isinstance(error, DecodeError) or out_of_memory:  # the file does not cause a lack of memory
            raise
        raise DecodeError(f"{source}: does not decode ({reason_of(error)}); {ADVICE}") from error


def reason_of(error: Exception) -> str:
    """Return FFmpeg's own message of an error, or the type and the message of another error."""
    if isinstance(error, av.FFmpegError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}"
