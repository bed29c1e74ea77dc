"""Nested batches: walk them, move them, find their size, turn them into numbers.

A *tree* is any nesting of mappings, lists, tuples, named tuples and dataclasses; everything else is a leaf.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fulmen.ranks import WarningCache

__all__ = ["batch_size_of", "map_kind", "map_tensors", "move", "to_scalars"]

_warned = WarningCache()


def map_tensors(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply `fn` to every tensor of `tree`.

    Returns:
        A tree of the same types with the results in place of the tensors; other leaves are the very same objects.
    """
    return map_kind(Tensor, fn, tree)


def map_kind(kind: type | tuple[type, ...], fn: Callable[[Any], Any], tree: Any) -> Any:
    """As `map_tensors`, for every part of `tree` that is an instance of `kind`."""

    def visit(node: Any) -> Any:
        return fn(node) if isinstance(node, kind) else _rebuild(node, visit)

    return visit(tree)


def move(tree: Any, device: torch.device | str | int, non_blocking: bool | None = None) -> Any:
    """Move every tensor, and any other object that has a `to` method, to `device`.

    Args:
        tree: A batch: a tensor, an object with `.to(device)`, or any nesting of them.
        device: Where to.
        non_blocking: Whether the copy of a tensor may run asynchronously; None: yes, unless to a CPU or MPS device,
            where the data could be read before they have arrived.

    Returns:
        The tree on `device`. What is there already is not copied. An object whose `to` returns None is kept.
    """
    if not isinstance(device, torch.device):
        device = torch.device(device)
    kind = type(tree)
    if kind is Tensor:
        if tree.device == device:
            return tree
    elif kind is list or kind is tuple:
        for node in tree:
            if not isinstance(node, Tensor) or node.device != device:
                break
        else:
            return tree
    if non_blocking is None:
        non_blocking = device.type not in ("cpu", "mps")
    if kind is tuple or kind is list:
        return kind([_move_node(node, device, non_blocking) for node in tree])
    if kind is dict:
        return {key: _move_node(node, device, non_blocking) for key, node in tree.items()}
    return _move_node(tree, device, non_blocking)


def _move_node(node: Any, device: torch.device, non_blocking: bool) -> Any:
    if isinstance(node, Tensor):
        return node if node.device == device else node.to(device, non_blocking=non_blocking)
    if hasattr(node, "to"):
        moved = node.to(device)
        return node if moved is None else moved
    return _rebuild(node, lambda child: _move_node(child, device, non_blocking))


def _rebuild(node: Any, visit: Callable[[Any], Any]) -> Any:
    """A container of the same type with `visit` applied to its children; a leaf is returned as it is."""
    if isinstance(node, defaultdict):
        return defaultdict(node.default_factory, {key: visit(child) for key, child in node.items()})
    if isinstance(node, Mapping):
        return _new_like(node, {key: visit(child) for key, child in node.items()})
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return type(node)(*map(visit, node))
    if isinstance(node, (list, tuple)):
        return _new_like(node, map(visit, node))
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return _rebuild_dataclass(node, visit)
    return node


def _new_like(node: Any, content: Any) -> Any:
    return type(node)(content)


def _rebuild_dataclass(node: Any, visit: Callable[[Any], Any]) -> Any:
    result = copy.copy(node)
    for field in dataclasses.fields(node):
        if hasattr(node, field.name):
            # past a frozen dataclass's own __setattr__: the copy is not in anybody's hands yet
            object.__setattr__(result, field.name, visit(getattr(node, field.name)))
    return result


def batch_size_of(tree: Any) -> int | None:
    """The number of samples in a batch, taken from the first dimension of its first tensor, depth first.

    Goes through mappings, iterables and dataclasses. A tensor without dimensions counts as one sample; strings,
    arrays and other leaves as unknown. An iterator is not touched, as looking into it would use it up.

    Returns:
        The size, None if there is no tensor.

    Warns:
        UserWarning: Once, if tensors of the batch differ in their first dimension.
    """
    sizes: list[int] = []
    _collect_sizes((tree,), sizes)
    if not sizes:
        return None
    if sizes.count(sizes[0]) < len(sizes):
        _warned.warn(
            f"The batch size was inferred from an ambiguous batch: its tensors have first dimensions {sizes[:8]}, and "
            f"{sizes[0]} is used. Give it to avoid this: `self.log(..., batch_size=batch_size)`."
        )
    return sizes[0]


def _collect_sizes(nodes: Iterable[Any], sizes: list[int]) -> None:
    for node in nodes:
        if isinstance(node, Tensor):
            shape = node.shape
            sizes.append(shape[0] if shape else 1)
        elif isinstance(node, (tuple, list)):
            _collect_sizes(node, sizes)
        else:
            _collect_sizes(_children(node), sizes)


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, Mapping):
        return node.values()
    if isinstance(node, (str, bytes, Iterator)) or hasattr(node, "__array_interface__"):
        return ()
    if isinstance(node, Iterable):
        return node
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return [getattr(node, field.name) for field in dataclasses.fields(node)]
    return ()


def to_scalars(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the tensors of a flat mapping into Python scalars, with one copy per device and dtype.

    Args:
        mapping: Names to tensors of one element, or to anything else, which is kept.

    Returns:
        The same keys in the same order; an integer tensor becomes an int, a bool tensor a bool, others a float.

    Raises:
        ValueError: A tensor has more than one element, or none.
    """
    result = dict(mapping)
    groups: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    for key, value in mapping.items():
        if not isinstance(value, Tensor):
            continue
        if value.numel() != 1:
            raise ValueError(
                f"The metric {key!r} is a tensor of shape {tuple(value.shape)}; only a tensor with a single element "
                f"can become a number. Reduce it first, for instance with `.mean()`."
            )
        if value.device.type == "cpu":
            result[key] = value.item()
        else:
            groups.setdefault((value.device, value.dtype), {})[key] = value
    for group in groups.values():
        result.update(_copy_together(group))
    return result


def _copy_together(group: Mapping[str, Tensor]) -> dict[str, Any]:
    """Scalars of tensors that share device and dtype: a copy waits for the device, so there is one for all."""
    stacked = torch.stack([value.detach().reshape(()) for value in group.values()])
    return dict(zip(group, stacked.tolist(), strict=True))
