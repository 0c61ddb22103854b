"""Quality of features without training the network: k nearest neighbors and a linear probe.

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
REGULARIZATIONS = tuple(10.0**power for power in range(-4, 3))  # C: the smaller, the stronger
_ITERATIONS = 1000


@dataclass(frozen=True)
class Probe:
    """Predictions of a classifier on features, and how it was fitted.

    Attributes:
        predictions: Probabilities of every test file; zeros if a file failed.
        protocol: Settings of the classifier, as plain values.
    """

    predictions: Predictions
    protocol: dict[str, Any]

    @property
    def results(self) -> dict[str, Any]:
        """The scores of `metrics.summarize`, then the protocol."""
        failed = np.flatnonzero(self.predictions.failed).tolist()
        return {**summarize(self.predictions.scores, self.predictions.labels, failed), **self.protocol}


def knn(train: Features, test: Features, k: int = 20) -> Probe:
    """Classify by a vote of the k training files with the highest cosine similarity.

    A vote has the weight exp(cosine similarity / 0.07). Classes without votes have score 0, and among them the lower
    index comes first. Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"
    (arXiv 1805.01978), section 3.4; with k = 20, Caron et al., "Emerging Properties in Self-Supervised Vision
    Transformers" (DINO, arXiv 2104.14294).

    Args:
        train: Features of the files that vote; those that failed do not.
        test: Features of the files to classify.
        k: Number of neighbors, >= 1; limited to the number of training files.

    Raises:
        ValueError: k is too small, or the features do not belong together; see `check_pair`.

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
        raise ValueError(f"k must be >= 1, got {k}")
    readable = int((~train.failed).sum())
    if k > readable:
        logger.info("k-NN: k is %d, but only %d training files have features: all of them vote", k, readable)
        k = readable
    classifier = KNeighborsClassifier(k, weights=_vote_weights, algorithm="brute", metric="cosine")
    classifier.fit(train.features[~train.failed], train.labels[~train.failed])
    return Probe(_classify(classifier, test), {"k": k, "temperature": TEMPERATURE, "distance": "cosine"})


def linear(train: Features, test: Features) -> Probe:
    """Fit a logistic regression to the features, which are standardized over the training files.

    A fifth of the training files of each class is held out to choose the regularization C (the smaller, the stronger):
    the one with the best top-1, and among equals the one with the lowest loss. If no class has two files, C is 1. The
    final fit uses all training files. The result depends neither on the test files nor on chance.

    Raises:
        ValueError: The features do not belong together; see `check_pair`.
    """
    check_pair(train, test)
    x, y = train.features[~train.failed], train.labels[~train.failed]
    held_out = _held_out(y)
    tried = []
    for c in REGULARIZATIONS if held_out.any() else ():
        classifier = _fit(x[~held_out], y[~held_out], c)
        loss = log_loss(y[held_out], classifier.predict_proba(x[held_out]), labels=classifier.classes_)
        top1 = 100 * float(classifier.score(x[held_out], y[held_out]))
        tried.append({"C": c, "top1": top1, "loss": float(loss)})
        logger.info("linear probe: C %g: top1 %.2f, loss %.4f on held out training files", *tried[-1].values())
    # Well separated classes give many equal top-1 values, also for fits that hardly differ from the class frequencies.
    chosen = max(tried, key=lambda one: (one["top1"], -one["loss"]), default={"C": 1.0})["C"]
    classifier = _fit(x, y, chosen)
    converged = bool(classifier[-1].n_iter_.max() < _ITERATIONS)
    if not converged:
        logger.warning("linear probe: not converged after %d iterations", _ITERATIONS)
    protocol = {"C": chosen, "held_out": int(held_out.sum()), "tried": tried, "converged": converged}
    return Probe(_classify(classifier, test), protocol)


def probe_files(train_path: Path, test_path: Path, out: Path | None = None, *, k: int = 20) -> dict[str, Any]:
    """Run both classifiers on files of features; write their predictions and `probe.json`, and return its content.

    Args:
        train_path: Features to fit on.
        test_path: Features to classify.
        out: Folder for the results; None takes the folder `NAME-probe` beside `test_path`.
        k: Number of neighbors.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: As `knn`, or a file does not hold features.
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
    """Check that a classifier fitted on the training features can be scored on the test features.

    Raises:
        ValueError: Files have no labels; classes, widths or checkpoints differ; there are no files or only one class to
            fit on; there are no files to classify; or a file is in both lists, unless its segments do not overlap. The
            message names the first such file.
    """
    for index, (ours, theirs) in enumerate(zip(train.classes, test.classes, strict=False)):
        if ours != theirs:
            raise ValueError(f"class {index} is {ours!r} in the training features, {theirs!r} in the test features")
    for split, features in (("training", train), ("test", test)):
        if unlabeled := int((features.labels < 0).sum()):
            raise ValueError(f"{unlabeled} {split} files have no label; extract features from a list with labels")
    for name, train_size, test_size in (
        ("classes", len(train.classes), len(test.classes)),
        ("dimensions", train.features.shape[1], test.features.shape[1]),
    ):
        if train_size != test_size:
            raise ValueError(f"the training features have {train_size} {name}, the test features {test_size}")
    if train.checkpoint != test.checkpoint:
        raise ValueError(
            f"the training features are from checkpoint {train.checkpoint[:8] or 'unknown'}, the test features from"
            f" {test.checkpoint[:8] or 'unknown'}; extract both with the same checkpoint"
        )
    _check_leaks(train, test)
    if test.failed.all():
        raise ValueError("no test file has features")
    fitted = np.unique(train.labels[~train.failed])
    if len(fitted) < 2:
        raise ValueError(f"training files of at least 2 classes must have features, got {len(fitted)}")
    absent = sorted(set(test.labels.tolist()) - set(fitted.tolist()))
    if absent:
        logger.warning(
            "%d classes of the test files have no training file: always wrong; the first is %s",
            len(absent), test.classes[absent[0]],
        )  # fmt: skip


def _check_leaks(train: Features, test: Features) -> None:
    """Refuse test files or segments that overlap training files or segments."""
    trained: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row, path in enumerate(_paths(train)):
        trained[path].append(span_of(train.spans, row))
    leaks = []
    for row, path in enumerate(_paths(test)):
        span, others = span_of(test.spans, row), trained.get(path, ())
        if train.spans_unit != test.spans_unit and span != WHOLE:
            for other in others:
                if other != WHOLE:
                    raise ValueError(
                        f"the training features have {segment_name(path, other, train.spans_unit)}, the test features"
                        f" {segment_name(path, span, test.spans_unit)}, which may overlap; list both in the same unit"
                    )
        if any(_overlap(span, other) for other in others):
            leaks.append(segment_name(path, span, test.spans_unit))
    if leaks:
        raise ValueError(f"{len(leaks)} test files are also training files; the first is {leaks[0]}")


def _paths(features: Features) -> list[str]:
    """Return the full paths of files, equal for equal files however root and name are split."""
    return [os.path.normpath(os.path.join(features.root, name)) for name in features.names]  # noqa: PTH118


def _overlap(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Return whether two segments overlap; the end of a segment is not part of it."""
    return first == second or (first[0] < second[1] and second[0] < first[1])


def _vote_weights(distances: np.ndarray) -> np.ndarray:
    return np.exp((1 - distances) / TEMPERATURE)


def _classify(classifier: Any, test: Features) -> Predictions:
    scores = np.zeros((len(test.names), len(test.classes)), dtype=np.float32)
    scores[np.ix_(~test.failed, classifier.classes_)] = classifier.predict_proba(test.features[~test.failed])
    shared = ("names", "labels", "failed", "classes", "root", "spans", "spans_unit")
    return Predictions(scores=scores, **{name: getattr(test, name) for name in shared})


def _fit(x: np.ndarray, y: np.ndarray, c: float) -> Pipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the caller checks the number of iterations
        return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=_ITERATIONS)).fit(x, y)


def _held_out(labels: np.ndarray) -> np.ndarray:
    """Choose a fifth of the files of each class, at least one if the class has two: (n,) bool."""
    order = np.random.default_rng(0).permutation(len(labels))  # lists are often sorted, for example by scene
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        held_out[rows[: max(1, len(rows) // 5)]] = len(rows) > 1
    return held_out
