"""Sharding a module: fill what has no data yet, make all processes agree, and hand it to `fully_shard`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from fulmen.fabric.strategies.fsdp_units import bottom_up
from fulmen.fabric.strategies.sharding import same_on_all
from fulmen.ranks import rank_zero_warn

__all__ = ["Initialise", "checkpoint_activations", "initialisers", "shard", "warn_unfilled"]

Initialise = Callable[[nn.Module], Any]


def shard(
    root: nn.Module,
    units: Iterable[nn.Module],
    device: torch.device,
    ignored: set[nn.Parameter],
    initialise: Initialise | None,
    **arguments: Any,
) -> None:
    """Shard the units, and with the root what is left. Where one is sharded already, it stays as it is.

    A unit is whole on the device for a moment only; its parameters and buffers are those of rank 0.

    Args:
        root: The outermost module.
        units: Modules within it, inner ones first.
        device: Of this process.
        ignored: Parameters that every process keeps as a whole.
        initialise: Fills a module whose own parameters had no data; None for its `reset_parameters`.
        **arguments: Those of `fully_shard`.
    """
    known = dict(initialisers(root, None))
    filled: dict[nn.Parameter, nn.Parameter] = {}
    norms = _norms_apart(root, arguments["mp_policy"]) - set(units)
    for unit in (*norms, *units, root):
        if isinstance(unit, FSDPModule):
            continue
        for module in _managed_with(unit):
            _fill(module, device, initialise or known[module], filled)
        same_on_all(tensor for module in _managed_with(unit) for tensor in _own(module))
        own: dict[str, Any] = {"mp_policy": MixedPrecisionPolicy()} if unit in norms else {}
        if ignored:
            own["ignored_params"] = {filled.get(parameter, parameter) for parameter in ignored}
        fully_shard(unit, **arguments | own)


def _norms_apart(root: nn.Module, policy: MixedPrecisionPolicy) -> set[nn.Module]:
    """Batch norms compute in the type of their statistics: with parameters of another one they fail."""
    if policy.param_dtype is None or policy.param_dtype.itemsize >= torch.float32.itemsize:
        return set()
    return {module for module in root.modules() if isinstance(module, _BatchNorm) and module.affine}


def _managed_with(unit: nn.Module) -> Iterator[nn.Module]:
    """The modules of a unit without those sharded before."""
    inner = {module for part in unit.modules() if isinstance(part, FSDPModule) for module in part.modules()}
    return (module for module in bottom_up(unit) if module not in inner)


def _own(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(recurse=False), module.buffers(recurse=False))


def _fill(
    module: nn.Module, device: torch.device, initialise: Initialise | None, filled: dict[nn.Parameter, nn.Parameter]
) -> None:
    """Bring a module's own tensors to the device; those without data get memory and values.

    Args:
        module: The module.
        device: Where to.
        initialise: Gives it values; None if nobody knows how.
        filled: The parameters that had no data and what took their place, so that shared ones stay shared.
    """
    if not any(tensor.is_meta for tensor in _own(module)):
        _map_own(module, lambda tensor: tensor.to(device))
        return
    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter not in filled:
            memory = torch.empty_like(parameter, device=device) if parameter.is_meta else parameter.to(device)
            filled[parameter] = nn.Parameter(memory, parameter.requires_grad)
        module.register_parameter(name, filled[parameter])
    _map_own(module, lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)
    if initialise is None:
        warn_unfilled(module)
        return
    with torch.no_grad():
        initialise(module)


def warn_unfilled(module: nn.Module) -> None:
    """Say that a module was made without data and that nobody knows how to give it values."""
    rank_zero_warn(
        f"{type(module).__name__} was made on the meta device, and nothing says how to fill its parameters and buffers:"
        " they hold what was in the memory, until a checkpoint is loaded. Give it a method `reset_parameters(self)`, or"
        " a module around it `_init_weights(self, module)`."
    )


def _map_own(module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
    module._apply(function, recurse=False)  # type: ignore[no-untyped-call]


def initialisers(module: nn.Module, around: Initialise | None = None) -> Iterator[tuple[nn.Module, Initialise | None]]:
    """All modules, and how each gives values to its own parameters: by itself, and then as a module around it says.

    Args:
        module: The outermost module.
        around: How a module around it does so.
    """
    around = getattr(module, "_init_weights", around)
    own = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
    found: list[Initialise] = [partial(_ignoring_argument, own)] if own is not None else []
    found += [around] if around is not None else []
    yield module, partial(_call_all, found) if found else None
    for child in module.children():
        yield from initialisers(child, around)


def _ignoring_argument(function: Callable[[], Any], module: nn.Module) -> None:
    function()


def _call_all(functions: list[Initialise], module: nn.Module) -> None:
    for function in functions:
        function(module)


def checkpoint_activations(modules: Iterable[nn.Module]) -> None:
    """Let modules compute their activations again in the backward pass, in the place of keeping them."""
    for module in modules:
        forward = module.forward
        if getattr(forward, "func", None) is not checkpoint:
            module.forward = partial(checkpoint, forward, use_reentrant=False)
