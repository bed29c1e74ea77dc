"""Parallel modules made without data: each gets the values that a single process would give it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fulmen.fabric.strategies.clipping import own_part
from fulmen.fabric.strategies.fsdp_shard import Initialise, initialisers, warn_unfilled
from fulmen.fabric.strategies.sharding import same_on_all, shard_like

__all__ = ["fill"]


def fill(root: nn.Module, device: torch.device) -> None:
    """Give memory and values to the parameters and buffers on the meta device; all processes must call it.

    The values are those of rank 0. A module is whole on the device for a moment only, one after the other.

    Args:
        root: The module, made parallel already.
        device: Of this process.
    """
    empty = [module for module in root.modules() if any(tensor.is_meta for _, _, tensor in _own(module))]
    if not empty:
        return
    ties = _ties(root)
    root._apply(  # type: ignore[no-untyped-call]
        lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor
    )
    for (first, name), *others in ties:
        for module, other in others:
            module._parameters[other] = first._parameters[name]
    known = dict(initialisers(root, None))
    for module in empty:
        if (initialise := known[module]) is None:
            warn_unfilled(module)
        else:
            _initialise(module, initialise)


def _own(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """The tensors of a module itself, with the dict that each is in and its name there."""
    for places in (module._parameters, module._buffers):
        for name, tensor in places.items():
            if tensor is not None:
                yield places, name, tensor


def _ties(root: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """The places of parameters that several modules share."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places[parameter].append((module, name))
    return [found for found in places.values() if len(found) > 1]


@torch.no_grad()
def _initialise(module: nn.Module, initialise: Initialise) -> None:
    """Let a module fill whole tensors, of which this process then keeps its parts."""
    sharded = [(places, name, tensor) for places, name, tensor in _own(module) if isinstance(tensor, DTensor)]
    for places, name, shard in sharded:
        whole = torch.empty(shard.shape, dtype=shard.dtype, device=own_part(shard).device)
        places[name] = nn.Parameter(whole, shard.requires_grad) if isinstance(shard, nn.Parameter) else whole
    try:
        initialise(module)
        same_on_all(tensor for _, _, tensor in _own(module))
    finally:
        for places, name, shard in sharded:
            own_part(shard).copy_(own_part(shard_like(places[name].data, shard)))
            places[name] = shard
