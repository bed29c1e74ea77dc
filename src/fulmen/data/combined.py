"""Several loaders drawn from as if they were one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Any

from fulmen.data.loaders import is_stateful, length_of, shut_down

__all__ = ["CombinedLoader", "combined_length", "flatten", "map_leaves"]

_END = object()

Build = Callable[[Iterator[Any]], Any]


def _is_leaf(node: Any) -> bool:
    if isinstance(node, dict):
        return False
    if isinstance(node, (list, tuple)):
        return all(isinstance(element, (bool, int, float, complex, str)) for element in node)
    return True


def flatten(loaders: Any) -> list[Any]:
    """The loaders in a collection: a loader, a `CombinedLoader`, or any nesting of dicts, lists and tuples of loaders.

    A list or tuple of plain numbers or strings counts as one loader.
    """
    return list(loaders.flattened) if isinstance(loaders, CombinedLoader) else list(_leaves(loaders))


def _leaves(node: Any) -> Iterator[Any]:
    if _is_leaf(node):
        yield node
        return
    for child in node.values() if isinstance(node, dict) else node:
        yield from _leaves(child)


def map_leaves(fn: Callable[[Any], Any], loaders: Any) -> Any:
    """The same collection with `fn(loader)` in place of each loader; a `CombinedLoader` keeps its mode and limits."""
    if isinstance(loaders, CombinedLoader):
        result = CombinedLoader(map_leaves(fn, loaders.iterables), loaders.mode)
        result.limits = loaders.limits
        return result
    return _builder(loaders)(map(fn, flatten(loaders)))


def _builder(structure: Any) -> Build:
    """A function that makes a collection like `structure` from an iterator over its leaves."""
    if _is_leaf(structure):
        return next
    if isinstance(structure, dict):
        return _dict_builder(structure)
    parts = [_builder(child) for child in structure]
    if hasattr(structure, "_fields"):
        return lambda leaves: type(structure)(*[build(leaves) for build in parts])
    return lambda leaves: type(structure)([build(leaves) for build in parts])


def _dict_builder(structure: dict[Any, Any]) -> Build:
    parts = {key: _builder(child) for key, child in structure.items()}

    def build_dict(leaves: Iterator[Any]) -> dict[Any, Any]:
        filled = {key: build(leaves) for key, build in parts.items()}
        if type(structure) is dict:
            return filled
        result = copy.copy(structure)  # a subclass may hold more than its items: a default factory, an order
        result.update(filled)
        return result

    return build_dict


class _Cursor(Iterator[tuple[Any, int, int]]):
    """One pass over several loaders, a collection of their batches at a time, until the first one ends."""

    def __init__(self, leaves: list[Any], build: Build, limits: list[int | float], position: dict[str, Any]) -> None:
        self.leaves = leaves
        self.build = build
        self.exhausted: list[bool] = list(position.get("exhausted", [False] * len(leaves)))
        self.batch_idx: int = position.get("batch_idx", 0)
        self.iterators: list[Iterator[Any]] = [iter(leaf) for leaf in leaves]

    def draw(self) -> list[Any]:
        return [next(iterator) for iterator in self.iterators]

    def __next__(self) -> tuple[Any, int, int]:
        if not self.leaves:
            raise StopIteration
        batch = self.build(iter(self.draw()))
        self.batch_idx += 1
        return batch, self.batch_idx - 1, 0

    def position(self) -> dict[str, Any]:
        return {"batch_idx": self.batch_idx, "exhausted": list(self.exhausted)}

    def _mark_exhausted(self, batches: list[Any]) -> None:
        for index, batch in enumerate(batches):
            self.exhausted[index] |= batch is _END
        if all(self.exhausted):
            raise StopIteration


class _Cycle(_Cursor):
    """Until all loaders have ended once; those that ended before start again."""

    def draw(self) -> list[Any]:
        batches = [next(iterator, _END) for iterator in self.iterators]
        if any(batch is _END for batch in batches):
            self._mark_exhausted(batches)
            for index, batch in enumerate(batches):
                if batch is _END:
                    self.iterators[index] = iter(self.leaves[index])
                    batches[index] = next(self.iterators[index])
        return batches


class _Fill(_Cursor):
    """Until all loaders have ended; those that ended before give None."""

    def draw(self) -> list[Any]:
        batches = [_END if done else next(it, _END) for it, done in zip(self.iterators, self.exhausted, strict=True)]
        if any(batch is _END for batch in batches):
            self._mark_exhausted(batches)
            return [None if batch is _END else batch for batch in batches]
        return batches


class _Sequence(_Cursor):
    """One loader after the other; the next one is started when it is its turn."""

    def __init__(self, leaves: list[Any], build: Build, limits: list[int | float], position: dict[str, Any]) -> None:
        super().__init__([], build, limits, position)
        self.waiting = leaves
        self.limits = limits
        self.dataloader_idx: int = position.get("dataloader_idx", 0)
        self.iterator: Iterator[Any] | None = None

    def __next__(self) -> tuple[Any, int, int]:
        while self.dataloader_idx < len(self.waiting):
            if self.batch_idx < self.limits[self.dataloader_idx]:
                if self.iterator is None:
                    self.iterator = iter(self.waiting[self.dataloader_idx])
                batch = next(self.iterator, _END)
                if batch is not _END:
                    self.batch_idx += 1
                    return batch, self.batch_idx - 1, self.dataloader_idx
            self.iterator = None
            self.batch_idx = 0
            self.dataloader_idx += 1
        raise StopIteration

    def position(self) -> dict[str, Any]:
        return {"batch_idx": self.batch_idx, "dataloader_idx": self.dataloader_idx}


_CURSORS: dict[str, type[_Cursor]] = {
    "min_size": _Cursor,
    "max_size_cycle": _Cycle,
    "max_size": _Fill,
    "sequential": _Sequence,
}


def combined_length(lengths: list[int | float], mode: str) -> int | float:
    """Number of items that loaders of these lengths (inf if unknown) give together in `mode`."""
    if not lengths:
        return 0
    if mode == "sequential":
        return sum(lengths)
    return min(lengths) if mode == "min_size" else max(lengths)


class CombinedLoader(Iterable[tuple[Any, int, int]]):
    """Draws from several iterables at once, or from one after the other.

    Iterating gives `(batch, batch_idx, dataloader_idx)`. In the modes that draw at once `batch` is a collection like
    `iterables` with a batch in place of each iterable, and `dataloader_idx` is 0. In mode "sequential" `batch` comes
    from the iterable with the number `dataloader_idx`, and `batch_idx` counts within it.

    | mode | ends | number of items |
    |---|---|---|
    | `min_size` | when the first iterable ends | the smallest |
    | `max_size_cycle` | when all have ended once; shorter ones start again | the largest |
    | `max_size` | when all have ended; shorter ones give None | the largest |
    | `sequential` | after the last | the sum |

    Args:
        iterables: An iterable, or any nesting of dicts, lists, tuples and named tuples of iterables. A list or tuple
            of plain numbers or strings counts as one iterable.
        mode: One of the above.

    Raises:
        ValueError: The mode is unknown.
    """

    def __init__(self, iterables: Any, mode: str = "min_size") -> None:
        if mode not in _CURSORS:
            raise ValueError(f"Unsupported mode {mode!r}, please select one of: {list(_CURSORS)}.")
        self._iterables = iterables
        self.mode = mode
        self._flattened = list(_leaves(iterables))
        self._build = _builder(iterables)
        self._limits: list[int | float] | None = None
        self._cursor: _Cursor | None = None
        self._resume: dict[str, Any] = {}

    @property
    def iterables(self) -> Any:
        """The collection of iterables."""
        return self._iterables

    @property
    def flattened(self) -> list[Any]:
        """The iterables without their structure; can be set to others of the same number."""
        return self._flattened

    @flattened.setter
    def flattened(self, flattened: list[Any]) -> None:
        if len(flattened) != len(self._flattened):
            raise ValueError(
                f"Mismatch in flattened length ({len(flattened)}) and existing length ({len(self._flattened)})."
            )
        self._iterables = self._build(iter(flattened))
        self._flattened = list(flattened)

    @property
    def limits(self) -> list[int | float] | None:
        """The most batches to take from each iterable; can be set to a whole number for all, or one for each."""
        return self._limits

    @limits.setter
    def limits(self, limits: int | float | list[int | float] | None) -> None:
        if isinstance(limits, (int, float)):
            limits = [limits] * len(self._flattened)
        elif limits is not None and len(limits) != len(self._flattened):
            raise ValueError(
                f"Mismatch in number of limits ({len(limits)}) and number of iterables ({len(self._flattened)})."
            )
        if parts := [limit for limit in limits or () if limit != inf and limit != int(limit)]:
            raise ValueError(
                f"`CombinedLoader.limits` are numbers of batches, got {parts[0]}. For a fraction of each loader type"
                f" `Trainer(limit_train_batches={parts[0]})`, or the argument of another stage."
            )
        self._limits = limits

    @property
    def sampler(self) -> Any:
        """The `sampler` of each iterable (None without), in the structure of `iterables`."""
        return self._build(getattr(leaf, "sampler", None) for leaf in self._flattened)

    @property
    def batch_sampler(self) -> Any:
        """The `batch_sampler` of each iterable (None without), in the structure of `iterables`."""
        return self._build(getattr(leaf, "batch_sampler", None) for leaf in self._flattened)

    def __iter__(self) -> CombinedLoader:
        self._begin()
        return self

    def _begin(self) -> _Cursor:
        """Start a pass over all iterables."""
        position, self._resume = self._resume, {}
        limits = self._limits or [inf] * len(self._flattened)
        self._cursor = None  # ends the workers of an unfinished pass before new ones start
        self._cursor = _CURSORS[self.mode](self._flattened, self._build, limits, position)
        return self._cursor

    def __next__(self) -> tuple[Any, int, int]:
        if self._cursor is None:
            raise RuntimeError("Please call `iter(combined_loader)` first.")
        if self._limits is not None and self.mode != "sequential" and self._cursor.batch_idx >= self._num_batches():
            raise StopIteration
        return next(self._cursor)

    def __len__(self) -> int:
        if self._cursor is None:
            raise RuntimeError("Please call `iter(combined_loader)` first.")
        num_batches = self._num_batches()
        if num_batches == inf:
            raise TypeError(f"The length is not known: an iterable has no length, in mode {self.mode!r}.")
        return int(num_batches)

    def _num_batches(self) -> int | float:
        lengths = [length_of(leaf) for leaf in self._flattened]
        if self._limits is not None:
            lengths = list(map(min, lengths, self._limits))
        return combined_length(lengths, self.mode)

    def reset(self) -> None:
        """Forget the iterators and end the workers of the iterables."""
        self._cursor = None
        for leaf in self._flattened:
            shut_down(leaf)

    def _position(self) -> dict[str, Any]:
        """What the iterators of the iterables do not know themselves about the pass under way."""
        return {} if self._cursor is None else self._cursor.position()

    def _continue_from(self, position: dict[str, Any]) -> None:
        """Let the next pass go on where `_position` was taken; the iterables have to do the same."""
        self._resume = position

    def _state_dicts(self) -> list[dict[str, Any]]:
        return [leaf.state_dict() for leaf in self._flattened if is_stateful(leaf)]

    def _load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        stateful = [leaf for leaf in self._flattened if is_stateful(leaf)]
        if len(states) != len(stateful):
            raise RuntimeError(
                f"There are states of {len(states)} loaders, but {len(stateful)} of the loaders here keep a state. "
                "Give the loaders that were in use when the checkpoint was saved."
            )
        for leaf, state in zip(stateful, states, strict=True):
            leaf.load_state_dict(state)
