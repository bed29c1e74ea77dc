"""Clipping of gradients some of which are shards: over different meshes, and among whole ones.

Each process looks at its own parts. What is a part of a larger gradient is added up over the processes that have the
other parts; what all of them have as a whole counts once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

if TYPE_CHECKING:
    from fulmen.fabric.precision import Precision

__all__ = ["add_up", "clip_norm", "clip_shards", "clip_value", "own_part"]

Groups = tuple[dist.ProcessGroup, ...]


def clip_shards(precision: Precision) -> None:
    """Let a precision clip shards and whole gradients alike."""
    precision.clip_norm, precision.clip_value = clip_norm, clip_value


@torch.no_grad()
def clip_norm(
    parameters: Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """As `torch.nn.utils.clip_grad_norm_`, for any mixture of whole and sharded parameters; all processes must call it.

    Args:
        parameters: Whose gradients are scaled down.
        max_norm: The largest norm of all of them together that is let through.
        norm_type: Which norm: 2.0, another positive number, or infinity for the largest absolute value.
        error_if_nonfinite: Whether a norm that is infinite or not a number is an error.

    Returns:
        The norm before, a plain tensor that is the same on all processes.

    Raises:
        RuntimeError: The norm is not finite, and that is an error.
    """
    gradients = _gradients(parameters)
    parts: dict[Groups, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        parts[_sharded_over(gradient)].append(own_part(gradient))
    norms = [_over(groups, _norm(own, norm_type), norm_type) for groups, own in parts.items()]
    total = get_total_norm(norms, norm_type, error_if_nonfinite)
    clip_grads_with_norm_(_holders(gradients), max_norm, total)
    return total


@torch.no_grad()
def clip_value(parameters: Iterable[Tensor], clip_value: float) -> None:
    """As `torch.nn.utils.clip_grad_value_`, for any mixture of whole and sharded parameters.

    Args:
        parameters: Whose gradients are clipped.
        clip_value: The largest absolute value of an element that is let through.
    """
    if holders := _holders(_gradients(parameters)):
        clip_grad_value_(holders, clip_value)


def own_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part


def add_up(parameter: Tensor) -> None:
    """A gradient of which each process has a summand becomes whole: nothing can be said of it before."""
    gradient = parameter.grad
    if isinstance(gradient, DTensor) and any(isinstance(place, Partial) for place in gradient.placements):
        places = [Replicate() if isinstance(place, Partial) else place for place in gradient.placements]
        parameter.grad = gradient.redistribute(placements=places)


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    parameters = list(parameters)
    for parameter in parameters:
        add_up(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _holders(gradients: Iterable[Tensor]) -> Any:
    """What looks like a parameter to the functions of torch, with this process's part for its gradient."""
    return [SimpleNamespace(grad=part) for gradient in gradients if (part := own_part(gradient)).numel() > 0]


def _sharded_over(gradient: Tensor) -> Groups:
    """The groups of processes of which each has a part."""
    if not isinstance(gradient, DTensor):
        return ()
    places = enumerate(gradient.placements)
    return tuple(gradient.device_mesh.get_group(number) for number, place in places if not place.is_replicate())


def _norm(parts: list[Tensor], norm_type: float) -> Tensor:
    """The norm of what this process has, in at least 32 bit; 0 if that is nothing."""
    filled = [part for part in parts if part.numel() > 0]
    norm = get_total_norm(filled, norm_type) if filled else parts[0].new_zeros(())
    return norm.to(torch.promote_types(norm.dtype, torch.float32))


def _over(groups: Groups, norm: Tensor, norm_type: float) -> Tensor:
    """The norm of a vector of which each process of the groups has a part with its own norm."""
    if not groups:
        return norm
    is_largest = norm_type == float("inf")
    summand = norm if is_largest else norm**norm_type
    for group in groups:
        dist.all_reduce(summand, dist.ReduceOp.MAX if is_largest else dist.ReduceOp.SUM, group)
    return summand if is_largest else summand ** (1 / norm_type)
