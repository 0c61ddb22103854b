"""Where pixels come from: lists, decoders, clips, transforms and loaders."""

import logging
from functools import cache
from importlib.metadata import version
from multiprocessing import parent_process

TESTED_PYAV = (17, 19)  # oldest and newest major version that passes the suite
PYAV_ADVICE = f"pip install 'av>={TESTED_PYAV[0]},<{TESTED_PYAV[1] + 1}'"


@cache
def warn_of_untested_pyav() -> None:
    """Log one warning if the suite has not been run with the installed PyAV; its child processes stay silent."""
    installed, (oldest, newest) = version("av"), TESTED_PYAV
    major = int(installed.partition(".")[0])
    if oldest <= major <= newest or parent_process() is not None:
        return
    logging.getLogger(__name__).warning(
        "PyAV %s is %s than the versions that sparsevideo is tested with, %d to %d; if videos do not decode, or their"
        " colors are wrong: %s",
        installed,
        "older" if major < oldest else "newer",
        oldest,
        newest,
        PYAV_ADVICE,
    )
