"""The state `Fabric` saves: objects become their state dicts, and take them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fulmen.fabric.strategies import Strategy
from fulmen.fabric.wrappers import unwrap
from fulmen.types import Stateful

__all__ = ["collect", "restore", "restore_object"]

Filter = Mapping[str, Callable[[str, Any], bool]]


def collect(strategy: Strategy, state: Mapping[str, Any], filter: Filter | None = None) -> dict[str, Any]:
    """What goes into a checkpoint for `state`.

    Args:
        strategy: Knows the state of modules and optimizers.
        state: Names to modules, optimizers, other objects with a state dict, and plain values.
        filter: Names to functions of a key and a value of that entry's dict; what they refuse is left out.

    Raises:
        TypeError: `filter` is not a mapping of callables.
        ValueError: `filter` has a name that `state` has not.
    """
    filter = {} if filter is None else filter
    _check_filter(filter, state)
    result: dict[str, Any] = {}
    for name, obj in state.items():
        value = _state_of(strategy, unwrap(obj))
        keep = filter.get(name)
        if keep is not None and isinstance(value, Mapping):
            value = {key: item for key, item in value.items() if keep(key, item)}
        result[name] = value
    return result


def _check_filter(filter: Any, state: Mapping[str, Any]) -> None:
    if not isinstance(filter, Mapping):
        raise TypeError(
            f"`filter` has to be a dict of functions, got {filter!r}. Type: filter={{'model': lambda k, v: ...}}"
        )
    if unknown := [name for name in filter if name not in state]:
        raise ValueError(f"`filter` names {unknown}, and the state has only {list(state)}.")
    for name, keep in filter.items():
        if not callable(keep):
            raise TypeError(f"The filter of {name!r} has to be a function (key, value) -> bool, got {keep!r}.")


def _state_of(strategy: Strategy, obj: Any) -> Any:
    if isinstance(obj, nn.Module):
        return strategy.get_module_state_dict(obj)
    if isinstance(obj, Optimizer):
        return strategy.optimizer_state(obj)
    return obj.state_dict() if isinstance(obj, Stateful) else obj


def restore(
    strategy: Strategy, state: dict[str, Any], checkpoint: dict[str, Any], strict: bool = True
) -> dict[str, Any]:
    """Put a checkpoint into `state`: objects take their state back, other values are replaced.

    Args:
        strategy: Knows how to load modules.
        state: What is wanted, by name; changed in place.
        checkpoint: What was saved.
        strict: Whether everything wanted has to be there, also within modules.

    Returns:
        What the checkpoint holds beyond that.

    Raises:
        KeyError: Something wanted is not there, and `strict` is True.
    """
    if strict and (missing := [name for name in state if name not in checkpoint]):
        raise KeyError(
            f"The checkpoint has no {missing[0]!r}; it has {list(checkpoint)}. To go on without, type: strict=False"
        )
    for name in [name for name in state if name in checkpoint]:
        if not restore_object(strategy, state[name], checkpoint[name], strict):
            state[name] = checkpoint[name]
    return {name: value for name, value in checkpoint.items() if name not in state}


def restore_object(strategy: Strategy, obj: Any, state: Any, strict: bool = True) -> bool:
    """Load `state` into `obj`; returns False if it is a plain value, into which nothing can be loaded."""
    target = unwrap(obj)
    if isinstance(target, nn.Module):
        strategy.load_module_state_dict(target, state, strict)
    elif isinstance(target, Optimizer):
        strategy.load_optimizer_state(target, state)
    elif isinstance(target, Stateful):
        target.load_state_dict(state)
    else:
        return False
    return True
