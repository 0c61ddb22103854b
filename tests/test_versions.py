"""Both ends of what we admit pass the suite: the oldest versions on the oldest Python, the newest on the newest.

`make test-versions` runs this. Each end installs gigabytes below `build/versions` and takes as long as the suite.
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
    """Find a Python of this version: on the path, or where pyenv, uv, conda and others keep theirs."""
    found = findpython.find(python)
    return found.executable if found else None


@cache
def has_torch(python: str) -> bool:
    """Tell whether torch has a wheel for this Python."""
    command = ["-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "torch"]
    done = subprocess.run([str(interpreter(python)), *command], capture_output=True, text=True, check=False)
    if done.returncode and "No matching distribution found for torch" not in done.stderr:
        pytest.fail(f"Python {python}: pip cannot tell whether torch has a wheel: {done.stderr}")
    return done.returncode == 0


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
    """Run the suite in a new environment; return the versions of `requirements` in it. It is removed if all is well."""
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
