"""Where a loader stands in an epoch, and how its order is drawn again after an interruption.

An order is not stored. What is stored is the random state it was drawn from, and how far it was consumed; drawing
it once more from that state and leaving out what was consumed costs no loading. What counts is what all ranks have
consumed together, so that a run goes on in the same order with another number of ranks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from fulmen.data.shard import draws_from_torch, items_after, replicas_of
from fulmen.fabric.seed import capture_random, isolate_rng, restore_random

__all__ = ["IndexBatches", "Position", "capture_order", "generators_of", "redraw", "set_generators", "undisturbed"]


@dataclass
class Position:
    """Where one loader stands.

    Args:
        batches: Batches consumed in this pass over the loader, by all ranks among which its sampler shares the data.
        samples: Samples consumed in this pass, likewise.
        earlier_samples: Samples consumed in passes before this one in the same epoch, where loaders are cycled.
        order: Random state the order of this pass was drawn from; None if nothing was drawn.
        generators: State of the user's generators when the position was taken.
        loader: State of a loader that keeps its own.
    """

    batches: int = 0
    samples: int = 0
    earlier_samples: int = 0
    order: dict[str, Any] | None = None
    generators: list[Tensor] = field(default_factory=list)
    loader: Any = None

    def state_dict(self) -> dict[str, Any]:
        """The position in plain types, loadable with `torch.load(weights_only=True)`."""
        return dict(vars(self))

    def one_before(self, replicas: int) -> Position:
        """The position before the last batch of each rank; its samples follow from its batches, where they matter."""
        return replace(self, batches=self.batches - replicas, samples=0)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the position of `state`; what it does not have is kept."""
        for name in vars(self):
            setattr(self, name, state.get(name, getattr(self, name)))


def generators_of(loader: Any) -> list[torch.Generator]:
    """The generators the user gave to the loader and its samplers, each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found: dict[int, torch.Generator] = {}
    for owner in owners:
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and generator is not torch.default_generator:
            found[id(generator)] = generator
    return list(found.values())


def capture_order(loader: Any) -> dict[str, Any]:
    """The random state that the order of the coming pass over `loader` depends on."""
    order: dict[str, Any] = {"torch": torch.get_rng_state()}
    if not _is_drawn_from_torch(loader):
        order = capture_random(include_cuda=False)
    order["generators"] = [generator.get_state() for generator in generators_of(loader)]
    return order


def _is_drawn_from_torch(loader: Any) -> bool:
    """Whether only torch's own samplers are at work, which draw from torch's generators alone."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, torch.utils.data.IterableDataset):
        return False
    batch_sampler = loader.batch_sampler
    samplers = (loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    return all(map(draws_from_torch, samplers))


@contextmanager
def redraw(loader: Any, position: Position) -> Iterator[None]:
    """Within: random numbers as they were when the order of `position` was drawn. The global state is put back.

    The user's generators end in the state that `position` recorded.
    """
    if position.order is None:
        yield
        return
    generators = generators_of(loader)
    with isolate_rng():
        if "python" in position.order:
            restore_random(position.order)
        else:
            torch.set_rng_state(position.order["torch"].cpu())
        set_generators(generators, position.order["generators"])
        yield
        set_generators(generators, position.generators)


@contextmanager
def undisturbed(loader: Any) -> Iterator[None]:
    """Put the global generators and the user's back at the end."""
    generators = generators_of(loader)
    states = [generator.get_state() for generator in generators]
    with isolate_rng():
        yield
    set_generators(generators, states)


def set_generators(generators: Sequence[torch.Generator], states: Sequence[Tensor]) -> None:
    """Give each generator its state; generators that had no part in the interrupted run are left alone."""
    for generator, state in zip(generators, states, strict=False):
        generator.set_state(state.cpu())


class IndexBatches:
    """Stands in for the (batch) sampler of a loader: leaves out what was consumed, and remembers what it gave.

    The underlying samplers are called when and as often as torch would call them.

    Args:
        loader: The loader, with its own samplers.
        pause: Whether each iterator first gives None, as soon as the order is drawn and before any indices. torch
            draws the order with the first indices; the pause lets it be drawn without loading anything.
        keep: What to remember of the indices of each batch: `len` for their number, `list` for themselves; None:
            nothing.

    Attributes:
        position: What the next iterators leave out.
        idle: Whether the next iterators give nothing.
        kept: What was remembered of the batches of the current iterator and not asked for yet; None: nothing is.
        stream: The current iterator.
    """

    def __init__(self, loader: DataLoader[Any], *, pause: bool, keep: Callable[[Any], Any] | None) -> None:
        self.position = Position()
        self.idle = False
        self.kept: deque[Any] | None = None if keep is None else deque()
        self.stream: Iterator[Any] = iter(())
        self._sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        self._replicas = replicas_of(loader)
        self._pause = pause
        self._keep = keep

    def __iter__(self) -> Iterator[Any]:
        if self.idle:
            return iter(())
        if type(self._sampler) is BatchSampler:
            stream = self._after_samples(self._sampler, self.position.samples)
        else:
            stream = self._after_batches(items_after(self._sampler, self.position.batches, self._replicas))
        self.stream = stream if self.kept is None else self._remembered(stream, self.kept)
        return self.stream

    def __len__(self) -> int:
        return len(self._sampler)

    def _after_batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        next(batches)
        if self._pause:
            yield None
        yield from batches

    def _after_samples(self, batch_sampler: BatchSampler, count: int) -> Iterator[Any]:
        samples = items_after(batch_sampler.sampler, count, self._replicas)
        next(samples)
        if self._pause:
            yield None
        yield from BatchSampler(samples, batch_sampler.batch_size, batch_sampler.drop_last)

    def _remembered(self, batches: Iterator[Any], kept: deque[Any]) -> Iterator[Any]:
        keep = self._keep
        assert keep is not None
        kept.clear()
        for indices in batches:
            if indices is not None:
                kept.append(keep(indices))
            yield indices
