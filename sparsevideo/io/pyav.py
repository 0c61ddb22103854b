"""Differences between PyAV's releases."""

import logging
import re
from functools import cache
from importlib.metadata import version
from multiprocessing import parent_process
from typing import Any

import av
from av.sidedata.sidedata import Type

MAJOR = int(av.__version__.split(".")[0])
# Swscale would start threads for every frame; before version 17 PyAV always used one and had no such argument.
ONE_THREAD = {"threads": 1} if MAJOR >= 17 else {}
# Accept titles that are not UTF-8; from version 19 PyAV accepts them always, and has no such argument.
ANY_METADATA: dict[str, Any] = {"metadata_errors": "ignore"} if MAJOR < 19 else {}

OLDEST_PYAV, NEWEST_PYAV = (17, 1), (19,)  # first and last version that passes the suite; 19 means 19.*
PYAV_ADVICE = f"pip install 'av>={OLDEST_PYAV[0]}.{OLDEST_PYAV[1]},<{NEWEST_PYAV[0] + 1}'"


@cache
def warn_of_untested_pyav() -> None:
    """Log one warning if the suite has not been run with the installed PyAV; child processes log nothing."""
    installed = version("av")
    numbers = tuple(map(int, re.findall(r"\d+", installed)[:2]))
    relation = "older" if numbers < OLDEST_PYAV else "newer" if numbers[:1] > NEWEST_PYAV else None
    if relation and parent_process() is None:
        logging.getLogger(__name__).warning(
            "PyAV %s is %s than the versions that sparsevideo is tested with, %d.%d to %d; if videos do not decode, or"
            " their colors are wrong: %s",
            *(installed, relation, *OLDEST_PYAV, *NEWEST_PYAV, PYAV_ADVICE),
        )


def _unnamed_side_data(cls: Any, value: int) -> Any:
    member = object.__new__(cls)
    member._name_, member._value_ = f"UNNAMED_{value}", value
    return member


# FFmpeg attaches side data that PyAV before version 19 has no name for (EXIF of motion JPEG, views of 3-D video).
# Access to any side data of such a frame, for example its orientation, raised ValueError.
Type._missing_ = classmethod(_unnamed_side_data)  # type: ignore[assignment, method-assign]
