"""From flags, environment and machine to what will run: one pure function, and one error if it cannot work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fulmen.extras import available
from fulmen.fabric import precision as precisions
from fulmen.fabric.accelerators import (
    Accelerator,
    AcceleratorRegistry,
    CUDAAccelerator,
    MPSAccelerator,
    parse_device_ids,
)
from fulmen.fabric.environments import ClusterEnvironment, find_environment
from fulmen.fabric.errors import PlanError, PluginTypeError, UnavailableError
from fulmen.fabric.layer_sync import LayerSync
from fulmen.fabric.precision import Precision
from fulmen.fabric.spread import check_strategy, choose_layer_sync, complete, make_strategy, nodes, processes_here
from fulmen.fabric.strategies import SingleDeviceStrategy, Strategy, StrategyRegistry
from fulmen.ranks import rank_zero_warn
from fulmen.suggest import did_you_mean

if TYPE_CHECKING:
    from fulmen.checkpoint.store import CheckpointIO

__all__ = ["Machine", "Plan", "resolve"]

PRECISIONS = (
    "16-mixed",
    "16-true",
    "32-true",
    "64-true",
    "bf16-mixed",
    "bf16-true",
    "fp8",
    "transformer-engine",
    "transformer-engine-float16",
)

_SHORT_PRECISIONS = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_DISCOURAGED_PRECISIONS = ("16", "bf16")


@dataclass(frozen=True)
class Machine:
    """What a machine has.

    Args:
        cuda_count: Number of visible CUDA devices.
        mps: Whether there is an Apple GPU.
        xla: Whether torch_xla is installed.
        cpus: Number of processors.
        interactive: Whether this is an interactive session, such as a notebook.
    """

    cuda_count: int = 0
    mps: bool = False
    xla: bool = False
    cpus: int = 1
    interactive: bool = False

    @classmethod
    def probe(cls) -> Machine:
        """This machine; does not initialise any device."""
        return cls(
            cuda_count=CUDAAccelerator.auto_device_count(),
            mps=MPSAccelerator.is_available(),
            xla=available("torch_xla"),
            cpus=os.cpu_count() or 1,
            interactive=hasattr(sys, "ps1") or bool(sys.flags.interactive),
        )


@dataclass(frozen=True)
class Plan:
    """What will run.

    Args:
        accelerator: Kind of the devices.
        devices: The devices of this node.
        num_nodes: Number of nodes.
        strategy: How the module is spread over them; holds the accelerator, the precision and the checkpoint IO.
        precision: In which precision the module computes.
        cluster_environment: Where ranks and addresses come from.
        layer_sync: Plugin that synchronises layers between processes; None without.
    """

    accelerator: Accelerator
    devices: tuple[torch.device, ...]
    num_nodes: int
    strategy: Strategy
    precision: Precision
    cluster_environment: ClusterEnvironment
    layer_sync: LayerSync | None = None

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """Writes and reads checkpoints."""
        return self.strategy.checkpoint_io

    def describe(self) -> str:
        """The plan in a few aligned lines."""
        rows = {
            "accelerator": self.accelerator.name(),
            "devices": ", ".join(map(str, self.devices)),
            "nodes": str(self.num_nodes),
            "strategy": self.strategy.strategy_name or type(self.strategy).__name__,
            "precision": self.precision.precision,
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def resolve(
    accelerator: str | Accelerator = "auto",
    strategy: str | Strategy = "auto",
    devices: Any = "auto",
    num_nodes: int = 1,
    precision: str | int | None = None,
    plugins: Any = None,
    sync_batchnorm: bool = False,
    environment: ClusterEnvironment | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Decide what will run.

    Args:
        accelerator: "auto", "cpu", "gpu", "cuda", "mps", "tpu", a registered name, or an `Accelerator`.
        strategy: "auto", a registered name in any case of letters, or a `Strategy`.
        devices: "auto", a number, -1 for all, or indices: `[0]`, "0,".
        num_nodes: Number of nodes.
        precision: One of `PRECISIONS` or 64, 32, 16, "bf16"; None for "32-true" or what the plugins hold.
        plugins: One or several of `Precision`, `CheckpointIO`, `ClusterEnvironment`, `LayerSync`.
        sync_batchnorm: Whether statistics of batch norms are shared between processes.
        environment: What this process was started in, where no plugin and no strategy says so; None to find out.
        machine: What there is; None for this machine.

    Raises:
        PlanError: Settings that are unknown or do not go together.
        UnavailableError: The machine does not have what was asked for.
        PluginTypeError: A plugin of a kind that fits nowhere.
        TypeError: `devices` of a type that fits nowhere.
        ModuleNotFoundError: An accelerator whose package is not installed.
    """
    machine = Machine.probe() if machine is None else machine
    given = _sort_plugins(plugins)
    layer_sync = choose_layer_sync(sync_batchnorm, given.layer_sync)
    if isinstance(strategy, str) and strategy.lower() == "auto":
        strategy = "auto"
    check_strategy(strategy)
    _check_said_once(accelerator, precision, given, strategy)
    environment = _choose_environment(environment, given, strategy)
    num_nodes = nodes(num_nodes, environment)
    chosen = _choose_accelerator(accelerator, strategy, machine)
    processes = processes_here(environment, num_nodes)
    chosen_devices = _choose_devices(devices, chosen, strategy, machine, processes)
    chosen_precision = _choose_precision(precision, given, strategy, chosen_devices[0])
    chosen_precision.check_device(chosen_devices[0])
    made = make_strategy(strategy, chosen_devices, num_nodes, environment, machine.interactive)
    complete(made, chosen, chosen_devices[0], chosen_precision, given.checkpoint_io, layer_sync)
    return Plan(
        accelerator=chosen,
        devices=chosen_devices,
        num_nodes=num_nodes,
        strategy=made,
        precision=chosen_precision,
        cluster_environment=environment,
        layer_sync=layer_sync,
    )


@dataclass
class _Plugins:
    """The plugins, one of a kind."""

    precision: Precision | None = None
    checkpoint_io: Any = None
    cluster_environment: ClusterEnvironment | None = None
    layer_sync: LayerSync | None = None


def _sort_plugins(plugins: Any) -> _Plugins:
    result = _Plugins()
    if plugins is None:
        return result
    for plugin in plugins if isinstance(plugins, Iterable) and not isinstance(plugins, str) else [plugins]:
        kind = _kind_of_plugin(plugin)
        if getattr(result, kind) is not None:
            raise PlanError(
                f"`plugins` holds two of the kind {kind}: {getattr(result, kind)} and {plugin}. Give one.",
                subject=plugin,
            )
        setattr(result, kind, plugin)
    return result


def _kind_of_plugin(plugin: Any) -> str:
    if isinstance(plugin, Precision):
        return "precision"
    if isinstance(plugin, ClusterEnvironment):
        return "cluster_environment"
    if isinstance(plugin, LayerSync):
        return "layer_sync"
    # by what it can do, so that a session which saves nothing need not load the class
    if all(hasattr(plugin, name) for name in ("save_checkpoint", "load_checkpoint", "remove_checkpoint")):
        return "checkpoint_io"
    raise PluginTypeError(
        f"plugins={plugin!r} fits nowhere. Expected: Precision, CheckpointIO, ClusterEnvironment or LayerSync"
        + (f". Did you mean precision={plugin!r}?" if isinstance(plugin, str) else "."),
        subject=plugin,
    )


def _choose_environment(environment: ClusterEnvironment | None, given: _Plugins, strategy: Any) -> ClusterEnvironment:
    """The plugin or the strategy's, as the user said so; else the one that is told or found."""
    return given.cluster_environment or _environment_of(strategy) or environment or find_environment()


def _environment_of(strategy: Any) -> ClusterEnvironment | None:
    return getattr(strategy, "cluster_environment", None)


def _check_said_once(accelerator: Any, precision: Any, given: _Plugins, strategy: Any) -> None:
    """Refuse what is given both as a flag or plugin and through the strategy object."""
    if precision is not None and given.precision is not None:
        raise PlanError(
            f"Received both precision={precision!r} and plugins={given.precision}. Choose one.", subject=precision
        )
    if not isinstance(strategy, Strategy):
        return
    through_strategy = {
        "accelerator": (strategy._accelerator, None if accelerator == "auto" else accelerator),
        "precision": (strategy._precision_plugin, given.precision if precision is None else precision),
        "checkpoint_io": (strategy._checkpoint_io, given.checkpoint_io),
        "cluster_environment": (_environment_of(strategy), given.cluster_environment),
    }
    for name, (theirs, ours) in through_strategy.items():
        if theirs is not None and ours is not None and theirs is not ours:
            raise PlanError(
                f"The {name} was given twice: {ours!r}, and {theirs!r} through the strategy {type(strategy).__name__}. "
                "Leave one out.",
                subject=ours,
            )


def _choose_accelerator(accelerator: Any, strategy: Any, machine: Machine) -> Accelerator:
    if isinstance(accelerator, Accelerator):
        return accelerator
    if accelerator == "auto" and isinstance(strategy, Strategy):
        if strategy.accelerator is not None:
            return strategy.accelerator
        if (devices := _devices_of(strategy)) is not None:
            return AcceleratorRegistry.get(_name_of_type(devices[0]))
    names = ["auto", "gpu", *AcceleratorRegistry.names()]
    if not isinstance(accelerator, str) or accelerator not in names:
        raise PlanError(
            f"accelerator={accelerator!r} is not known.{did_you_mean(accelerator, names)} Type one of:"
            f" {', '.join(names)}",
            subject=accelerator,
        )
    name = accelerator
    if name == "auto":
        name = "mps" if machine.mps else "cuda" if machine.cuda_count else "cpu"
    elif name == "gpu":
        name = "mps" if machine.mps else "cuda"
    chosen = AcceleratorRegistry.get(name)
    if not _is_there(chosen, machine):
        there = [other for other in AcceleratorRegistry.names() if _is_there_by_name(other, machine)]
        raise UnavailableError(
            f"accelerator={accelerator!r}: this machine has no usable {name} device. Available: {', '.join(there)}. "
            "Type: accelerator='auto'",
            subject=accelerator,
        )
    if name == "tpu":
        raise PlanError("accelerator='tpu' is not part of this version. Type: accelerator='auto'", subject=accelerator)
    return chosen


def _name_of_type(device: torch.device) -> str:
    return "tpu" if device.type == "xla" else device.type


def _is_there_by_name(name: str, machine: Machine) -> bool:
    return machine.xla if name == "tpu" else _is_there(AcceleratorRegistry.get(name), machine)


def _is_there(accelerator: Accelerator, machine: Machine) -> bool:
    known = {"cpu": True, "cuda": machine.cuda_count > 0, "mps": machine.mps, "tpu": machine.xla}
    name = accelerator.name()
    return known[name] if name in known else accelerator.is_available()


def _choose_devices(
    devices: Any, accelerator: Accelerator, strategy: Any, machine: Machine, processes: int | None
) -> tuple[torch.device, ...]:
    """The devices of this node; where a cluster has started the processes, "auto" is one for each of them."""
    if devices == "auto" and isinstance(strategy, Strategy) and (of_strategy := _devices_of(strategy)) is not None:
        return of_strategy
    if devices == "auto":
        devices = processes if processes is not None else _all_of(accelerator, strategy, machine)
    if isinstance(accelerator, CUDAAccelerator):
        parsed: Any = parse_device_ids(devices, machine.cuda_count, "cuda")
    else:
        parsed = accelerator.parse_devices(devices)
    return tuple(accelerator.get_parallel_devices(parsed))


def _devices_of(strategy: Strategy) -> tuple[torch.device, ...] | None:
    """The devices that a strategy was made for; None if it takes any."""
    if not hasattr(strategy, "parallel_devices"):
        return (strategy.root_device,)
    return None if strategy.parallel_devices is None else tuple(strategy.parallel_devices)


def _all_of(accelerator: Accelerator, strategy: Any, machine: Machine) -> Any:
    """What `devices="auto"` stands for: every device; one, for a strategy of one device."""
    if isinstance(strategy, str) and strategy.lower() == SingleDeviceStrategy.strategy_name:
        return [0] if isinstance(accelerator, CUDAAccelerator) else 1
    if isinstance(accelerator, CUDAAccelerator):
        return list(range(machine.cuda_count))
    return accelerator.auto_device_count()


def _choose_precision(precision: Any, given: _Plugins, strategy: Any, device: torch.device) -> Precision:
    if given.precision is not None:
        return given.precision
    if precision is None and isinstance(strategy, Strategy):
        return strategy.precision_plugin
    name = _full_name(precision)
    if name == "16-mixed" and device.type == "cpu":
        rank_zero_warn("precision='16-mixed' is not for the CPU, where bfloat16 is used: precision='bf16-mixed'.")
        name = "bf16-mixed"
    return _kind_of_strategy(strategy).precision_for(name) or _make_precision(name, device)


def _kind_of_strategy(strategy: Any) -> type[Strategy]:
    if strategy == "auto":
        return Strategy
    return type(strategy) if isinstance(strategy, Strategy) else StrategyRegistry.entry(strategy.lower()).target


def _full_name(precision: Any) -> str:
    if precision is None:
        return "32-true"
    text = str(precision) if type(precision) in (int, str) else ""
    name = _SHORT_PRECISIONS.get(text, text)
    if name not in PRECISIONS:
        raise PlanError(
            f"precision={precision!r} is not known.{did_you_mean(precision, PRECISIONS)} Type one of:"
            f" {', '.join(PRECISIONS)}",
            subject=precision,
        )
    if text in _DISCOURAGED_PRECISIONS:
        rank_zero_warn(f"precision={precision!r} is short for precision={name!r}; please type that.")
    return name


def _make_precision(name: str, device: torch.device) -> Precision:
    if name.endswith("-mixed"):
        return precisions.MixedPrecision(name, device.type)
    if name in ("16-true", "bf16-true"):
        return precisions.HalfPrecision(name)
    if name == "fp8":
        return precisions.Float8Precision(device=device.type)
    if name.startswith("transformer-engine"):
        weights_dtype = torch.float16 if name.endswith("16") else torch.bfloat16
        return precisions.TransformerEnginePrecision(weights_dtype=weights_dtype)
    return precisions.DoublePrecision() if name == "64-true" else Precision()
