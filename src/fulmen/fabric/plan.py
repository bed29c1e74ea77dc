"""From flags, environment and machine to what will run: one pure function, and one error if it cannot work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fulmen.errors import PossibleUserWarning
from fulmen.extras import available
from fulmen.fabric.accelerators import (
    Accelerator,
    AcceleratorRegistry,
    CUDAAccelerator,
    MPSAccelerator,
    parse_device_ids,
)
from fulmen.fabric.environments import ClusterEnvironment, LightningEnvironment
from fulmen.fabric.errors import PlanError, PluginTypeError, UnavailableError
from fulmen.fabric.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from fulmen.fabric.strategies import SingleDeviceStrategy, Strategy, StrategyRegistry
from fulmen.ranks import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.checkpoint.store import CheckpointIO

__all__ = ["Machine", "Plan", "resolve"]

PRECISIONS = ("16-mixed", "16-true", "32-true", "64-true", "bf16-mixed", "bf16-true")

_SHORT_PRECISIONS = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_DISCOURAGED_PRECISIONS = ("16", "bf16")

_STRATEGIES_OF_SEVERAL_PROCESSES = ("ddp", "dp", "fsdp", "deepspeed", "xla", "single_xla", "single_tpu")


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
    layer_sync: Any = None

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
    environment: Mapping[str, str] | None = None,
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
        sync_batchnorm: Whether statistics of batch norms are shared between processes; nothing to do for one.
        environment: Environment variables; None for those of this process.
        machine: What there is; None for this machine.

    Raises:
        PlanError: Settings that are unknown or do not go together.
        UnavailableError: The machine does not have what was asked for.
        PluginTypeError: A plugin of a kind that fits nowhere.
        TypeError: `devices` of a type that fits nowhere.
        ModuleNotFoundError: An accelerator whose package is not installed.
    """
    environment = os.environ if environment is None else environment
    machine = Machine.probe() if machine is None else machine
    given = _sort_plugins(plugins)
    if sync_batchnorm and given.layer_sync is not None:
        raise PlanError(
            f"Received both sync_batchnorm=True and plugins={given.layer_sync}. Choose one.", subject=plugins
        )
    _check_one_process(num_nodes, environment)
    _check_strategy(strategy)
    _check_said_once(accelerator, precision, given, strategy)
    chosen = _choose_accelerator(accelerator, strategy, machine)
    chosen_devices = _choose_devices(devices, chosen, strategy, machine)
    chosen_precision = _choose_precision(precision, given, strategy, chosen_devices[0])
    return Plan(
        accelerator=chosen,
        devices=chosen_devices,
        num_nodes=num_nodes,
        strategy=_make_strategy(strategy, chosen, chosen_devices[0], chosen_precision, given.checkpoint_io),
        precision=chosen_precision,
        cluster_environment=given.cluster_environment or LightningEnvironment(),
        layer_sync=given.layer_sync,
    )


@dataclass
class _Plugins:
    """The plugins, one of a kind."""

    precision: Precision | None = None
    checkpoint_io: Any = None
    cluster_environment: ClusterEnvironment | None = None
    layer_sync: Any = None


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
    # by what they can do, as their classes live above this layer
    if all(hasattr(plugin, name) for name in ("save_checkpoint", "load_checkpoint", "remove_checkpoint")):
        return "checkpoint_io"
    if all(hasattr(plugin, name) for name in ("apply", "revert")):
        return "layer_sync"
    raise PluginTypeError(
        f"plugins={plugin!r} fits nowhere. Expected: Precision, CheckpointIO, ClusterEnvironment or LayerSync"
        + (f". Did you mean precision={plugin!r}?" if isinstance(plugin, str) else "."),
        subject=plugin,
    )


def _check_one_process(num_nodes: Any, environment: Mapping[str, str]) -> None:
    if type(num_nodes) is not int or num_nodes < 1:
        raise PlanError(f"`num_nodes` has to be an int >= 1, got {num_nodes!r}.", subject=num_nodes)
    if num_nodes > 1:
        raise PlanError(
            f"num_nodes={num_nodes} asks for several machines; this version runs one process on one device. "
            "Type: num_nodes=1",
            subject=num_nodes,
        )
    for mark, size in (("TORCHELASTIC_RUN_ID", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        is_shell = mark == "SLURM_PROCID" and environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
        if mark in environment and not is_shell and int(environment.get(size, 1)) > 1:
            # each of them would train for itself and overwrite the files of the others
            raise PlanError(
                f"By its environment this process is one of {environment[size]} ({size}={environment[size]}, {mark} is "
                "set); this version runs one process on one device. Start the script once: python script.py",
                subject=environment[size],
            )


def _check_strategy(strategy: Any) -> None:
    if isinstance(strategy, Strategy) or strategy == "auto":
        return
    name = strategy.lower() if isinstance(strategy, str) else None
    if name in StrategyRegistry:
        return
    known = ", ".join(["auto", *StrategyRegistry.names()])
    if name is not None and name.startswith(_STRATEGIES_OF_SEVERAL_PROCESSES):
        raise PlanError(
            f"strategy={strategy!r} is not part of this version, which runs one process on one device. "
            f"Type one of: {known}",
            subject=strategy,
        )
    raise PlanError(
        f"strategy={strategy!r} is not known. Give a `Strategy` object, or type one of: {known}", subject=strategy
    )


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
        return strategy.accelerator or AcceleratorRegistry.get(_name_of_type(strategy.root_device))
    names = ["auto", "gpu", *AcceleratorRegistry.names()]
    if not isinstance(accelerator, str) or accelerator not in names:
        raise PlanError(
            f"accelerator={accelerator!r} is not known. Type one of: {', '.join(names)}", subject=accelerator
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
    devices: Any, accelerator: Accelerator, strategy: Any, machine: Machine
) -> tuple[torch.device, ...]:
    if devices == "auto" and isinstance(strategy, Strategy):
        return (strategy.root_device,)
    if devices == "auto":
        return _first_device(accelerator, machine)
    if isinstance(accelerator, CUDAAccelerator):
        parsed: Any = parse_device_ids(devices, machine.cuda_count, "cuda")
    else:
        parsed = accelerator.parse_devices(devices)
    chosen = tuple(accelerator.get_parallel_devices(parsed))
    if len(chosen) > 1:
        raise PlanError(
            f"devices={devices!r} asks for {len(chosen)} devices; this version runs one process on one device. "
            "Type: devices=1",
            subject=devices,
        )
    return chosen


def _first_device(accelerator: Accelerator, machine: Machine) -> tuple[torch.device, ...]:
    """What `devices="auto"` stands for: all devices, of which this version uses the first."""
    count = machine.cuda_count if isinstance(accelerator, CUDAAccelerator) else accelerator.auto_device_count()
    if count > 1:
        rank_zero_warn(
            f"{count} {accelerator.name()} devices are here and the first is used: this version runs one process on "
            "one device. To choose another, type for instance: devices=[1]",
            category=PossibleUserWarning,
        )
    parsed = accelerator.parse_devices(1) if not isinstance(accelerator, CUDAAccelerator) else [0]
    return tuple(accelerator.get_parallel_devices(parsed))


def _choose_precision(precision: Any, given: _Plugins, strategy: Any, device: torch.device) -> Precision:
    if given.precision is not None:
        return given.precision
    if precision is None and isinstance(strategy, Strategy):
        return strategy.precision_plugin
    return _make_precision(_full_name(precision), device)


def _full_name(precision: Any) -> str:
    if precision is None:
        return "32-true"
    text = str(precision) if type(precision) in (int, str) else ""
    name = _SHORT_PRECISIONS.get(text, text)
    if name.startswith("transformer-engine"):
        raise PlanError(
            f"precision={precision!r} is not part of this version. Type one of: {', '.join(PRECISIONS)}",
            subject=precision,
        )
    if name not in PRECISIONS:
        raise PlanError(
            f"precision={precision!r} is not known. Type one of: {', '.join(PRECISIONS)}", subject=precision
        )
    if text in _DISCOURAGED_PRECISIONS:
        rank_zero_warn(f"precision={precision!r} is short for precision={name!r}; please type that.")
    return name


def _make_precision(name: str, device: torch.device) -> Precision:
    if name == "16-mixed" and device.type == "cpu":
        rank_zero_warn("precision='16-mixed' is not for the CPU, where bfloat16 is used: precision='bf16-mixed'.")
        name = "bf16-mixed"
    if name.endswith("-mixed"):
        return MixedPrecision(name, device.type)
    if name in ("16-true", "bf16-true"):
        return HalfPrecision(name)
    return DoublePrecision() if name == "64-true" else Precision()


def _make_strategy(
    strategy: Any, accelerator: Accelerator, device: torch.device, precision: Precision, checkpoint_io: Any
) -> Strategy:
    made = strategy if isinstance(strategy, Strategy) else _strategy_by_name(strategy, device)
    if made.root_device.type != device.type:
        raise PlanError(
            f"The strategy {type(made).__name__} runs on {made.root_device}, and the accelerator is "
            f"{accelerator.name()!r}. Give the strategy a device of that kind, or leave the accelerator out.",
            subject=made,
        )
    made.accelerator = accelerator
    made.precision_plugin = precision
    if checkpoint_io is not None:
        made.checkpoint_io = checkpoint_io
    return made


def _strategy_by_name(name: str, device: torch.device) -> Strategy:
    entry = StrategyRegistry.entry(SingleDeviceStrategy.strategy_name if name == "auto" else name.lower())
    place = {"device": device} if issubclass(entry.target, SingleDeviceStrategy) else {}
    return entry.target(**place | entry.init_params)
