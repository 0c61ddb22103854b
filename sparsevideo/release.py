"""Release folders: weights, settings, scores and a model card, on disk or at the Hugging Face Hub.

A release folder has `model.safetensors`, `config.json` with all that is known about the weights and their SHA-256, and
`README.md`, a model card made from it.
"""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict

import yaml

from sparsevideo import __version__
from sparsevideo.config import Config, config_from_dict, config_to_dict
from sparsevideo.models.create import find_pretrained, list_pretrained
from sparsevideo.models.presets import list_models
from sparsevideo.models.weights import load_model, read_weights, save_weights
from sparsevideo.reports.profile import count_macs, count_parameters
from sparsevideo.utils.files import sha256

logger = logging.getLogger(__name__)

WEIGHTS, ABOUT, CARD = "model.safetensors", "config.json", "README.md"
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Entries of `results.json` that say how its scores were measured.
_PROTOCOL = (
    *("split", "clips", "crops", "num_frames", "frame_stride", "sampling", "target_fps", "size", "resized_short_side"),
    *("full_frame", "share_stem", "frame_order", "protocol", "scores", "precision", "num_tubes", "num_points"),
)


class About(TypedDict):
    """Content of `config.json`."""

    library_name: str
    version: str  # of sparsevideo
    architecture: dict[str, Any]  # arguments of `SparseFormer`
    classes: list[str]
    settings: dict[str, Any]  # all settings of the training: preprocessing, recipe
    training_data: str | None
    license: str | None  # of the weights
    parameters: int
    gmac: float  # of one view
    results: list[dict[str, Any]]  # data, scores in percent and protocol of each test
    half: bool  # stored in half precision; the scores are of the checkpoint
    sha256: str  # of the weights


def find_weights(source: str | os.PathLike[str]) -> Path:
    """Return the file, or the sharded checkpoint, with the weights that a source names.

    Args:
        source: A weights file or checkpoint; the folder of a run, which stands for its `checkpoints/best.pt`; a release
            folder; released weights such as `video_sparseformer_nano.scfd`; or a repository of the Hugging Face Hub
            that holds a release, `owner/name` or `owner/name@revision`.

    Raises:
        FileNotFoundError: There is nothing of this name, or a folder without weights.
        ValueError: The files of a release are not those that its `config.json` describes.
    """
    path, name = Path(source), os.fspath(source)
    if path.is_dir() and not (path / ".metadata").exists():
        if (path / ABOUT).exists():
            return _checked(path)
        best = path / "checkpoints" / "best.pt"
        if not best.exists():
            found = ", ".join(str(file) for file in sorted(path.rglob("*.pt"))[:3])
            raise FileNotFoundError(f"{path}: has no checkpoints/best.pt; pass {found or 'a checkpoint'}")
        return best
    if path.exists():
        return path
    network, _, tag = name.partition(".")
    tags, image_network = list_pretrained(), network.removeprefix("video_")
    if tag in tags.get(network, ()) and (network == image_network or tag not in tags.get(image_network, ())):
        return find_pretrained(network, tag)[0]
    if network in list_models():
        known = ", ".join(f"{image_network}.{tag}" for tag in tags.get(image_network, ())) or "none"
        raise FileNotFoundError(
            f"{name}: no such checkpoint; for a network of this name, pass your checkpoint; released image weights:"
            f" {known}"
        )
    repository, _, revision = name.partition("@")
    is_file = path.parent.exists() or path.suffix in (".pt", ".pth", ".safetensors")
    if _REPOSITORY.fullmatch(repository) and not is_file:
        return _checked(download(repository, revision or None))
    raise FileNotFoundError(f"{name}: no such checkpoint")


def release(
    checkpoint: Path,
    out: Path,
    *,
    results: Sequence[Path] = (),
    training_data: str | None = None,
    license: str | None = None,
    half: bool = False,
) -> About:
    """Write a release folder.

    Args:
        checkpoint: Checkpoint of a run.
        out: Folder to write, which must not exist.
        results: `results.json` of tests of this checkpoint.
        training_data: Name of the training data, for the card.
        license: License of the weights, an identifier such as "apache-2.0".
        half: Store half precision.

    Raises:
        ValueError: The checkpoint has no classes or settings, a test is of another checkpoint, or the folder exists.
    """
    model, content = load_model(checkpoint)
    if absent := {"classes", "config"} - content.keys():
        raise ValueError(f"{checkpoint}: has no {' and no '.join(sorted(absent))}; release a checkpoint of a run")
    if out.exists():
        raise ValueError(f"{out}: exists; choose another folder, so that no release or edited card is lost")
    digest = sha256(checkpoint)
    roots = {content["config"]["data"]["root"]: training_data} if training_data else {}
    scores = [_scores(path, digest, checkpoint, roots) for path in results]
    settings = without_paths(config_from_dict(content["config"]))
    data = settings.data
    clip = (data.num_frames,) if model.ndim == 3 else ()
    classes, config = list(content["classes"]), config_to_dict(settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary) / out.name
        save_weights(folder / WEIGHTS, model.half() if half else model, classes=classes, config=config)
        about: About = {
            "library_name": "sparsevideo",
            "version": __version__,
            "architecture": model.hparams,
            "classes": classes,
            "settings": config,
            "training_data": training_data,
            "license": license,
            "parameters": count_parameters(model),
            "gmac": count_macs(model, (1, 3, *clip, data.size, data.size)).all_ops / 1e9,
            "results": scores,
            "half": half,
            "sha256": sha256(folder / WEIGHTS),
        }
        for name, text in ((CARD, model_card(about)), (ABOUT, json.dumps(about, indent=2, ensure_ascii=False) + "\n")):
            (folder / name).write_text(text, encoding="utf-8")
        folder.rename(out)
    return about


def without_paths(settings: Config) -> Config:
    """Return settings without names of folders and projects, which say nothing on another machine."""
    data, weights = settings.data, settings.model.weights
    if weights and not weights.startswith("pretrained:"):
        weights = Path(weights).name
    return replace(
        settings,
        model=replace(settings.model, weights=weights),
        data=replace(data, root=".", list=Path(data.list).name, index=None, classes=None),
        train=replace(settings.train, wandb=None),
    )


def model_card(about: About) -> str:
    """Return the card of a release in Markdown, with the front matter of the Hugging Face Hub."""
    is_video = about["architecture"]["ndim"] == 3
    kind, data = "video" if is_video else "image", about["settings"]["data"]
    task = f"{kind}-classification"
    front: dict[str, Any] = {"library_name": "sparsevideo", "pipeline_tag": task}
    front["tags"] = ["sparseformer", "action-recognition"] if is_video else ["sparseformer"]
    if about["license"]:
        front["license"] = about["license"]
    if about["results"]:
        front["model-index"] = [{"name": about["settings"]["model"]["name"], "results": [
            {
                "task": {"type": task},
                "dataset": {"name": each["data"], "type": each["data"], "split": each["split"]},
                "metrics": [{"type": "accuracy", "name": "top-1, %", "value": round(each["top1"], 2)}],
            }
            for each in about["results"]
        ]}]  # fmt: skip
    clip = f"clips of {data['num_frames']} frames, " if is_video else ""
    classes = about["classes"]
    lines = [
        f"# {about['settings']['model']['name']}",
        "",
        f"A SparseFormer that classifies {kind}s: {len(classes)} classes, {about['parameters'] / 1e6:.2f} M parameters,"
        f" {about['gmac']:.3f} GMAC for one view ({clip}{data['size']} x {data['size']} pixels).",
        "",
        "```python",
        "import sparsevideo",
        "",
        'classifier = sparsevideo.load("FOLDER OR REPOSITORY")',
        f'print(classifier.predict("{"video.mp4" if is_video else "image.jpg"}"))',
        "```",
        "",
        f"- **Training data**: {about['training_data'] or 'not named'}",
        f"- **Start**: {about['settings']['model']['weights'] or 'fresh weights'}",
        f"- **Classes**: {', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}",
        "- **Recipe and preprocessing**: `settings` in `config.json`",
        f"- **SHA-256** of `{WEIGHTS}`: `{about['sha256']}`",
        f"- Written by sparsevideo {about['version']}",
        "",
    ]
    if about["results"]:
        lines += ["| data | split | files | views | top-1, % | top-5, % |", "|---|---|---|---|---|---|"]
        for each in about["results"]:
            views = f"{each['clips']} x {each['crops']}"
            if each["frame_order"] not in (None, "forward"):
                views += f", frames: {each['frame_order']}"
            scores = f"{each['top1']:.2f} | {each['top5']:.2f}"
            lines.append(f"| {each['data']} | {each['split']} | {each['files']} | {views} | {scores} |")
        lines += ["", "All settings of each test are in `config.json`. A file that could not be read counts as wrong."]
        if about["half"]:
            lines.append("The scores were measured before the weights were rounded to half precision.")
    else:
        lines += ["No test results are known."]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n" + "\n".join(lines) + "\n"


def push_to_hub(folder: str | Path, repository: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload a release folder to the Hugging Face Hub, and return its address; the login is that of huggingface_hub.

    Raises:
        ValueError: The files are not those that `config.json` describes, or the repository is not `owner/name`.
        OSError: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    check_repository(repository)
    _checked(Path(folder))
    api = HfApi(library_name="sparsevideo", library_version=__version__)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[WEIGHTS, ABOUT, CARD],
            revision=revision,
            commit_message=f"Release written by sparsevideo {__version__}",
        ).commit_url
    except Exception as error:  # errors of its HTTP library, of other types in each release
        raise OSError(f"{repository}: not uploaded to the Hugging Face Hub ({_first_line(error)})") from error


def check_repository(repository: str) -> None:
    """Raise ValueError if a name is not `owner/name`."""
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"{repository}: a repository of the Hugging Face Hub is called owner/name")


def download(repository: str, revision: str | None = None) -> Path:
    """Return the folder of a release in the cache of the Hugging Face Hub, downloaded if it is not there.

    Raises:
        FileNotFoundError: There is no such repository or revision, or the hub cannot be reached and the release is not
            in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[WEIGHTS, ABOUT, CARD]))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repository}: no such file or folder, and the Hugging Face Hub cannot be reached; to use it offline, pass"
            f" a folder with {WEIGHTS} and {ABOUT} of the release"
        ) from error
    except Exception as error:  # errors of its HTTP library, of other types in each release
        name = f"{repository}@{revision}" if revision else repository
        raise FileNotFoundError(
            f"{name}: no such file or folder, and not at the Hugging Face Hub ({_first_line(error)})"
        ) from error


def _scores(path: Path, digest: str, checkpoint: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the entry of a test in `config.json`. Its data have the name of their folder, or that in `names`."""
    try:
        test = json.loads(path.read_text(encoding="utf-8"))
        entry = {
            "data": names.get(test["root"]) or Path(test["root"]).resolve().name,
            "list": Path(test["list"]).name,
            **{name: test[name] for name in ("top1", "top5", "mean_class_accuracy", *_PROTOCOL)},
            "files": test["listed"],
            "unreadable": test["listed"] - test["scored"],
            "packages": test["environment"]["packages"],
        }
        tested = test["checkpoint_sha256"], test["checkpoint"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the results.json of `sparsevideo test` ({error!r})") from error
    if tested[0] != digest:
        raise ValueError(f"{path}: is a test of other weights ({tested[1]}) than {checkpoint}")
    return entry


def _checked(folder: Path) -> Path:
    """Return the weights of a release folder, which must be those that its `config.json` describes."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        described = {key: about[key] for key in ("architecture", "classes", "sha256")}
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder}: holds no release of sparsevideo: no {ABOUT}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / ABOUT}: is not of a release of sparsevideo ({error!r})") from error
    weights = folder / WEIGHTS
    if not weights.exists():
        raise FileNotFoundError(f"{folder}: has no {WEIGHTS}")
    digest = sha256(weights)
    if digest != described["sha256"]:
        raise ValueError(f"{weights}: has the SHA-256 {digest}, but {ABOUT} says {described['sha256']}; get it again")
    content = read_weights(weights)
    for name, key in (("architecture", "hparams"), ("classes", "classes")):
        if content.get(key) != described[name]:
            raise ValueError(f"{folder / ABOUT}: its {name} are not those of {WEIGHTS}; get both again")
    return weights


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), repr(error))
