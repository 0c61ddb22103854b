"""Scores of files by the workers of a Ray cluster, each of which holds the network."""

import logging
import os
import pickle
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import cast

import numpy as np
import torch

from sparsevideo import build
from sparsevideo.commands.evaluation import Network, load_network
from sparsevideo.config import Config
from sparsevideo.data.inputs import Inputs, make_inputs
from sparsevideo.engine.evaluate import ViewBatch
from sparsevideo.utils.files import sha256

_FILES_PER_TASK = 64  # at most; after a worker has died, the files of its task are scored again
_FILES_PER_WORKER = 4  # fewer files are scored before another worker has started
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
        ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConnectionError(
            f"--ray {address}: no connection ({reason}); run this on a node of the cluster"
        ) from error
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

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        has_gpus = any(node.get("GPU") for node in nodes)
        if num_decoders is None:
            cpus_per_gpu = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU")]
            num_decoders = min(network.config.data.num_workers, max(cpus_per_gpu)) if has_gpus else 1
        num_decoders = max(1, num_decoders)  # with none, a file that crashes the decoder would end worker after worker
        room = sum(
            int(min(node.get("CPU", 0) // num_decoders, node.get("GPU", 0) if has_gpus else inf)) for node in nodes
        )
        if not 1 <= (num_workers or room) <= room:
            raise ValueError(
                f"the nodes of the cluster have room for {room} workers (for each: CPUs {num_decoders}, GPUs"
                f" {int(has_gpus)}); lower --ray-workers or --num-workers, or add nodes"
            )
        self.files, self.num_workers = files, num_workers or min(room, -(-len(files) // _FILES_PER_WORKER))
        self.num_cpus, self.num_gpus = num_decoders, 1 if has_gpus else 0
        config = replace(network.config, data=replace(network.config.data, num_workers=num_decoders))
        self.arguments = network.path.absolute(), sha256(network.path), config, Path.cwd()

    def __call__(self, todo: Sequence[int]) -> Iterator[ViewBatch]:
        """Yield the batches of the files with these indices, with their scores, in any order."""
        import ray

        if not todo:
            return
        num_tasks = max(-(-len(todo) // _FILES_PER_TASK), min(self.num_workers, len(todo)))
        tasks = [{"task": pickle.dumps(self._task(todo[number::num_tasks]))} for number in range(num_tasks)]
        scored = ray.data.from_items(tasks, override_num_blocks=num_tasks).map_batches(
            _Worker,
            batch_size=1,
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

    def _task(self, indices: Sequence[int]) -> tuple[Sequence[int], Inputs]:
        files = self.files
        paths = [files.urls.get(index, files.name(index)) for index in indices]
        spans = None if files.spans is None else files.spans[indices]
        return indices, make_inputs(paths, files.kind, files.classes, spans=spans, in_frames=files.in_frames)


class _Worker:
    """In a process of the cluster: the network, for one task after the other."""

    def __init__(self, path: Path, digest: str, config: Config, folder: Path) -> None:
        if folder.is_dir():  # relative paths are those of the command
            os.chdir(folder)
        # Ray's processes may be those of a job whose tasks are not the processes of a run of ours.
        for name in [name for name in os.environ if name.startswith("SLURM_") or name == "LOCAL_WORLD_SIZE"]:
            del os.environ[name]
        self.error: str | None = None  # Ray would show it among pages of its own
        try:
            if sha256(path) != digest:
                raise ValueError(f"{path}: on this node, it is not the checkpoint of the command; copy it to this node")
            self.network = load_network(path, config)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            return
        self.network.fabric.setup_module(self.network.model.eval())
        self.predict = build.build_predictor(self.network.config, self.network.model, self.network.fabric)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        """Score the files of one task; return pickled batches, or an error."""
        (task,) = rows["task"]
        indices, files = pickle.loads(task)
        batches: list[ViewBatch | str] = []
        try:
            if self.error is not None:
                raise ChildProcessError(self.error)
            for batch in self._score(files, range(len(files))):
                batch["video_index"] = torch.tensor(indices)[batch["video_index"]]
                batch["failures"] = [(indices[index], name, reason) for index, name, reason in batch["failures"]]
                batches.append(batch)
        except Exception as error:
            batches = [self.error or f"{type(error).__name__}: {error}"]
        return {"batch": [*map(pickle.dumps, batches)]}

    @torch.no_grad()
    def _score(self, files: Inputs, indices: Sequence[int]) -> Iterator[ViewBatch]:
        left = list(indices)
        loader = build.build_test_loader(self.network.config, files, self.network.model.ndim, left, use_index=False)
        try:
            for batch in loader:
                done = {*batch["video_index"].tolist(), *(index for index, _, _ in batch["failures"])}
                left = [index for index in left if index not in done]
                if len(batch["video_index"]):
                    batch["scores"] = self.predict(batch).float().cpu()
                yield cast(ViewBatch, {key: value for key, value in batch.items() if key not in ("image", "video")})
        except (ChildProcessError, TimeoutError) as error:
            bad = next((index for index in left if str(error).startswith(f"{files.printed_path(index)}: ")), None)
            if bad is None or "remove it" not in str(error):  # not the fault of a file, but of this node
                raise
            failure = (bad, files.name(bad), str(error))
            yield {"video_index": torch.empty(0, dtype=torch.int64), "failures": [failure]}
            if rest := [index for index in left if index != bad]:
                yield from self._score(files, rest)
