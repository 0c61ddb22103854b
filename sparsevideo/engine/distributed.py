"""Processes of a run that torchrun or Slurm has started, and the signals that stop it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import SLURMEnvironment
from lightning_fabric.strategies import ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from sparsevideo.config import Precision, StrategyName

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGUSR1", "SIGTERM") if hasattr(signal, name)]


class Interrupted(Exception):  # not an error, so its name does not end in Error
    """A signal has stopped the run. It is saved and can be resumed."""


def launch(precision: Precision, strategy: StrategyName = "auto") -> Fabric:
    """Connect this process with all that torchrun or `srun` started."""
    nodes, local = _count_nodes_and_local_processes()
    by_srun = nodes * local > 1 and "LOCAL_WORLD_SIZE" not in os.environ
    chosen: str | Strategy = "ddp" if strategy == "auto" and nodes * local > 1 else strategy
    if strategy == "fsdp":  # FSDPStrategy does not support CPUs
        chosen = ModelParallelStrategy(_shard, data_parallel_size=nodes * local, tensor_parallel_size=1)
    fabric = Fabric(
        devices=local,
        num_nodes=nodes,
        strategy=chosen,
        precision=precision,
        # By default Fabric ignores Slurm in jobs named "bash" or "interactive", as salloc names them.
        plugins=[SLURMEnvironment()] if by_srun else None,
    )
    fabric.launch()
    return fabric


def _count_nodes_and_local_processes() -> tuple[int, int]:
    variables = os.environ
    if "LOCAL_WORLD_SIZE" in variables:  # torchrun, in or outside of Slurm
        local = int(variables["LOCAL_WORLD_SIZE"])
        return int(variables["WORLD_SIZE"]) // local, local
    if "SLURM_STEP_NUM_TASKS" not in variables:  # not started by srun
        return 1, 1
    nodes, tasks = int(variables.get("SLURM_STEP_NUM_NODES", 1)), int(variables["SLURM_STEP_NUM_TASKS"])
    if "," in (tasks_per_node := variables.get("SLURM_STEP_TASKS_PER_NODE", "")):  # 3,1; equal numbers are 2(x2)
        raise ValueError(f"srun has started {tasks_per_node} tasks on {nodes} nodes; start as many on each node")
    # Fabric reads the variables of the job, of which this step may use only a part.
    variables["SLURM_NTASKS_PER_NODE"] = str(tasks // nodes)
    if "SLURM_STEP_NODELIST" in variables:
        variables["SLURM_NODELIST"] = variables["SLURM_STEP_NODELIST"]
    return nodes, tasks // nodes


def _shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard each block of the cortex by itself, and the rest as one unit."""
    data_mesh = mesh["data_parallel"]
    for block in model.get_submodule("cortex").children():
        fully_shard(block, mesh=data_mesh)
    fully_shard(model, mesh=data_mesh)
    return model


class StopSignal:
    """Record of a signal to stop the run: from Slurm before the time limit (SIGUSR1, SIGTERM), or from a person.

    Attributes:
        received: Name of the signal; None before there is one.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the signals in this block instead of ending the process."""
        handlers = {stop_signal: signal.signal(stop_signal, self._record) for stop_signal in STOP_SIGNALS}
        try:
            yield
        finally:
            for stop_signal, handler in handlers.items():
                signal.signal(stop_signal, handler)

    def _record(self, signum: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(signum).name
