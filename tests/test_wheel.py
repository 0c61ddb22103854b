"""The wheel works in an environment without this repository."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_installs_and_runs_in_a_clean_environment(tmp_path):
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    # These are the steps of the Dockerfile.
    search = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
    run("env", search, "sh", ROOT / "tools" / "install_container.sh", wheel, tmp_path / "clean", "export", cwd=tmp_path)
    python = tmp_path / "clean" / "bin" / "python"
    command = tmp_path / "clean" / "bin" / "sparsevideo"
    assert "quickstart" in run(command, "--help", cwd=tmp_path)
    models = {model["name"]: model for model in json.loads(run(command, "models", "list", "--json", cwd=tmp_path))}
    assert len(models) == 8 and models["video_sparseformer_nano"]["pretrained"] == ["scfd", "tiny_imagenet"]
    released = "import sparsevideo; sparsevideo.create_model('video_sparseformer_nano', pretrained='tiny_imagenet')"
    run(python, "-c", released, cwd=tmp_path)
    exported = ("export", "video_sparseformer_nano.scfd", "--out", tmp_path / "exported")
    assert "largest difference" in run(command, *exported, cwd=tmp_path)
    assert "images/{split}" in run(command, "config", "show", "--config", "quickstart/image_nano.yaml", cwd=tmp_path)
