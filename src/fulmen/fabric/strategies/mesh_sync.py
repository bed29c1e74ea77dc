"""What the processes of a mesh have in common: random numbers, values at the start, gradients after a backward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from fulmen.fabric.seed import capture_random, restore_random
from fulmen.fabric.strategies.clipping import add_up, own_part
from fulmen.fabric.strategies.mesh_dimensions import Dimension, Mesh

__all__ = ["GradientAverage", "copies_of", "draw_alike", "make_alike"]

Groups = tuple[dist.ProcessGroup, ...]

_BUCKET_BYTES = 64 * 2**20


def draw_alike(mesh: Mesh, device: torch.device) -> None:
    """Let processes that get the same batches draw the same random numbers from now on.

    Args:
        mesh: The mesh.
        device: Of this process.
    """
    is_cuda = device.type == "cuda"
    for group in mesh.same_data:
        # not the devices of the others: asking them takes memory on each
        states = [capture_random(include_cuda=False), torch.cuda.get_rng_state(device) if is_cuda else None]
        dist.broadcast_object_list(states, group=group, group_src=0, device=device)
        of_host, of_device = states
        restore_random(of_host)  # type: ignore[arg-type]
        if is_cuda:
            torch.cuda.set_rng_state(of_device, device)  # type: ignore[arg-type]


@torch.no_grad()
def make_alike(tensors: Iterable[Tensor], mesh: Mesh) -> None:
    """Give all processes that have the same part of a parameter or buffer the values of the first of them."""
    for tensor in tensors:
        groups = [mesh.along(dimension).get_group() for dimension in mesh.missing_in(tensor)]
        if isinstance(tensor, DTensor):
            places = enumerate(tensor.placements)
            groups += [tensor.device_mesh.get_group(number) for number, place in places if place.is_replicate()]
        part = own_part(tensor)
        whole = part.contiguous()
        for group in groups:
            dist.broadcast(whole, group=group, group_src=0)
        if whole is not part:
            part.copy_(whole)


def copies_of(module: nn.Module, mesh: Mesh) -> Iterator[tuple[nn.Parameter, list[Dimension]]]:
    """The parameters to train of which processes with different data have copies, and along which dimensions.

    Raises:
        ValueError: One is sharded by `fully_shard` over some of these processes only.
    """
    sharded = _sharded_parameters(module)
    for name, parameter in module.named_parameters():
        dimensions = [dimension for dimension in mesh.missing_in(parameter) if dimension.averages_gradients]
        if not dimensions or not parameter.requires_grad:
            continue
        if id(parameter) in sharded:
            names = ", ".join(f'"{dimension.name}"' for dimension in mesh.dimensions if dimension.averages_gradients)
            raise ValueError(
                f"`fully_shard` divides {name!r} among some of the processes with different data only, so that the"
                f" others would train for themselves. Type: fully_shard(..., mesh=self.device_mesh[{names}])"
            )
        yield parameter, dimensions


def _sharded_parameters(module: nn.Module) -> set[int]:
    """The ids of the parameters whose gradients `fully_shard` takes care of."""
    states: list[Any] = [part._get_fsdp_state() for part in module.modules() if isinstance(part, FSDPModule)]
    groups = (getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group] for state in states)
    return {id(each.sharded_param) for group in chain(*groups) if group is not None for each in group.fsdp_params}


class GradientAverage:
    """Averages gradients over processes, at the end of each backward pass that reaches one of the parameters.

    Args:
        copies: The parameters, with the dimensions along which processes have copies of them.
        mesh: The mesh.

    Attributes:
        is_on: Whether backward passes exchange gradients; False within a window of several batches.
    """

    def __init__(self, copies: Iterable[tuple[nn.Parameter, list[Dimension]]], mesh: Mesh) -> None:
        self.is_on = True
        self._backward = -1
        by_kind: dict[Any, list[nn.Parameter]] = defaultdict(list)
        for parameter, dimensions in copies:
            groups = tuple(mesh.along(dimension).get_group() for dimension in dimensions)
            by_kind[groups, parameter.dtype].append(parameter)
        self._buckets = [(groups, part) for (groups, _), found in by_kind.items() for part in _buckets(found)]
        parameters = chain(*by_kind.values())
        self._hooks = [_on_gradient(parameter, self._expect) for parameter in parameters]

    def close(self) -> None:
        """From now on leave gradients as they are."""
        for hook in self._hooks:
            hook.remove()

    def _expect(self, parameter: Tensor) -> None:
        """Within a backward pass, of which torch tells the number: its end is waited for."""
        backward = torch._C._current_graph_task_id()
        if self.is_on and backward != self._backward:
            self._backward = backward
            Variable._execution_engine.queue_callback(self._average)

    @torch.no_grad()
    def _average(self) -> None:
        for groups, parameters in self._buckets:
            _average(parameters, groups)


def _on_gradient(parameter: nn.Parameter, function: Callable[[Tensor], None]) -> Any:
    return parameter.register_post_accumulate_grad_hook(function)  # type: ignore[no-untyped-call]


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters in portions that are exchanged at once."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and size > _BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += own_part(parameter.detach()).nbytes
    if bucket:
        yield bucket


def _average(parameters: list[nn.Parameter], groups: Groups) -> None:
    """Average gradients over groups of processes; where only some processes have one, the others add zeros."""
    for parameter in parameters:
        add_up(parameter)
    given = [parameter.grad is not None for parameter in parameters]
    parts = [own_part(p.detach()).new_zeros(()) if p.grad is None else own_part(p.grad) for p in parameters]
    parts = [part.expand_as(own_part(parameter.detach())) for part, parameter in zip(parts, parameters, strict=True)]
    flat = torch.cat([*(part.reshape(-1) for part in parts), parts[0].new_tensor(given)])
    for group in groups:
        dist.all_reduce(flat.div_(dist.get_world_size(group)), group=group)
    *averages, are_given = torch.split(flat, [*(part.numel() for part in parts), len(parts)])
    for index, (parameter, average) in enumerate(zip(parameters, averages, strict=True)):
        average = average.view_as(parts[index])
        if parameter.grad is not None:
            own_part(parameter.grad).copy_(average)
        elif are_given[index] > 0:
            parameter.grad = _like(parameter, average.clone())


def _like(parameter: nn.Parameter, part: Tensor) -> Tensor:
    """A gradient of which this process has a part."""
    if not isinstance(parameter, DTensor):
        return part
    mesh, places = parameter.device_mesh, parameter.placements
    return DTensor.from_local(part, mesh, places, run_check=False, shape=parameter.shape, stride=parameter.stride())
