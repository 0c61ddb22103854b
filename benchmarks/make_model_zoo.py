"""Print the page of the model zoo from results of `sparsevideo test`; each argument is [DATA SET=]RESULTS.json[#KEY].

    python -m benchmarks.make_model_zoo Kinetics-400=runs/k400_tiny/val-4x3/results.json > docs/model_zoo.md

Measurements on a data set called Kinetics-400 or ImageNet-1K are shown beside the paper's numbers. KEY is for files
that hold the results of several tests, such as docs/quickstart.json.
"""

import argparse
import shlex

from benchmarks.zoo_table import read_results, zoo_page


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", help="in the order of their rows")
    args = parser.parse_args()
    try:
        measured = [read_results(argument) for argument in args.results]
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    command = shlex.join(["python", "-m", "benchmarks.make_model_zoo", *args.results]) + " > docs/model_zoo.md"
    print(zoo_page(measured, command), end="")


if __name__ == "__main__":
    main()
