"""The evaluation loop: validate and test are one function under two names."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import nn

from fulmen.loops.draws import Exhausted, batches_for, drawing
from fulmen.loops.names import BatchProgress, EvaluationNames
from fulmen.loops.routing import route
from fulmen.loops.signature import (
    requires_dataloader_idx,
    takes_batch_idx,
    takes_dataloader_idx,
    takes_dataloader_iter,
)
from fulmen.tree import to_scalars

if TYPE_CHECKING:
    from fulmen.data.feed import Feed
    from fulmen.entry import Entry
    from fulmen.trainer import Trainer


class EvaluationLoop(EvaluationNames):
    """Runs a module over evaluation data and publishes its metrics.

    Args:
        trainer: Whose run it is.
        stage: "validate" or "test".
        own: Whether the loop is a run of its own, and not the validation inside fit.

    Attributes:
        feeds: One for each loader (after ``load_data``); None before.
        feed_states: What the feeds go on from, in a resumed run.
        batch_progress: Counts of batches.
    """

    def __init__(self, trainer: Trainer, stage: str, own: bool = False) -> None:
        self.trainer, self.stage, self.own = trainer, stage, own
        self.name = {"validate": "validation"}.get(stage, stage)
        self.feeds: list[Feed] | None = None
        self.several = False
        self.feed_states: list[dict[str, Any]] | None = None
        self.batch_progress = BatchProgress(self)
        self.is_last_batch = False
        self._seen: dict[int, int] = {}
        self._loaded_at_epoch = 0

    def run(self, limit: float | None = None) -> list[dict[str, float]]:
        """One pass over all loaders, with the hooks around it.

        Args:
            limit: So many batches of each loader at most, for the sanity check.

        Returns:
            For each loader the metrics that were logged by epoch, as Python numbers; inside fit, where nobody asks
            for them, nothing.
        """
        trainer, hooks, book = self.trainer, self.trainer.hooks, self.trainer.book
        self.load_data()
        assert self.feeds is not None
        if not trainer.strategy.any_batches(any(self.num_batches)):
            trainer.fit_loop.validation_pending = False
            return []
        modes = [(part, part.training) for part in trainer.lightning_module.modules()]
        self.call("model_eval")
        self.call("start")
        self.call("epoch_start")
        self.batch_progress.begin()
        step = self.bind_step()
        for loader, feed in enumerate(self.feeds):
            book.dataloader_idx = loader if self.several else None
            self.pass_over(loader, feed, step, limit)
            if self.several:
                book.end_loader(self.stage)
        book.dataloader_idx = book.batch = None
        trainer.fit_loop.validation_pending = False
        book.end(self.stage)
        self.call("epoch_end")
        entries = book.publish(self.stage)
        trainer.log_epoch(entries, trainer.logging_step)
        self.call("end")
        if getattr(hooks, f"on_{self.name}_model_train"):
            self.call("model_train")
        else:
            restore_modes(modes)
        book.clear(self.stage)
        return results_of(entries, len(self.feeds)) if self.own else []

    def pass_over(self, loader: int, feed: Feed, step: Callable[..., Any], limit: float | None) -> None:
        """Evaluates the batches of one loader."""
        trainer, book = self.trainer, self.trainer.book
        starts = getattr(trainer.hooks, f"on_{self.name}_batch_start")
        ends = getattr(trainer.hooks, f"on_{self.name}_batch_end")
        where = (loader,) if self.several else ()
        page = book.page_of(f"{self.name}_step", book.dataloader_idx)
        counts = self.batch_progress.current
        own = getattr(trainer.lightning_module, f"{self.name}_step")
        batches = batches_for(own, feed, trainer.current_epoch, loader)
        if limit is not None and limit != float("inf"):
            batches = islice(batches, int(limit))
        if trainer.strategy.needs_equal_batches:
            batches = trainer.strategy.in_step(batches, min(feed.num_batches, float("inf") if limit is None else limit))
        logs = trainer.logs_evaluation
        for index, batch in enumerate(batches):
            counts.ready += 1
            book.batch, book.batch_size = batch, None
            book.stamp += 1
            self.is_last_batch = feed.is_last and loader == len(self.feeds or ()) - 1
            for call in starts:
                call(batch, index, *where)
            counts.started += 1
            book.page = page
            try:
                outputs = step(batch, index, *where)
            except Exhausted:
                break
            counts.processed += 1
            for call in ends:
                call(outputs, batch, index, *where)
            counts.completed += 1
            if logs:
                seen = self._seen.get(loader, 0)
                trainer.log_step(self.stage, seen)
                self._seen[loader] = seen + 1
            if trainer.received_sigterm and not self.is_last_batch:
                trainer.leave_on_signal()

    def forget_seen(self) -> None:
        """Starts the step counters of the loggers from zero."""
        self._seen.clear()

    def call(self, moment: str) -> None:
        """Calls everyone who listens on ``on_<validation|test>_<moment>``."""
        self.trainer.hooks.call(f"on_{self.name}_{moment}")

    def bind_step(self) -> Callable[..., Any]:
        """The step with its precision and strategy around it, taking the arguments which the loop gives."""
        trainer, module = self.trainer, self.trainer.lightning_module
        own: Callable[..., Any] = getattr(module, f"{self.name}_step")
        check_dataloader_idx(module, self.name, self.several)
        strategy = trainer.strategy
        context = "val_step_context" if self.name == "validation" else "test_step_context"
        step = trainer.precision_plugin.wrap_forward(strategy.wrap_step(own), context)
        step = route(strategy, f"{self.name}_step", step)
        if takes_dataloader_iter(own):
            return drawing(step)
        if takes_batch_idx(own):
            return step
        return lambda batch, batch_idx, *where: step(batch, *where)

    # ------------------------------------------------------------------------------------------------ data

    def load_data(self) -> None:
        """Asks for the loaders if they are not there yet, or again when ``reload_dataloaders_every_n_epochs`` says
        so, or somebody outdated them.
        """
        every = self.trainer.reload_dataloaders_every_n_epochs
        if self.outdated or (every and self.trainer.current_epoch - self._loaded_at_epoch >= every):
            self.drop_data()
        if self.feeds is None:
            self.feeds, self.several = self.trainer.data.evaluation_feeds(self.stage, self.own)
            self._loaded_at_epoch = self.trainer.current_epoch
            for feed, state in zip(self.feeds, self.feed_states or (), strict=False):
                feed.continue_after(state)
            self.feed_states = None

    def close_data(self) -> None:
        """Ends the feeds' workers; what was fed can still be read."""
        for feed in self.feeds or ():
            feed.close()

    def drop_data(self) -> None:
        """Closes the feeds; the next use asks for the data again."""
        for feed in self.feeds or ():
            feed.close()
        self.feeds, self.outdated = None, False

    def setup_data(self) -> None:
        """As ``load_data``, but in the midst of an evaluation the loaders under way stay."""
        if not self.trainer.evaluating:
            self.load_data()


def check_dataloader_idx(module: nn.Module, stage: str, several: bool) -> None:
    """``dataloader_idx`` must be a parameter with several loaders, and must not be required with one."""
    for name in (f"{stage}_step", f"on_{stage}_batch_start", f"on_{stage}_batch_end"):
        hook = getattr(module, name)
        if several and not takes_dataloader_idx(hook) and not takes_dataloader_iter(hook):
            raise RuntimeError(
                f"There are several dataloaders, but `{name}` does not take `dataloader_idx`. Write"
                f" `def {name}(self, ..., batch_idx, dataloader_idx=0)`."
            )
        if not several and requires_dataloader_idx(hook):
            raise RuntimeError(
                f"There is one dataloader, but `{name}` requires `dataloader_idx`. Give it a default:"
                f" `def {name}(self, ..., batch_idx, dataloader_idx=0)`."
            )


def restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    """Puts each module back to training or eval mode, one by one."""
    for part, training in modes:
        part.training = training


def results_of(entries: list[Entry], num_loaders: int) -> list[dict[str, float]]:
    """The metrics of each loader, and in each of them those that belong to none."""
    logged = [entry for entry in entries if entry.logger]
    values = to_scalars({str(place): entry.result for place, entry in enumerate(logged)})
    results: list[dict[str, float]] = [{} for _ in range(num_loaders)]
    for place, entry in enumerate(logged):
        for loader, result in enumerate(results):
            if entry.loader is None or entry.loader == loader:
                result[entry.epoch_key] = values[str(place)]
    return results
