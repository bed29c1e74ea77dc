"""Steps that draw their batches themselves: ``def training_step(self, dataloader_iter)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

from fulmen.loops.signature import takes_dataloader_iter

if TYPE_CHECKING:
    from fulmen.data.feed import Feed


class Exhausted(Exception):
    """A step wanted to draw a batch when there was none left: its epoch has ended."""


class BatchIterator:
    """What such a step is given; each ``next`` of it gives ``(batch, batch_idx, dataloader_idx)``.

    A step may draw several batches. The first is fetched before it, so that the loop knows whether it is the last.

    Args:
        feed: Where the batches come from.
        batches: The feed's batches of this epoch.
        loader: Number of the loader.

    Attributes:
        batch: The batch fetched last; this is what the hooks get.
    """

    def __init__(self, feed: Feed, batches: Iterable[Any], loader: int = 0) -> None:
        self.batch: Any = None
        self._feed, self._batches, self._loader = feed, iter(batches), loader
        self._is_fetched = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Any, int, int]:
        if not self._is_fetched:
            self.batch = next(self._batches)
        self._is_fetched = False
        return self.batch, self._feed.batches - 1, self._loader

    def steps(self) -> Iterator[Self]:
        """This object once for each step, until there are no batches left."""
        for batch in self._batches:
            self.batch, self._is_fetched = batch, True
            while self._is_fetched:  # a step that draws nothing leaves it to the next
                yield self


def batches_for(step: Callable[..., Any], feed: Feed, epoch: int, loader: int = 0) -> Iterator[Any]:
    """The batches of an epoch; or what ``step`` draws them from, once for each call of it."""
    batches = feed.start(epoch)
    return BatchIterator(feed, batches, loader).steps() if takes_dataloader_iter(step) else batches


def drawing(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step that draws its batches itself, called as any other."""

    def draw(batches: BatchIterator, *_: Any) -> Any:
        try:
            return step(batches)
        except StopIteration as end:
            raise Exhausted from end

    return draw


def with_drawn_batch(listener: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a listener with the batch in the place of what it was drawn from."""
    return listener(*[each.batch if isinstance(each, BatchIterator) else each for each in arguments])
