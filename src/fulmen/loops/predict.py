"""The prediction loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fulmen.loops.draws import Exhausted, batches_for, drawing
from fulmen.loops.evaluate import check_dataloader_idx, restore_modes
from fulmen.loops.names import EvaluationNames
from fulmen.loops.routing import route
from fulmen.loops.signature import takes_batch_idx, takes_dataloader_iter
from fulmen.progress import Progress
from fulmen.ranks import WarningCache
from fulmen.tree import move

if TYPE_CHECKING:
    from fulmen.data.feed import Feed
    from fulmen.trainer import Trainer


class PredictionLoop(EvaluationNames):
    """Runs ``predict_step`` over data and collects what it returns.

    Attributes:
        return_predictions: Whether the outputs are returned.
        current_batch_indices: Which samples of the dataset are in the batch under way. Known only if a callback writes
            predictions, and the loader tells; else empty.
        epoch_batch_indices: For each loader the same of its batches so far, if a callback writes all at the end.
    """

    stage = "predict"

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.feeds: list[Feed] | None = None
        self.several = False
        self.return_predictions = True
        self.current_batch_indices: list[int] = []
        self.epoch_batch_indices: list[list[list[int]]] = []
        self.batch_progress = Progress()
        self._outputs: list[list[Any]] = []
        self._keeps = self._records = self._records_all = False
        self._warned = WarningCache()

    @property
    def predictions(self) -> list[Any]:
        """The outputs by batch, on the CPU; with several loaders one such list for each. Empty if none are kept."""
        return self._outputs if self.several or not self._outputs else self._outputs[0]

    def run(self) -> list[Any] | None:
        """One pass over all loaders, with the hooks around it.

        Returns:
            The outputs by batch; with several loaders one such list for each; None if there is nothing to return.
        """
        trainer = self.trainer
        self.feeds, self.several = trainer.data.evaluation_feeds("predict", True)
        if not trainer.strategy.any_batches(any(feed.num_batches for feed in self.feeds)):
            return None
        self._outputs = [[] for _ in self.feeds]
        self.ask_writers()
        modes = [(part, part.training) for part in trainer.lightning_module.modules()]
        trainer.hooks.call("on_predict_model_eval")
        trainer.hooks.call("on_predict_start")
        trainer.hooks.call("on_predict_epoch_start")
        self.batch_progress.begin()
        step = self.bind_step()
        for loader, feed in enumerate(self.feeds):
            trainer.book.dataloader_idx = loader if self.several else None
            self.pass_over(loader, feed, step)
        trainer.book.dataloader_idx = None
        trainer.hooks.call("on_predict_epoch_end")
        trainer.hooks.call("on_predict_end")
        restore_modes(modes)
        self.epoch_batch_indices = []
        if not self.return_predictions:
            self._outputs = []
            return None
        return self.predictions

    def ask_writers(self) -> None:
        """Finds out what is to be kept for the callbacks that write predictions."""
        from fulmen.callbacks.prediction_writer import BasePredictionWriter

        writers = [callback for callback in self.trainer.callbacks if isinstance(callback, BasePredictionWriter)]
        self._records = bool(writers)
        self._records_all = any(writer.interval.on_epoch for writer in writers)
        self._keeps = self.return_predictions or self._records_all
        self.current_batch_indices = []
        self.epoch_batch_indices = [[] for _ in self.feeds or ()]
        for feed in self.feeds or () if writers else ():
            feed.record_indices()

    def pass_over(self, loader: int, feed: Feed, step: Callable[..., Any]) -> None:
        """Predicts the batches of one loader."""
        trainer, hooks = self.trainer, self.trainer.hooks
        where = (loader,) if self.several else ()
        page = trainer.book.page_of("predict_step", trainer.book.dataloader_idx)
        counts = self.batch_progress.current
        batches = batches_for(trainer.lightning_module.predict_step, feed, trainer.current_epoch, loader)
        if trainer.strategy.needs_equal_batches:
            batches = trainer.strategy.in_step(batches, feed.num_batches)
        for index, batch in enumerate(batches):
            counts.ready += 1
            if self._records:
                self.note_indices(loader, feed)
            for call in hooks.on_predict_batch_start:
                call(batch, index, *where)
            counts.started += 1
            trainer.book.page = page
            try:
                outputs = step(batch, index, *where)
            except Exhausted:
                break
            counts.processed += 1
            if outputs is None:
                self._warned.warn("`predict_step` returned None. If that is not meant, return the predictions.")
            if self._keeps:
                self._outputs[loader].append(move(outputs, torch.device("cpu")))
            for call in hooks.on_predict_batch_end:
                call(outputs, batch, index, *where)
            counts.completed += 1
            if trainer.received_sigterm:
                trainer.leave_on_signal()

    def note_indices(self, loader: int, feed: Feed) -> None:
        """Takes down which samples the batch under way holds."""
        indices = feed.batch_indices
        if indices is None:
            self._warned.warn(
                f"Which samples are in a batch is not known for the predict loader {type(feed.loaders).__name__}:"
                " prediction writers get no `batch_indices`. They are known for a `DataLoader` over a map-style"
                " dataset, with `in_order=True`."
            )
        elif self._records_all:
            self.epoch_batch_indices[loader].append(indices)
        self.current_batch_indices = indices or []

    def bind_step(self) -> Callable[..., Any]:
        """The step with its precision and strategy around it."""
        trainer, module = self.trainer, self.trainer.lightning_module
        check_dataloader_idx(module, "predict", self.several)
        strategy = trainer.strategy
        step = strategy.wrap_step(module.predict_step)
        step = trainer.precision_plugin.wrap_forward(step, "predict_step_context")
        step = route(strategy, "predict_step", step)
        if takes_dataloader_iter(module.predict_step):
            return drawing(step)
        if takes_batch_idx(module.predict_step):
            return step
        return lambda batch, batch_idx, *where: step(batch, *where)

    def close_data(self) -> None:
        """Ends the feeds' workers; what was fed can still be read."""
        for feed in self.feeds or ():
            feed.close()

    def drop_data(self) -> None:
        """Closes the feeds."""
        for feed in self.feeds or ():
            feed.close()
        self.feeds = None
