"""Make the released weights of a network, and the sample of predictions that reproduces the score in their card.

    python tools/release_weights.py CHECKPOINT sparseformer_nano.tiny_imagenet
    sparsevideo test sparsevideo/weights/sparseformer_nano.tiny_imagenet.safetensors --data.root DATA --out TEST
    python tools/release_weights.py TEST sparseformer_nano.tiny_imagenet

The card, `sparsevideo/weights/NAME.md`, must exist; the first command writes the SHA-256 of the weights into it.
"""

import argparse
import hashlib
import json
import re
from pathlib import Path

import numpy as np

from sparsevideo.models.create import WEIGHTS
from sparsevideo.models.weights import load_model, save_weights
from sparsevideo.reports.predictions import load_predictions

SAMPLES = Path(__file__).parents[1] / "tests" / "models" / "released"


def release(checkpoint: Path, name: str) -> None:
    """Write the weights in half precision, without names of folders, and their SHA-256."""
    card, file = WEIGHTS / f"{name}.md", WEIGHTS / f"{name}.safetensors"
    text = card.read_text(encoding="utf-8")
    model, content = load_model(checkpoint)
    config = content["config"]
    config["data"]["root"] = "."
    if not str(config["model"]["weights"]).startswith("pretrained:"):
        config["model"]["weights"] = None
    save_weights(file, model.half(), classes=content["classes"], config=config)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    card.write_text(re.sub(r"^sha256: .*$", f"sha256: {digest}", text, flags=re.MULTILINE), encoding="utf-8")
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB, SHA-256 {digest}")


def sample(test: Path, name: str) -> None:
    """Write the predicted and the true class of each file of a test, and the SHA-256 of the weights."""
    predictions = load_predictions(test)
    results = json.loads((test / "results.json").read_text(encoding="utf-8"))
    SAMPLES.mkdir(exist_ok=True)
    np.savez_compressed(
        SAMPLES / f"{name}.npz",
        predicted=predictions.scores.argmax(1).astype(np.uint8),
        labels=predictions.labels.astype(np.uint8),
        sha256=results["checkpoint_sha256"],
    )
    print(f"top-1 {results['top1']:.2f} %")


def main() -> None:
    """Release a checkpoint, or sample the folder of a test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="checkpoint, or folder of a test of the released weights")
    parser.add_argument("name", help="network and tag, such as sparseformer_nano.tiny_imagenet")
    args = parser.parse_args()
    (sample if (args.source / "results.json").exists() else release)(args.source, args.name)


if __name__ == "__main__":
    main()
