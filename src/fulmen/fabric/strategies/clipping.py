"""Clipping of gradients some of which are shards: over different meshes, and among whole ones.

Each process looks at its own parts. What is a part of a larger gradient is added up over the processes that have the
other parts, what all of them have as a whole counts once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

__all__ = ["clip_norm", "clip_value"]

Groups = tuple[dist.ProcessGroup, ...]


@torch.no_grad()
def clip_norm(
    parameters: Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """As `torch.nn.utils.clip_grad_norm_`, for any mixture of whole and sharded parameters; all processes must call it.

    Args:
        parameters: Whose gradients are scaled down.
        max_norm: The largest norm of all of them together that is let through.
        norm_type: Which norm; infinity for the largest absolute value.
        error_if_nonfinite: Whether a norm that is infinite or not a number is an error.

    Returns:
        The norm before, as a plain tensor, the same on all processes.

    Raises:
        RuntimeError: The norm is not finite, and that is an error.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    _add_up(parameters)
    parts: dict[Groups, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        gradient = cast(Tensor, parameter.grad)
        parts[_sharded_over(gradient)].append(_own_part(gradient))
    norms = [_over(groups, get_total_norm(own, norm_type), norm_type) for groups, own in parts.items()]
    total = get_total_norm(norms, norm_type, error_if_nonfinite)
    own = [_Holder(_own_part(cast(Tensor, parameter.grad))) for parameter in parameters]
    clip_grads_with_norm_(cast(Any, own), max_norm, total)
    return total


@torch.no_grad()
def clip_value(parameters: Iterable[Tensor], clip_value: float) -> None:
    """As `torch.nn.utils.clip_grad_value_`, for any mixture of whole and sharded parameters.

    Args:
        parameters: Whose gradients are clipped.
        clip_value: The largest absolute value of an element that is let through.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    _add_up(parameters)
    for parameter in parameters:
        _own_part(cast(Tensor, parameter.grad)).clamp_(-clip_value, clip_value)


class _Holder:
    """Looks like a parameter to the functions of torch: something with a gradient."""

    def __init__(self, grad: Tensor) -> None:
        self.grad = grad


def _add_up(parameters: Iterable[Tensor]) -> None:
    """Gradients of which each process has a summand become whole: nothing can be said of them before."""
    for parameter in parameters:
        gradient = parameter.grad
        if isinstance(gradient, DTensor) and any(isinstance(place, Partial) for place in gradient.placements):
            places = [Replicate() if isinstance(place, Partial) else place for place in gradient.placements]
            parameter.grad = gradient.redistribute(placements=places)


def _own_part(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _sharded_over(gradient: Tensor) -> Groups:
    """The groups of processes of which each has a part."""
    if not isinstance(gradient, DTensor):
        return ()
    places = enumerate(gradient.placements)
    return tuple(gradient.device_mesh.get_group(number) for number, place in places if not place.is_replicate())


def _over(groups: Groups, norm: Tensor, norm_type: float) -> Tensor:
    """The norm of a vector of which each process of the groups has a part with its own norm."""
    if norm_type == float("inf"):
        for group in groups:
            dist.all_reduce(norm, dist.ReduceOp.MAX, group)
        return norm
    power = norm**norm_type
    for group in groups:
        dist.all_reduce(power, group=group)
    return power ** (1 / norm_type)
