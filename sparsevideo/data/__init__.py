"""Where pixels come from: lists, decoders, clips, transforms and loaders."""

import logging
import re
from functools import cache
from importlib.metadata import version
from multiprocessing import parent_process

OLDEST_PYAV, NEWEST_PYAV = (17, 1), (19,)  # first and last version that passes the suite, all of 19 in this case
PYAV_ADVICE = f"pip install 'av>={OLDEST_PYAV[0]}.{OLDEST_PYAV[1]},<{NEWEST_PYAV[0] + 1}'"


@cache
def warn_of_untested_pyav() -> None:
    """Log one warning if the suite has not been run with the installed PyAV; child processes stay silent."""
    installed = version("av")
    numbers = tuple(map(int, re.findall(r"\d+", installed)[:2]))
    relation = "older" if numbers < OLDEST_PYAV else "newer" if numbers[:1] > NEWEST_PYAV else None
    if relation and parent_process() is None:
        logging.getLogger(__name__).warning(
            "PyAV %s is %s than the versions that sparsevideo is tested with, %d.%d to %d; if videos do not decode, or"
            " their colors are wrong: %s",
            *(installed, relation, *OLDEST_PYAV, *NEWEST_PYAV, PYAV_ADVICE),
        )
