"""The state of sharded modules and optimizers: whole on the CPU of one process, or shards under canonical names.

A shard is a `DTensor`: a tensor that knows its mesh and how it is divided over it. What is here asks for nothing else,
so it serves every strategy whose parameters are `DTensor`s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.optim import Optimizer

from fulmen.tree import map_tensors

__all__ = [
    "by_name",
    "by_position",
    "copy_of_shards",
    "gather",
    "has_shards",
    "load_module",
    "load_optimizer",
    "named_parameters_of",
    "shard_like",
    "whole_optimizer_state",
    "whole_state",
]


def has_shards(data: Any) -> bool:
    """Whether there is a shard anywhere in nested containers."""
    if isinstance(data, Mapping):
        return any(has_shards(value) for value in data.values())
    if isinstance(data, (list, tuple)):
        return any(has_shards(value) for value in data)
    return isinstance(data, DTensor)


# ---------------------------------------------------------------------------------------------------- to one process


def gather(data: Any, keep: bool) -> Any:
    """Nested containers with whole CPU tensors in the place of shards; all processes must call it.

    Args:
        data: Any nesting of tensors.
        keep: Whether this process wants the result. Those that do not only take part, and get None for each tensor.
    """

    def whole(tensor: Tensor) -> Any:
        # one after the other, so that a device never holds more than one whole tensor
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return full.detach().cpu() if keep else None

    return map_tensors(whole, data)


def whole_state(state: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """A state dict with whole tensors on the process that keeps it, empty on the others; all must call it."""
    gathered = {name: gather(value, keep) for name, value in state.items()}
    return gathered if keep else {}


def whole_optimizer_state(optimizer: Optimizer, keep: bool) -> dict[str, Any]:
    """What the optimizer's `state_dict` would be on one device; as `whole_state`."""
    return whole_state(optimizer.state_dict(), keep)


# ---------------------------------------------------------------------------------------------------- from a whole one


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor; the tensor itself where `like` is not a shard.

    Args:
        value: The whole tensor, the same on all processes; or a shard already.
        like: A shard of the same size. For another size the result is replicated on its mesh.
    """
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    is_same = value.shape == like.shape
    placements = like.placements if is_same else [Replicate()] * like.device_mesh.ndim
    # no process needs the tensor of another, so nothing is sent
    shard = distribute_tensor(value, like.device_mesh, placements, src_data_rank=None)
    local = shard.to_local()
    if local.untyped_storage().nbytes() > local.nbytes:  # a view would keep all of the whole tensor on the device
        shard = DTensor.from_local(
            local.clone(), like.device_mesh, placements, shape=value.shape, stride=value.stride(), run_check=False
        )
    return shard


def load_module(module: nn.Module, state: Mapping[str, Any], strict: bool = True) -> None:
    """Load whole tensors, or shards, into a module.

    Args:
        module: With or without shards.
        state: Its state, the same on all processes.
        strict: Whether the names have to match.

    Raises:
        RuntimeError: Names or sizes do not match.
    """
    current = module.state_dict()

    def part(name: str, value: Any) -> Any:
        like = current.get(name)
        fits = isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape
        return shard_like(value, like) if fits else value  # type: ignore[arg-type]

    module.load_state_dict({name: part(name, value) for name, value in state.items()}, strict=strict)


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any], names: Mapping[nn.Parameter, str]) -> None:
    """Load the state of an optimizer, as it is on one device, into one of shards.

    Args:
        optimizer: Its parameters may be shards.
        state: What `whole_optimizer_state` or `by_name` gave.
        names: The parameters' names, for a state by name.
    """
    state = by_position(optimizer, state, names)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parts: dict[Any, Any] = {}
    for number, parameter in zip(numbers, parameters, strict=False):  # the optimizer itself compares the groups
        if number in state["state"]:
            parts[number] = {name: _state_part(value, parameter) for name, value in state["state"][number].items()}
    optimizer.load_state_dict({**state, "state": parts})


def _state_part(value: Any, parameter: Tensor) -> Any:
    """Scalars, such as the number of steps, are the same everywhere."""
    return shard_like(value, parameter) if isinstance(value, Tensor) and value.ndim > 0 else value


# ---------------------------------------------------------------------------------------------------- names


def named_parameters_of(modules: Iterator[nn.Module]) -> dict[nn.Parameter, str]:
    """The parameters of modules with their names."""
    return {parameter: name for module in modules for name, parameter in module.named_parameters()}


def by_name(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
    """The state of an optimizer with names in the place of numbers, so that each shard can be found in any order.

    Args:
        optimizer: The optimizer.
        names: The names of its parameters.
    """
    state = optimizer.state_dict()
    known = _names_by_number(optimizer, state, names)
    groups = [{**group, "params": [known[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {known[number]: value for number, value in state["state"].items()}, "param_groups": groups}


def by_position(optimizer: Optimizer, state: Mapping[str, Any], names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
    """The opposite of `by_name`; a state with numbers is given back as it is."""
    if not any(isinstance(number, str) for group in state["param_groups"] for number in group["params"]):
        return dict(state)
    current = optimizer.state_dict()
    numbers = {name: number for number, name in _names_by_number(optimizer, current, names).items()}
    groups = [
        {**given, "params": group["params"]}
        for given, group in zip(state["param_groups"], current["param_groups"], strict=True)
    ]
    found = {numbers[name]: value for name, value in state["state"].items() if name in numbers}
    return {"state": found, "param_groups": groups}


def _names_by_number(
    optimizer: Optimizer, state: Mapping[str, Any], names: Mapping[nn.Parameter, str]
) -> dict[Any, str]:
    return {
        number: names[parameter]
        for packed, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
        for number, parameter in zip(packed["params"], group["params"], strict=True)
    }


# ---------------------------------------------------------------------------------------------------- a second set


def copy_of_shards(module: nn.Module) -> nn.Module:
    """A module of the same names, parameters and buffers that computes nothing; it can be copied where this one cannot.

    The tensors are those of the module itself, until somebody copies the result.
    """
    return _skeleton(module, {})


def _skeleton(module: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in known:
        return known[module]
    bones = known[module] = nn.Module()
    for name, parameter in module._parameters.items():
        bones.register_parameter(name, parameter)
    for name, buffer in module._buffers.items():
        bones.register_buffer(name, buffer, persistent=name not in module._non_persistent_buffers_set)
    for name, child in module._modules.items():
        bones.add_module(name, None if child is None else _skeleton(child, known))
    return bones


@torch.no_grad()
def same_on_all(tensors: Iterator[Tensor], group: Any = None) -> None:
    """Give all processes of a group the tensors of its first one."""
    from torch import distributed

    for tensor in tensors:
        distributed.broadcast(tensor, group_src=0, group=group)
