"""Errors that name the file."""

from collections.abc import Iterator
from contextlib import contextmanager

import av

ADVICE = "remove it or make it again"


class DecodeError(ValueError):
    """A file that cannot be decoded; the message names the file and the reason."""


@contextmanager
def named_errors(source: object) -> Iterator[None]:
    """Turn any error of a file into one that names it.

    FFmpeg's errors are not the only ones: PyAV raises IndexError, ValueError, UnicodeDecodeError, ... over what it does
    not expect in a file.
    """
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{source}: no such file") from None
    except Exception as error:
        out_of_memory = isinstance(error, MemoryError) and not isinstance(error, av.FFmpegError)
        if isinstance(error, DecodeError) or out_of_memory:  # a lack of memory is not the file's fault
            raise
        raise DecodeError(f"{source}: does not decode ({reason_of(error)}); {ADVICE}") from error


def reason_of(error: Exception) -> str:
    """Describe an error: FFmpeg's own words, or its kind and its words."""
    if isinstance(error, av.FFmpegError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}"
