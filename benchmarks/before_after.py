"""Compare two revisions by the results of one benchmark, run alternately on one machine.

    python -m benchmarks.before_after --before OLD/data.json OLD2/data.json --after NEW/data.json NEW2/data.json

prints a Markdown table: the median of all times measured with each revision, and their ratio.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any


def times(results: Any, name: str = "") -> Iterator[tuple[str, list[float]]]:
    """Yield the keys and the numbers of every list of numbers in the results."""
    if isinstance(results, dict):
        for key, value in results.items():
            yield from times(value, f"{name}, {key}" if name else key)
    elif isinstance(results, list) and results and all(isinstance(each, int | float) for each in results):
        yield name, results


def gather(paths: list[Path]) -> tuple[set[str], dict[str, list[float]]]:
    """Read the results of several runs of one revision; return its commits and all times of each job."""
    commits, measured = set(), dict[str, list[float]]()
    for path in paths:
        results = json.loads(path.read_text(encoding="utf-8"))
        commits.add(results["environment"]["commit"][:7])
        for name, values in times(results):
            measured.setdefault(name.replace(", seconds", ""), []).extend(values)
    return commits, measured


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, nargs="+", required=True)
    parser.add_argument("--after", type=Path, nargs="+", required=True)
    args = parser.parse_args()
    (old_commits, old), (new_commits, new) = gather(args.before), gather(args.after)
    print(f"| | before, {', '.join(old_commits)} | after, {', '.join(new_commits)} | after / before |")
    print("|---|--:|--:|--:|")
    for name in (name for name in old if name in new):
        pair = median(old[name]), median(new[name])
        print(f"| {name} | {pair[0]:.4g} | {pair[1]:.4g} | {pair[1] / pair[0]:.2f} |")


if __name__ == "__main__":
    main()
