"""Scores of files by the workers of a Ray cluster, each of which holds the network."""

import logging
import os
import pickle
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from sparsevideo import build
from sparsevideo.commands.evaluation import Network, load_network
from sparsevideo.config import Config
from sparsevideo.data.inputs import Inputs, make_inputs
from sparsevideo.data.segments import span_of
from sparsevideo.engine.evaluate import ViewBatch
from sparsevideo.utils.files import sha256

if TYPE_CHECKING:
    import numpy.typing as npt

_FILES_PER_TASK = 64  # what is scored again after a worker has died
_CONNECT_S = 5.0


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect this process with a Ray cluster within the block.

    Args:
        address: "HOST:PORT"; "auto" for the cluster of this machine; "local" starts one that ends with the block.

    Raises:
        ConnectionError: No cluster answers.
        ImportError: The extra `[cluster]` is not installed.
        ValueError: The address is malformed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that starts here reports nothing to its makers
    # Errors are raised here, and a worker that died is replaced, so that Ray's own log need not be shown.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(f"{error}; --ray needs the extra [cluster]: pip install '.[cluster]'") from error
    if address not in ("auto", "local"):
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdecimal():
            raise ValueError(f"--ray is {address!r}; it must be HOST:PORT, auto or local")
        try:  # ray.init tries for minutes
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(
                f"--ray {address}: no answer ({error}); `ray start --head` prints the address of a cluster"
            ) from error
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"--ray {address}: no connection ({reason}); run `ray start --head`") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    with redirect_stdout(sys.stderr):  # Ray prints the deaths of workers to the standard output
        try:
            yield
        finally:
            ray.shutdown()


class ClusterScorer:
    """Scores of files, computed by workers on the cluster of `connected`; the input of `evaluate`.

    A worker takes one GPU, if the cluster has any, and as many CPUs as it has processes that decode. A worker that dies
    is replaced, and its files are scored again. All nodes must find the files and the checkpoint at their paths.

    Args:
        network: The network; each worker reads its checkpoint.
        files: The files.
        num_workers: Workers; None takes as many as the cluster has room for, but fewer for a few files.
        num_decoders: Processes of a worker that decode; None takes `data.num_workers` if there are as many CPUs for
            each GPU, and one without GPUs.

    Raises:
        ValueError: The cluster has no room for so many workers.
    """

    def __init__(self, network: Network, files: Inputs, num_workers: int | None, num_decoders: int | None) -> None:
        import ray

        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        if num_decoders is None:
            num_decoders = min(network.config.data.num_workers, cpus // gpus) if gpus else 1
        num_decoders = max(1, num_decoders)  # never in the worker: a decoder that crashes would end it again and again
        room = min(cpus // num_decoders, gpus or cpus)
        if not 1 <= (num_workers or room) <= room:
            raise ValueError(
                f"the cluster has {cpus} CPUs and {gpus} GPUs, which is room for {room} workers with {num_decoders}"
                " decoding processes each; lower --ray-workers or --num-workers"
            )
        self.files, self.num_workers = files, num_workers or min(room, -(-len(files) // _FILES_PER_TASK))
        self.num_cpus, self.num_gpus = num_decoders, 1 if gpus else 0
        config = replace(network.config, data=replace(network.config.data, num_workers=num_decoders))
        source = network.path.absolute(), sha256(network.path)
        self.arguments = (*source, config, files.classes, files.kind, files.in_frames)

    def __call__(self, todo: Sequence[int]) -> Iterator[ViewBatch]:
        """Yield the batches of the files with these indices, with their scores, in any order."""
        import ray

        files = self.files
        if not todo:
            return
        rows = [
            {
                "index": index,
                "path": os.fsencode(files.urls.get(index) or files.path(index).absolute()),
                "span": np.array(span_of(files.spans, index)),
            }
            for index in todo
        ]
        per_task = min(_FILES_PER_TASK, -(-len(todo) // self.num_workers))
        scored = ray.data.from_items(rows, override_num_blocks=-(-len(todo) // per_task)).map_batches(
            _Worker,
            batch_size=per_task,
            fn_constructor_args=self.arguments,
            compute=ray.data.ActorPoolStrategy(size=self.num_workers),
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
        )
        try:
            for block in scored.iter_batches(batch_size=None, batch_format="numpy"):
                for batch in map(pickle.loads, block["batch"]):
                    if isinstance(batch, str):
                        raise ChildProcessError(f"a worker of the cluster failed: {batch}")
                    yield batch
        except ray.exceptions.RayError as error:
            raise ChildProcessError(f"a worker of the cluster failed: {str(error).strip().splitlines()[-1]}") from error


class _Worker:
    """In a process of the cluster: the network, for one task after the other."""

    def __init__(
        self, path: Path, digest: str, config: Config, classes: Sequence[str], kind: str, in_frames: bool
    ) -> None:
        if sha256(path) != digest:
            raise ValueError(f"{path}: is another file on this node than where the command was started")
        self.network = load_network(path, config)
        self.network.fabric.setup_module(self.network.model.eval())
        self.predict = build.build_predictor(self.network.config, self.network.model, self.network.fabric)
        self.classes, self.kind, self.in_frames = classes, kind, in_frames

    def __call__(self, rows: "dict[str, npt.NDArray[Any]]") -> dict[str, list[bytes]]:
        """Score files; return pickled batches with the indices of the rows, or an error, which Ray would not show."""
        spans = None if (rows["span"] == span_of(None, 0)).all() else rows["span"]
        paths = map(os.fsdecode, rows["path"])
        files = make_inputs(paths, self.kind, self.classes, spans=spans, in_frames=self.in_frames)
        batches: list[ViewBatch | str] = []
        try:
            for batch in self._score(files, range(len(files))):
                batch["video_index"] = torch.from_numpy(rows["index"])[batch["video_index"]]
                batch["failures"] = [
                    (int(rows["index"][index]), name, reason) for index, name, reason in batch["failures"]
                ]
                batches.append(batch)
        except Exception as error:
            batches = [f"{type(error).__name__}: {error}"]
        return {"batch": [*map(pickle.dumps, batches)]}

    @torch.no_grad()
    def _score(self, files: Inputs, indices: Sequence[int]) -> Iterator[ViewBatch]:
        left = list(indices)
        loader = build.build_test_loader(self.network.config, files, self.network.model.ndim, left, use_index=False)
        try:
            for batch in loader:
                read = batch["video_index"].tolist()
                left = [index for index in left if index not in {*read, *(index for index, *_ in batch["failures"])}]
                if read:
                    batch["scores"] = self.predict(batch).float().cpu()
                yield cast(ViewBatch, {key: value for key, value in batch.items() if key not in ("image", "video")})
        except (ChildProcessError, TimeoutError) as error:  # a file ended its decoder, or took too long
            if len(indices) > 1:
                for index in left:
                    yield from self._score(files, [index])
                return
            failure = (indices[0], files.name(indices[0]), str(error))
            yield {"video_index": torch.empty(0, dtype=torch.int64), "failures": [failure]}
