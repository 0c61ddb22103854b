"""How good features are without training the network: k nearest neighbours and a linear probe.

Letters: n files, D width of the features, K classes.
"""

import json
import logging
import os
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sparsevideo.data.segments import WHOLE, segment_name, span_of
from sparsevideo.reports.features import Features, load_features
from sparsevideo.reports.metrics import summarize
from sparsevideo.reports.predictions import Predictions, save_predictions

logger = logging.getLogger(__name__)

TEMPERATURE = 0.07
REGULARISATIONS = tuple(10.0**power for power in range(-4, 3))  # C: the smaller, the stronger
_ITERATIONS = 1000


@dataclass(frozen=True)
class Probe:
    """What a classifier on features said of the test files, and how it came to it.

    Attributes:
        predictions: Of every test file; probabilities that add up to 1, zeros where a file failed.
        protocol: Plain values: what was chosen, and how.
    """

    predictions: Predictions
    protocol: dict[str, Any]

    @property
    def results(self) -> dict[str, Any]:
        """The scores of `metrics.summarize`, then the protocol."""
        told = self.predictions
        return {**summarize(told.scores, told.labels, np.flatnonzero(told.failed).tolist()), **self.protocol}


def knn(train: Features, test: Features, k: int = 20) -> Probe:
    """Let the k training files whose features point most nearly the same way vote for their classes.

    A vote weighs exp(cosine similarity / 0.07). Classes without a vote are tied at zero, and in a top-5 the lower index
    comes first. Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (arXiv
    1805.01978), section 3.4; with k = 20, Caron et al., "Emerging Properties in Self-Supervised Vision Transformers"
    (DINO, arXiv 2104.14294).

    Args:
        train: Features of files that vote; those that failed do not.
        test: Features of files to classify.
        k: How many vote, at least 1; no more than there are.

    Raises:
        ValueError: k is too small, or the two do not belong together; see `check_pair`.

    Example:
        >>> def features(names, rows):
        ...     n = len(names)
        ...     return Features(names, np.arange(n) % 2, np.array(rows), np.zeros(n, bool), ["left", "up"])
        >>> train = features(["1.mp4", "2.mp4"], [[-3.0, 0.1], [0.1, 5.0]])
        >>> knn(train, features(["3.mp4"], [[-1.0, 0.0]]), k=1).predictions.scores.tolist()
        [[1.0, 0.0]]
    """
    check_pair(train, test)
    if k < 1:
        raise ValueError(f"k is {k}; at least one neighbour votes")
    voters = int((~train.failed).sum())
    if k > voters:
        logger.info("k-NN: only %d training files have features: all of them vote, where k is %d", voters, k)
        k = voters
    classifier = KNeighborsClassifier(k, weights=_weights, algorithm="brute", metric="cosine")
    classifier.fit(train.features[~train.failed], train.labels[~train.failed])
    return Probe(_classify(classifier, test), {"k": k, "temperature": TEMPERATURE, "distance": "cosine"})


def linear(train: Features, test: Features) -> Probe:
    """Fit a logistic regression to the features, each standardised over the training files.

    The regularisation C (the smaller, the stronger) is the one with the best top-1, and among equals the least loss, on
    a fifth of each class that is held out of the training files; where no class has two files, it is 1. Then all
    training files are fitted. Test files play no part in it, nor does chance.

    Args:
        train: Features of files to learn from; those that failed are left out.
        test: Features of files to classify.

    Raises:
        ValueError: The two do not belong together; see `check_pair`.
    """
    check_pair(train, test)
    x, y = train.features[~train.failed], train.labels[~train.failed]
    held = _held_out(y)
    tried = []
    for c in REGULARISATIONS if held.any() else ():
        classifier = _fit(x[~held], y[~held], c)
        loss = log_loss(y[held], classifier.predict_proba(x[held]), labels=classifier.classes_)
        tried.append({"C": c, "top1": 100 * float(classifier.score(x[held], y[held])), "loss": float(loss)})
        logger.info("linear probe: C %g: top1 %.2f, loss %.4f on held out training files", *tried[-1].values())
    # Many are equal in top-1 where classes lie apart; among them are fits that hardly leave the classes' frequencies.
    chosen = max(tried, key=lambda one: (one["top1"], -one["loss"]), default={"C": 1.0})["C"]
    classifier = _fit(x, y, chosen)
    converged = bool(classifier[-1].n_iter_.max() < _ITERATIONS)
    if not converged:
        logger.warning("linear probe: not converged after %d iterations", _ITERATIONS)
    protocol = {"C": chosen, "held_out": int(held.sum()), "tried": tried, "converged": converged}
    return Probe(_classify(classifier, test), protocol)


def probe_files(train_path: Path, test_path: Path, out: Path | None = None, *, k: int = 20) -> dict[str, Any]:
    """Run both on files of features; leave `probe.json`, and predictions in `knn` and `linear`.

    Args:
        train_path: Features to learn from.
        test_path: Features to classify.
        out: Folder for the results; None takes one beside `test_path`, named after it.
        k: Neighbours that vote.

    Returns:
        What stands in `probe.json`.

    Raises:
        FileNotFoundError: There are no such files.
        ValueError: As `knn`, or a file that holds no features.
    """
    out = out or test_path.with_name(f"{test_path.stem}-probe")
    train, test = load_features(train_path), load_features(test_path)
    if train.failed.any():
        logger.info("%d of %d training files have no features: left out", train.failed.sum(), len(train.names))
    if test.failed.any():
        logger.info("%d of %d test files have no features: counted as wrong", test.failed.sum(), len(test.names))
    results: dict[str, Any] = {
        "train": str(train_path),
        "test": str(test_path),
        "checkpoint_sha256": test.checkpoint,
        "train_listed": len(train.names),
        "train_failed": int(train.failed.sum()),
        "listed": len(test.names),
        "scored": int((~test.failed).sum()),
        "dimensions": int(test.features.shape[1]),
        "classes": list(test.classes),
        "scikit_learn": sklearn.__version__,
    }
    for name, run in (("knn", lambda: knn(train, test, k)), ("linear", lambda: linear(train, test))):
        probe = run()
        (out / name).mkdir(parents=True, exist_ok=True)
        save_predictions(out / name, probe.predictions)
        results[name] = scores = probe.results
        logger.info(
            "%s: top1 %.2f  top5 %.2f  mean class %.2f  on %d of %d files",
            name, scores["top1"], scores["top5"], scores["mean_class_accuracy"], results["scored"], results["listed"],
        )  # fmt: skip
    (out / "probe.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    return results


def check_pair(train: Features, test: Features) -> None:
    """See that a score on these test files would mean something.

    Raises:
        ValueError: Files without labels, other classes, another width, another checkpoint, no files or a single class
            to learn, no files to classify, or a file that stands in both, if its segments overlap or have different
            units; the message names the first.
    """
    for index, (ours, theirs) in enumerate(zip(train.classes, test.classes, strict=False)):
        if ours != theirs:
            raise ValueError(f"class {index} is {ours!r} in the training features, {theirs!r} in the test features")
    for what, features in (("training", train), ("test", test)):
        if unlabeled := int((features.labels < 0).sum()):
            raise ValueError(f"{unlabeled} {what} files have no label; extract features from a list with labels")
    sizes = [
        ("classes", len(train.classes), len(test.classes)),
        ("dimensions", train.features.shape[1], test.features.shape[1]),
    ]
    for what, ours, theirs in sizes:
        if ours != theirs:
            raise ValueError(f"the training features have {ours} {what}, the test features {theirs}")
    if train.checkpoint != test.checkpoint:
        raise ValueError(
            f"the training features are of checkpoint {train.checkpoint[:8] or 'unknown'}, the test features of"
            f" {test.checkpoint[:8] or 'unknown'}; only features of one network can be compared"
        )
    trained: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row, path in enumerate(_paths(train)):
        trained[path].append(span_of(train.spans, row))
    both = []
    for row, path in enumerate(_paths(test)):
        span, others = span_of(test.spans, row), trained.get(path, ())
        part = None
        if train.spans_unit != test.spans_unit and span != WHOLE:
            part = next((other for other in others if other != WHOLE), None)
        if part is not None:
            raise ValueError(
                f"the training features have {segment_name(path, part, train.spans_unit)}, the test features"
                f" {segment_name(path, span, test.spans_unit)}; whether they overlap is unknown, list both in one unit"
            )
        if any(_overlap(span, other) for other in others):
            both.append(segment_name(path, span, test.spans_unit))
    if both:
        raise ValueError(f"{len(both)} test files are training files, too; the first is {both[0]}")
    if test.failed.all():
        raise ValueError("no test file has features")
    learnt = np.unique(train.labels[~train.failed])
    if len(learnt) < 2:
        raise ValueError(f"training files of {len(learnt)} classes have features; two are needed")
    absent = sorted(set(test.labels.tolist()) - set(learnt.tolist()))
    if absent:
        logger.warning(
            "%d classes of the test files have no training file: always wrong; the first is %s",
            len(absent), test.classes[absent[0]],
        )  # fmt: skip


def _paths(features: Features) -> list[str]:
    """Where the files lie, however root and name share the path between them."""
    return [os.path.normpath(os.path.join(features.root, name)) for name in features.names]  # noqa: PTH118


def _overlap(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Two segments share a moment; the end of a segment is not part of it."""
    return first == second or (first[0] < second[1] and second[0] < first[1])


def _weights(distances: np.ndarray) -> np.ndarray:
    return np.exp((1 - distances) / TEMPERATURE)


def _classify(classifier: Any, test: Features) -> Predictions:
    scores = np.zeros((len(test.names), len(test.classes)), dtype=np.float32)
    scores[np.ix_(~test.failed, classifier.classes_)] = classifier.predict_proba(test.features[~test.failed])
    return Predictions(
        test.names,
        test.labels,
        scores,
        test.failed,
        test.classes,
        root=test.root,
        spans=test.spans,
        spans_unit=test.spans_unit,
    )


def _fit(x: np.ndarray, y: np.ndarray, c: float) -> Pipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the caller looks at the iterations
        return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=_ITERATIONS)).fit(x, y)


def _held_out(labels: np.ndarray) -> np.ndarray:
    """Choose a fifth of each class, at least one file where there are two: (n,) bool."""
    order = np.random.default_rng(0).permutation(len(labels))  # lists are often sorted, by scene say
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        held[rows[: max(1, len(rows) // 5)]] = len(rows) > 1
    return held
