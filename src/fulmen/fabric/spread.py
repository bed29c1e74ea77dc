"""Which strategy spreads a module over which devices of how many machines; a part of the plan."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from fulmen.fabric.environments import ClusterEnvironment
from fulmen.fabric.errors import PlanError
from fulmen.fabric.layer_sync import LayerSync, TorchSyncBatchNorm
from fulmen.fabric.precision import Precision
from fulmen.fabric.strategies import SingleDeviceStrategy, Strategy, StrategyRegistry
from fulmen.suggest import did_you_mean

if TYPE_CHECKING:
    from fulmen.fabric.accelerators import Accelerator
    from fulmen.fabric.strategies import ParallelStrategy

__all__ = ["check_strategy", "choose_layer_sync", "make_strategy", "nodes", "processes_here"]


def check_strategy(strategy: Any) -> None:
    """Refuse a strategy that nobody knows.

    Raises:
        PlanError: It is neither an object nor a registered name.
    """
    if isinstance(strategy, Strategy) or strategy == "auto":
        return
    name = strategy.lower() if isinstance(strategy, str) else None
    if name in StrategyRegistry:
        return
    names = StrategyRegistry.names()
    raise PlanError(
        f"strategy={strategy!r} is not known.{did_you_mean(name, names)} Give a `Strategy` object, or type one of:"
        f" {', '.join(['auto', *names])}",
        subject=strategy,
    )


def processes_here(environment: ClusterEnvironment, num_nodes: int) -> int | None:
    """How many processes of this run a cluster started on this machine; None where it started none."""
    size = environment.world_size()
    if not environment.creates_processes_externally or size == 1:
        return None
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(local) if local.isdigit() and int(local) <= size else max(1, size // num_nodes)


def nodes(num_nodes: Any, environment: ClusterEnvironment) -> int:
    """The number of machines: as given, or what the cluster says where the default of 1 was left.

    Raises:
        PlanError: It is no number.
    """
    if type(num_nodes) is not int or num_nodes < 1:
        raise PlanError(f"`num_nodes` has to be an int >= 1, got {num_nodes!r}.", subject=num_nodes)
    here = processes_here(environment, num_nodes)
    if num_nodes == 1 and here is not None:
        return environment.world_size() // here
    return num_nodes


def make_strategy(
    strategy: Any,
    devices: tuple[torch.device, ...],
    num_nodes: int,
    environment: ClusterEnvironment,
    interactive: bool,
) -> Strategy:
    """The strategy, told its devices and ranks.

    Args:
        strategy: "auto", a registered name, or an object.
        devices: Those of this machine.
        num_nodes: Number of machines.
        environment: Where ranks and addresses come from.
        interactive: Whether this is a notebook or an interactive interpreter.

    Raises:
        PlanError: The strategy does not fit the devices, their number, or an interactive session.
    """
    count = len(devices) * num_nodes
    if isinstance(strategy, Strategy):
        made = strategy
    else:
        if strategy == "auto":
            several = "ddp_fork" if interactive else "ddp"
            strategy = SingleDeviceStrategy.strategy_name if count == 1 else several
        made = _by_name(strategy.lower(), devices[0])
    _check_number(made, strategy, count, environment)
    if hasattr(made, "parallel_devices"):
        _tell(made, devices, num_nodes, environment, interactive)  # type: ignore[arg-type]
    return made


def complete(
    made: Strategy,
    accelerator: Accelerator,
    device: torch.device,
    precision: Precision,
    checkpoint_io: Any,
    layer_sync: LayerSync | None,
) -> None:
    """Give a strategy its other parts.

    Raises:
        PlanError: It runs on another kind of device.
    """
    if made.root_device.type != device.type:
        raise PlanError(
            f"The strategy {type(made).__name__} runs on {made.root_device}, and the accelerator is "
            f"{accelerator.name()!r}. Give the strategy a device of that kind, or leave the accelerator out.",
            subject=made,
        )
    made.accelerator = accelerator
    made.precision_plugin = precision
    made.layer_sync = layer_sync
    if checkpoint_io is not None:
        made.checkpoint_io = checkpoint_io


def _by_name(name: str, device: torch.device) -> Strategy:
    entry = StrategyRegistry.entry(name)
    place = {"device": device} if issubclass(entry.target, SingleDeviceStrategy) else {}
    return entry.target(**place | entry.init_params)


def _check_number(made: Strategy, given: Any, count: int, environment: ClusterEnvironment) -> None:
    """Refuse several processes under a strategy of one, in which each would train for itself."""
    if not isinstance(made, SingleDeviceStrategy):
        return
    size = max(count, environment.world_size())
    if size > 1:
        raise PlanError(
            f"strategy={given!r} is for one process, and this is one of {size}. Type: strategy='ddp', or start the"
            " script once, with devices=1",
            subject=made,
        )


def _tell(
    made: ParallelStrategy,
    devices: tuple[torch.device, ...],
    num_nodes: int,
    environment: ClusterEnvironment,
    interactive: bool,
) -> None:
    """Gives a strategy of several processes its devices and ranks."""
    if devices[0].type == "mps":
        raise PlanError(
            f"{type(made).__name__} does not work on an Apple GPU, of which there is one. Type: strategy='auto'",
            subject=made,
        )
    if made.parallel_devices is None:
        made.parallel_devices = devices
    if made.cluster_environment is None:
        made.cluster_environment = environment
    made.num_nodes = num_nodes
    if environment.creates_processes_externally:
        environment.validate_settings(num_devices=len(devices), num_nodes=num_nodes)
    elif interactive and made.launcher is not None and not made.launcher.is_interactive_compatible:
        raise PlanError(
            f"{type(made).__name__} starts its processes by running the script again, and in an interactive session"
            " there is none. Type: strategy='ddp_notebook'",
            subject=made,
        )
    made.set_world_ranks()


def choose_layer_sync(sync_batchnorm: bool, plugin: LayerSync | None) -> LayerSync | None:
    """What shares statistics between processes.

    Raises:
        PlanError: It was given twice.
    """
    if sync_batchnorm and plugin is not None:
        raise PlanError(f"Received both sync_batchnorm=True and plugins={plugin}. Choose one.", subject=plugin)
    return TorchSyncBatchNorm() if sync_batchnorm else plugin
