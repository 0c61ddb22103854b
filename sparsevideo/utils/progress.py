"""Progress bar on the terminal."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_terminal = Console(stderr=True)  # shared, so that the bar of a validation is shown below that of the training


def progress_bar(description: str, total: int, completed: int = 0, show: bool = True) -> Progress:
    """Return a progress bar for a `with` block. It is hidden without a terminal, or if `show` is false."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=_terminal, transient=True, disable=not (show and sys.stderr.isatty()))
    bar.add_task(description, total=total, completed=completed)
    return bar
