"""Suggest the nearest known name in messages about unknown names."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the end of a message about an unknown name.

    Args:
        name: The unknown name.
        known: The valid names.
        cutoff: Smallest similarity, from 0 to 1, of a name that is suggested.

    Example:
        >>> did_you_mean("num_tube", ["num_tubes", "num_points"])
        "; did you mean 'num_tubes'?"
        >>> did_you_mean("size", ["num_tubes", "num_points"])
        ''
    """
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {match[0]!r}?" if match else ""
