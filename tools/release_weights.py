"""Make the released weights of a network, and the sample of predictions that reproduces the score in their card.

    python tools/release_weights.py CHECKPOINT sparseformer_nano.tiny_imagenet
    sparsevideo test sparsevideo/weights/sparseformer_nano.tiny_imagenet.safetensors --data.root DATA --out TEST
    python tools/release_weights.py TEST sparseformer_nano.tiny_imagenet

The card, `sparsevideo/weights/NAME.md`, must exist; the first command writes the SHA-256 of the weights into it.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import torch

from sparsevideo.config import config_from_dict, config_to_dict
from sparsevideo.models.create import WEIGHTS
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.models.weights import load_model, save_weights
from sparsevideo.release import without_paths
from sparsevideo.reports.predictions import load_predictions
from sparsevideo.utils.files import sha256

SAMPLES = Path(__file__).parents[1] / "tests" / "models" / "released"


def synthetic_logits(model: SparseFormer) -> np.ndarray:
    """Return the logits (K,) of a pattern of 64 x 64 pixels, or of 8 frames of a pattern that moves."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    times = torch.arange(8.0) if model.ndim == 3 else torch.zeros(1)
    frames = [torch.stack([torch.sin(x / 5 + t), torch.cos(y / 7), torch.sin((x + y) / 9 - t)]) for t in times]
    clip = torch.stack(frames, dim=1)[None]  # (1, 3, T, 64, 64)
    with torch.no_grad():
        return model.eval()(clip if model.ndim == 3 else clip.squeeze(2))[0].numpy()


def release(checkpoint: Path, name: str) -> None:
    """Write the weights in half precision, without names of folders, and their SHA-256."""
    card, file = WEIGHTS / f"{name}.md", WEIGHTS / f"{name}.safetensors"
    text = card.read_text(encoding="utf-8")
    model, content = load_model(checkpoint)
    config = config_to_dict(without_paths(config_from_dict(content["config"])))
    save_weights(file, model.half(), classes=content["classes"], config=config)
    digest = sha256(file)
    text, lines = re.subn(r"^sha256: .*$", f"sha256: {digest}", text, flags=re.MULTILINE)
    if lines != 1:
        raise ValueError(f"{card}: must have one line that begins with `sha256: `, has {lines}")
    card.write_text(text, encoding="utf-8")
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB, SHA-256 {digest}")


def sample(test: Path, name: str) -> None:
    """Write the predicted and the true class of each file of a test, and the SHA-256 of the weights.

    Beside them are the logits of a synthetic input, to test the released file itself.
    """
    predictions, file = load_predictions(test), WEIGHTS / f"{name}.safetensors"
    results = json.loads((test / "results.json").read_text(encoding="utf-8"))
    if results["checkpoint_sha256"] != sha256(file) or results["scored"] != results["listed"]:
        raise ValueError(f"{test}: must be a test of {file} without failed files")
    SAMPLES.mkdir(exist_ok=True)
    np.savez_compressed(
        SAMPLES / f"{name}.npz",
        predicted=predictions.scores.argmax(1).astype(np.uint16),
        labels=predictions.labels.astype(np.uint16),
        sha256=results["checkpoint_sha256"],
        logits=synthetic_logits(load_model(file)[0]),
    )
    print(f"top-1 {results['top1']:.2f} %, top-5 {results['top5']:.2f} %")


def main() -> None:
    """Release a checkpoint, or sample the folder of a test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="checkpoint, or folder of a test of the released weights")
    parser.add_argument("name", help="network and tag, such as sparseformer_nano.tiny_imagenet")
    args = parser.parse_args()
    (sample if (args.source / "results.json").exists() else release)(args.source, args.name)


if __name__ == "__main__":
    main()
