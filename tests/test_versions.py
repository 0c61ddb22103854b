"""The tests pass with the oldest supported versions on the oldest Python, and with the newest on the newest Python.

`make test-versions` runs this file. Each environment takes gigabytes in `build/versions` and as long as all tests.
"""

import json
import shutil
import subprocess
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

findpython = pytest.importorskip("findpython")
pytestmark = pytest.mark.versions

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
SUITE = ("-m", "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "-q", "-p", "no:cacheprovider")


@cache
def interpreter(python: str) -> Path | None:
    """Find a Python of this version on the path or among those of pyenv, uv, conda and others."""
    found = findpython.find(python)
    return found.executable if found else None


def list_wheels(python: str, package: str) -> subprocess.CompletedProcess[str]:
    """List the wheels of a package for this Python, without a download; the exit code is 1 if there is none."""
    command = [str(interpreter(python)), "-m", "pip", "index", "versions", package, "--only-binary=:all:"]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


@cache
def has_torch(python: str) -> bool:
    """Return whether torch has a wheel for this Python; fail if the package index gives no answer."""
    control = list_wheels(python, "pip")  # pip has a wheel for every Python: without it, the index was not reached
    if control.returncode:
        pytest.fail(f"Python {python}: pip cannot list the versions of a package: {control.stderr}")
    return list_wheels(python, "torch").returncode == 0


def newest_python() -> str | None:
    return next((python for python in reversed(PYTHONS) if interpreter(python) and has_torch(python)), None)


def requirements() -> list[Requirement]:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = map(Requirement, config["options"]["install_requires"].strip().splitlines())
    return [each for each in listed if each.marker is None or each.marker.evaluate()]


def lowest(requirement: Requirement) -> str:
    (bound,) = (each.version for each in requirement.specifier if each.operator == ">=")
    return bound


def run_suite(folder: str, python: str, constraints: list[str]) -> list[Version]:
    """Run the tests in a new environment; return the versions of `requirements` in it, and remove it after success."""
    environment = ROOT / "build" / "versions" / folder
    shutil.rmtree(environment, ignore_errors=True)
    subprocess.run([str(interpreter(python)), "-m", "venv", str(environment)], check=True)
    (environment / "constraints.txt").write_text("\n".join(constraints))
    binary = str(next(path for path in environment.glob("*/python*") if path.stem == "python"))
    install = ["--quiet", "--editable", ".[dev]", "--constraint", str(environment / "constraints.txt")]
    subprocess.run([binary, "-m", "pip", "install", *install], cwd=ROOT, check=True)
    listing = subprocess.run([binary, "-m", "pip", "list", "--format=json"], capture_output=True, check=True)
    by_name = {canonicalize_name(each["name"]): Version(each["version"]) for each in json.loads(listing.stdout)}
    installed = [by_name[canonicalize_name(each.name)] for each in requirements()]
    versions = ", ".join(f"{each.name} {version}" for each, version in zip(requirements(), installed, strict=True))
    print(f"\n{folder}: Python {python}, {versions}", flush=True)
    subprocess.run([binary, *SUITE], cwd=ROOT, check=True)
    shutil.rmtree(environment)
    return installed


def test_oldest_versions_pass_on_the_oldest_python() -> None:
    python = next((python for python in PYTHONS if interpreter(python)), None)
    if python is None:
        pytest.skip(f"none of Python {', '.join(PYTHONS)} is found")
    installed = run_suite("oldest", python, [f"{each.name}=={lowest(each)}" for each in requirements()])
    assert installed == [Version(lowest(each)) for each in requirements()]


@pytest.mark.parametrize("python", PYTHONS)
def test_newest_versions_pass_on_the_newest_python(python: str) -> None:
    if not interpreter(python):
        pytest.skip(f"Python {python} is not found")
    if not has_torch(python):
        pytest.skip(f"torch has no wheel for Python {python}")
    if python != newest_python():
        pytest.skip(f"Python {python} is not the newest that is found: make clean test PYTHON={interpreter(python)}")
    run_suite("newest", python, [])
