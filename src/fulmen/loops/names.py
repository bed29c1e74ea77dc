"""The names under which users of Lightning read the loops' state, and set it: nothing here is called by the loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

from fulmen.book import Book, Page
from fulmen.data.combined import CombinedLoader
from fulmen.datahooks import DataHooks
from fulmen.progress import Progress

if TYPE_CHECKING:
    from fulmen.data.feed import Feed
    from fulmen.entry import Entry
    from fulmen.loops.evaluate import EvaluationLoop
    from fulmen.loops.fit import FitLoop
    from fulmen.trainer import Trainer


class BatchProgress(Progress):
    """Counts of batches that know whether the last one has come.

    Args:
        loop: Whose batches they count.
    """

    __slots__ = ("loop",)

    def __init__(self, loop: FitLoop | EvaluationLoop) -> None:
        super().__init__()
        self.loop = loop

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch under way (or just done) is the last."""
        return self.loop.is_last_batch


class LoaderSource:
    """Where the loaders of a stage come from.

    Args:
        trainer: Whose run it is.
        stage: "train", "validate", "test" or "predict".

    Attributes:
        name: The hook that gives them, e.g. "train_dataloader".
    """

    def __init__(self, trainer: Trainer, stage: str) -> None:
        self._trainer, self._stage = trainer, stage
        self.name = {"validate": "val"}.get(stage, stage) + "_dataloader"

    @property
    def instance(self) -> Any | None:
        """The user's loaders, or the datamodule or module with the hook; None before a run."""
        data = self._trainer.data
        if self._stage in data.given:
            return data.given[self._stage]
        return self._trainer.lightning_module if data.datamodule is None else data.datamodule

    def is_defined(self) -> bool:
        """Whether there are loaders: they were given, or the hook is overridden."""
        return self._trainer.lightning_module is not None and self._trainer.data.owner(self._stage) is not None

    def is_module(self) -> bool:
        """Whether a hook gives them."""
        return isinstance(self.instance, DataHooks)

    def dataloader(self) -> Any:
        """The loaders as the user has them; a hook is called for them."""
        return self._trainer.data.request(self._stage)


class LoopNames:
    """What every loop has.

    Attributes:
        outdated: Whether the loaders are to be asked for again as soon as nothing is drawn from them.
    """

    trainer: Trainer
    stage: str
    outdated = False

    @property
    def _data_source(self) -> LoaderSource:
        return LoaderSource(self.trainer, self.stage)

    _all_feeds: Callable[[], list[Feed]]

    @property
    def _combined_loader(self) -> CombinedLoader | None:
        feeds = [] if self.outdated else self._all_feeds()
        if not feeds:
            return None
        if len(feeds) == 1 and isinstance(feeds[0].loaders, CombinedLoader):
            return feeds[0].loaders
        if self.stage == "train":
            return CombinedLoader(feeds[0].loaders, "max_size_cycle")
        return CombinedLoader([feed.loaders for feed in feeds], "sequential")

    @_combined_loader.setter
    def _combined_loader(self, nothing: None) -> None:
        if nothing is not None:
            raise AttributeError(
                f"A loop's `_combined_loader` can be set to None, so that its loaders are asked for again; given was a"
                f" {type(nothing).__name__}. To train on other loaders pass them to the next call of the Trainer."
            )
        self.outdated = True


class EvaluationNames(LoopNames):
    """What the loops have that take one loader after the other."""

    feeds: list[Feed] | None

    def _all_feeds(self) -> list[Feed]:
        return self.feeds or []

    @property
    def num_batches(self) -> list[int | float]:
        """Batches of each loader."""
        return [feed.num_batches for feed in self._all_feeds()]

    @property
    def max_batches(self) -> list[int | float]:
        """Batches of each loader."""
        return self.num_batches

    @property
    def num_dataloaders(self) -> int:
        """Number of loaders."""
        return len(self._all_feeds())

    @property
    def skip(self) -> bool:
        """Whether there is nothing to run on."""
        return not any(self.num_batches)


class FitNames(LoopNames):
    """What the training loop has; ``epoch_loop`` is the same object, so each name is found in either place."""

    stage = "train"
    feed: Feed | None
    batch_progress: Progress
    epoch_progress: Progress
    num_batches: int | float
    batches_that_stepped: int
    global_step: int
    step_at_epoch_start: int
    closes: bool
    resumed: bool

    over: Callable[..., bool]
    load_data: Callable[[], None]
    drop_data: Callable[[], None]

    def _all_feeds(self) -> list[Feed]:
        return [] if self.feed is None else [self.feed]

    def setup_data(self) -> None:
        """Asks for the training data if they are not there, or were outdated by ``_combined_loader = None``.

        In the midst of an epoch the data under way stay; the next epoch asks for new ones.
        """
        epochs = self.epoch_progress.current
        if self.outdated and epochs.started == epochs.processed:
            self.drop_data()
        self.load_data()

    @property
    def epoch_loop(self) -> Self:
        """The loop over the batches of an epoch, which is this one."""
        return self

    @property
    def done(self) -> bool:
        """Whether no further epoch is to be trained."""
        return self.over(tell=False)

    @property
    def skip(self) -> bool:
        """Whether there is nothing to train on, or no further epoch to be trained."""
        return self.done

    @property
    def max_batches(self) -> int | float:
        """Batches of an epoch; infinity if not known."""
        return self.num_batches

    @property
    def batch_idx(self) -> int:
        """Index in the epoch of the batch under way, -1 before any."""
        return self.batch_progress.current.ready - 1

    @property
    def total_batch_idx(self) -> int:
        """Index of the batch under way over all epochs, -1 before any."""
        return self.batch_progress.total.ready - 1

    @property
    def _batches_that_stepped(self) -> int:
        return self.batches_that_stepped

    @_batches_that_stepped.setter
    def _batches_that_stepped(self, count: int) -> None:
        self.batches_that_stepped = count

    @property
    def restarting(self) -> bool:
        """Whether the run goes on in the middle of an epoch, and has not begun to."""
        return self.resumed

    def _should_accumulate(self) -> bool:
        return not self.closes

    @property
    def automatic_optimization(self) -> SimpleNamespace:
        """Optimizer steps of automatic optimisation: ``optim_progress.optimizer.step`` (``total``, ``current``)."""
        counts = self.trainer.lightning_module.automatic_optimization
        step = SimpleNamespace(
            total=StepCounts(self, 0, counts), current=StepCounts(self, self.step_at_epoch_start, counts)
        )
        progress = SimpleNamespace(optimizer=SimpleNamespace(step=step), optimizer_steps=step.total.completed)
        return SimpleNamespace(optim_progress=progress)

    @property
    def manual_optimization(self) -> SimpleNamespace:
        """Optimizer steps of manual optimisation: ``optim_step_progress``, where ``current`` spans the epochs, too."""
        counts = not self.trainer.lightning_module.automatic_optimization
        progress = SimpleNamespace(total=StepCounts(self, 0, counts), current=StepCounts(self, 0, counts))
        return SimpleNamespace(optim_step_progress=progress)


class StepCounts:
    """Optimizer steps since ``start``; setting them sets the loop's ``global_step``.

    Args:
        fit: The loop that has counted them.
        start: Steps done before.
        counts: Whether the module optimises this way; if not, there are none.
    """

    def __init__(self, fit: FitNames, start: int, counts: bool) -> None:
        self._fit, self._start, self._counts = fit, start, counts

    @property
    def completed(self) -> int:
        """Steps done."""
        return self._fit.global_step - self._start if self._counts else 0

    @completed.setter
    def completed(self, count: int) -> None:
        if self._counts:
            self._fit.global_step = self._start + count

    @property
    def ready(self) -> int:
        """Steps done, as none is counted before."""
        return self.completed


class Results(Mapping[str, "Entry"]):
    """What was logged in a phase: "<hook>.<name>" (of several loaders with ".<loader>") -> entry.

    Args:
        book: Where it was logged.
        phase: "train", "validate" or "test".
    """

    def __init__(self, book: Book, phase: str) -> None:
        self._book, self.training = book, phase == "train"
        self._entries = {_key(page, name): entry for page in book.pages(phase) for name, entry in page.items()}

    def __getitem__(self, key: str) -> Entry:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def result_metrics(self) -> list[Entry]:
        """The entries."""
        return list(self._entries.values())

    @property
    def batch(self) -> Any:
        """The batch under way."""
        return self._book.batch

    @property
    def batch_size(self) -> int | None:
        """Its size, if it was needed already."""
        return self._book.batch_size

    @property
    def dataloader_idx(self) -> int | None:
        """Which of several loaders it comes from."""
        return self._book.dataloader_idx


def _key(page: Page, name: str) -> str:
    return ".".join([page.hook, name] + ([] if page.loader is None else [str(page.loader)]))
