"""What all strategies of several processes share: ranks, the process group, collectives, the launcher and the watch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulmen.fabric import distributed
from fulmen.fabric.environments import ClusterEnvironment, LightningEnvironment
from fulmen.fabric.launch import Launcher, ProcessLauncher, ScriptLauncher
from fulmen.fabric.launch.base import end_with_parent
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.watch import Watch
from fulmen.ranks import rank_zero_only

if TYPE_CHECKING:
    from fulmen.checkpoint.store import CheckpointIO
    from fulmen.fabric.accelerators import Accelerator
    from fulmen.fabric.precision import Precision
    from fulmen.fabric.watch.leaving import Leaving

__all__ = ["ParallelStrategy"]


class ParallelStrategy(Strategy, ABC):
    """Several processes, one for each device, that exchange tensors.

    Args:
        accelerator: Kind of the devices; None is filled in when the plan is made.
        parallel_devices: The devices of this machine; None is filled in when the plan is made.
        cluster_environment: Where ranks and addresses come from; None is filled in when the plan is made.
        checkpoint_io: Writes and reads checkpoints; None for files written by `torch.save`.
        precision_plugin: In which precision the module computes; None for 32 bit.
        process_group_backend: "gloo", "nccl", ...; None for the default of the devices.
        timeout: After which an exchange between processes fails.
        precision: The `precision_plugin`, under the name it has for `Fabric`.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: Sequence[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = distributed.DEFAULT_TIMEOUT,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(accelerator, checkpoint_io, precision_plugin, precision)
        self._parallel_devices = None if parallel_devices is None else list(parallel_devices)
        self._cluster_environment = cluster_environment
        self._process_group_backend, self._timeout = process_group_backend, timeout
        self._num_nodes = 1
        self._launcher: Launcher | None = None
        self._local_rank: int | None = None
        self.watch: Watch | None = None

    # Processes

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        """The devices of this machine."""
        return self._parallel_devices

    @parallel_devices.setter
    def parallel_devices(self, devices: Sequence[torch.device] | None) -> None:
        self._parallel_devices = None if devices is None else list(devices)

    @property
    def cluster_environment(self) -> ClusterEnvironment | None:
        """Where ranks and addresses come from; None before the plan is made."""
        return self._cluster_environment

    @cluster_environment.setter
    def cluster_environment(self, environment: ClusterEnvironment | None) -> None:
        self._cluster_environment = environment

    @property
    def environment(self) -> ClusterEnvironment:
        """Where ranks and addresses come from: this machine, where nothing else was said."""
        if self._cluster_environment is None:
            self._cluster_environment = LightningEnvironment()
        return self._cluster_environment

    @property
    def num_processes(self) -> int:
        """Processes of this machine."""
        return len(self._parallel_devices or ())

    @property
    def num_nodes(self) -> int:
        """Number of machines."""
        return self._num_nodes

    @num_nodes.setter
    def num_nodes(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes

    @property
    def local_rank(self) -> int:  # type: ignore[override]
        """Rank of this process on its machine."""
        return self.environment.local_rank() if self._local_rank is None else self._local_rank

    @property
    def node_rank(self) -> int:  # type: ignore[override]
        """Rank of this machine."""
        return self.environment.node_rank()

    @property
    def global_rank(self) -> int:  # type: ignore[override]
        """Rank of this process among all."""
        return self.environment.global_rank()

    @property
    def world_size(self) -> int:  # type: ignore[override]
        """Number of processes on all machines."""
        return self.num_processes * self.num_nodes

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.global_rank == 0

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""
        if not self._parallel_devices:
            raise RuntimeError(
                f"The devices of {type(self).__name__} are not known yet: give it to a Trainer or a Fabric, or"
                " `parallel_devices=[...]`."
            )
        return self._parallel_devices[self.local_rank]

    @property
    def process_group_backend(self) -> str | None:
        """What carries the exchanges."""
        return self._process_group_backend

    @property
    def launcher(self) -> Launcher | None:
        """Starts the processes."""
        if self._launcher is None:
            self._launcher = self._make_launcher()
        return self._launcher

    def _make_launcher(self) -> Launcher:
        return ScriptLauncher(self.environment, self.num_processes, self.num_nodes)

    def set_local_rank(self, local_rank: int) -> None:
        """A launcher tells which of its processes this is."""
        self._local_rank = local_rank
        self.set_world_ranks()

    def set_world_ranks(self) -> None:
        """Tell the environment, which may know better, the ranks that follow from devices and machines."""
        environment = self.environment
        environment.set_global_rank(self.node_rank * self.num_processes + self.local_rank)
        environment.set_world_size(self.world_size)
        rank_zero_only.rank = self.global_rank

    def setup_environment(self) -> None:
        """Make this process ready: its device, its rank, the process group and the watch."""
        super().setup_environment()
        self.set_world_ranks()
        if not distributed.is_initialised():
            self.setup_distributed()
        if self.watch is None and self.world_size > 1:
            self.watch = _watch_of(self)
        if self.watch is not None:
            self.watch.begin(self)

    def syncs_backward(self) -> bool:
        """Whether a backward pass exchanges gradients."""
        return True

    def setup_distributed(self) -> None:
        """Make the process group."""
        end_with_parent()
        environment = self.environment
        made = distributed.initialise(
            self._process_group_backend,
            self.global_rank,
            self.world_size,
            environment.main_address,
            environment.main_port,
            self.root_device,
            self._timeout,
        )
        if made:
            Finalize(None, distributed.destroy, exitpriority=5)  # in processes of multiprocessing, too

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int] | None:
        """How the data are divided: each process has its share."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    # Collectives

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean", name: str = "") -> Any:
        """The mean, sum or other reduction of a tensor over all processes; what is no tensor is given back."""
        return distributed.reduce(tensor, group, reduce_op, name)

    def barrier(self, name: str | None = None) -> None:
        """Wait until all processes are here."""
        distributed.barrier(name, self.root_device)

    def wait_long(self, name: str) -> None:
        """As `barrier`, with no limit in time."""
        distributed.wait_long(name)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """The object of the process of rank `src`."""
        return distributed.broadcast(obj, src, device=self.root_device)

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """The tensors of all processes, stacked along a new first dimension."""
        return distributed.all_gather(tensor, group, sync_grads)

    def any_batches(self, has_batches: bool) -> bool:
        """An evaluation is run on all processes if there are batches for any."""
        return self.reduce_boolean_decision(has_batches, all=False)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all (or any) of the processes decided for it."""
        return distributed.decide(decision, all, self.root_device)

    @property
    def saves_together(self) -> bool:
        """Whether parameters are spread over the processes."""
        return any(hasattr(parameter, "device_mesh") for parameter in self.lightning_module.parameters())

    @property
    def allows_inference_mode(self) -> bool:  # type: ignore[override]
        """Not over gloo, which writes into what it is given from another thread."""
        return distributed.current_backend() != "gloo"

    # The end

    @property
    def leaving(self) -> Leaving | None:
        """Through which all processes leave a run after the same batch."""
        return None if self.watch is None else self.watch.leaving

    def explain(self, error: BaseException) -> BaseException:
        """The exception, or the one of the process that failed first, with what is known about the others."""
        return error if self.watch is None else self.watch.explain(error)

    def on_exception(self, exception: BaseException) -> None:
        """Nothing further: `explain` has told the others."""

    @abstractmethod
    def setup_module(self, module: Any, move_to_device: bool = True) -> Any:
        """Wrap a module."""


_WATCH: Watch | None = None


def _watch_of(strategy: ParallelStrategy) -> Watch:
    """The watch of this process, which lives as long as its process group."""
    global _WATCH
    if _WATCH is None or _WATCH.world_size != strategy.world_size:
        address = strategy.environment.main_address if strategy.num_nodes > 1 else ""
        _WATCH = Watch(strategy.global_rank, strategy.world_size, address)
        launcher = strategy.launcher
        _WATCH.is_reported_elsewhere = isinstance(launcher, ProcessLauncher)
        if isinstance(launcher, ScriptLauncher):
            launcher.on_end = _WATCH.child_ended
    return _WATCH
