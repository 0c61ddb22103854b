"""The processes of a run, which torchrun or Slurm has started, and the signals that end it."""

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

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGUSR1", "SIGTERM") if hasattr(signal, name)]


class Interrupted(Exception):  # nothing went wrong
    """The run was asked to end, has saved itself, and can go on."""


def launch(precision: str, strategy: str = "auto") -> Fabric:
    """This process' devices: all that torchrun or `srun` started, or one.

    Args:
        precision: As Fabric calls it.
        strategy: "auto" is "ddp" where there are several processes; "fsdp" shards weights and optimizer over them.
    """
    nodes, local = _nodes_and_processes_on_each()
    by_srun = nodes * local > 1 and "LOCAL_WORLD_SIZE" not in os.environ
    chosen: str | Strategy = strategy if strategy != "auto" else "ddp" if nodes * local > 1 else "auto"
    if strategy == "fsdp":  # FSDPStrategy knows no CPUs
        chosen = ModelParallelStrategy(_shard, data_parallel_size=nodes * local, tensor_parallel_size=1)
    fabric = Fabric(
        devices=local,
        num_nodes=nodes,
        strategy=chosen,
        precision=precision,  # type: ignore[arg-type]  # a string that config.py has checked
        # Of itself Fabric takes the tasks of a job called "bash" or "interactive", salloc's, for single processes.
        plugins=[SLURMEnvironment()] if by_srun else None,
    )
    fabric.launch()
    return fabric


def _nodes_and_processes_on_each() -> tuple[int, int]:
    told = os.environ
    if "LOCAL_WORLD_SIZE" in told:  # torchrun, in or outside of Slurm
        local = int(told["LOCAL_WORLD_SIZE"])
        return int(told["WORLD_SIZE"]) // local, local
    if "SLURM_STEP_NUM_TASKS" in told:  # within srun
        nodes, tasks = int(told.get("SLURM_STEP_NUM_NODES", 1)), int(told["SLURM_STEP_NUM_TASKS"])
        if "," in (on_each := told.get("SLURM_STEP_TASKS_PER_NODE", "")):  # such as 3,1; else 2(x2)
            raise ValueError(f"srun has started {on_each} tasks on {nodes} nodes; see to it that each has as many")
        # Fabric goes by what the job was asked for, of which this step may be a part.
        told["SLURM_NTASKS_PER_NODE"] = str(tasks // nodes)
        if "SLURM_STEP_NODELIST" in told:
            told["SLURM_NODELIST"] = told["SLURM_STEP_NODELIST"]
        return nodes, tasks // nodes
    return 1, 1


def _shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard every block of the cortex by itself, and the rest as one."""
    over = mesh["data_parallel"]
    for block in model.get_submodule("cortex").children():
        fully_shard(block, mesh=over)
    fully_shard(model, mesh=over)
    return model


class StopSignal:
    """Notes that somebody wants the run to end: Slurm before its time is up (SIGUSR1, SIGTERM), or a person.

    Attributes:
        received: The signal's name, once there was one.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within this block the signals are noted, and end nothing."""
        before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
