"""The training loop: run -> epoch -> batch, top to bottom.

```
run                                   once
    on_train_start
    epoch                             until an epoch, step or time limit, or should_stop
        on_train_epoch_start
        for batch in feed:
            on_train_batch_start
            step(batch)               training_step, zero_grad, backward, clip, update   (loops/step.py)
            schedulers by step; after the last batch those by epoch
            on_train_batch_end
            metrics of the step to the loggers
            validation, when due      on_validation_*                                    (loops/evaluate.py)
        on_train_epoch_end            early stopping and checkpoints last
        metrics of the epoch to the loggers
    on_train_end
```

SIGTERM and Ctrl-C end the run where ``after_batch`` looks at ``signals.received``, a second Ctrl-C wherever it is.
Neither ``on_train_end`` nor ``on_fit_end`` is called then: the exception leaves the loop as any other, and
``Trainer._run`` calls ``on_exception``, finalizes the loggers as failed and ends the process with status 1 (Ctrl-C) or
143 (SIGTERM).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from fulmen.errors import MisconfigurationException, PossibleUserWarning
from fulmen.fabric.seed import restore_random
from fulmen.loops.draws import Exhausted, batches_for
from fulmen.loops.evaluate import EvaluationLoop
from fulmen.loops.names import BatchProgress, FitNames
from fulmen.loops.schedulers import Schedulers
from fulmen.loops.signature import takes_dataloader_iter
from fulmen.loops.step import Step, choose_step
from fulmen.progress import Counts, Progress
from fulmen.ranks import WarningCache, rank_zero_info, rank_zero_warn
from fulmen.reach import warn_never_due
from fulmen.states import RestartStage, RunningStage
from fulmen.trigger import Every

if TYPE_CHECKING:
    from fulmen.data.feed import Feed
    from fulmen.trainer import Trainer


class FitLoop(FitNames):
    """Trains a module until a limit is reached.

    Attributes:
        max_epochs: Epochs at most; -1 for no limit; None until a fit resolves it.
        min_epochs: Epochs at least, also if something asks to stop.
        max_steps: Optimizer steps at most; -1 for no limit.
        min_steps: Optimizer steps at least, also if something asks to stop.
        global_step: Optimizer steps done.
        batches_that_stepped: Batches with an optimizer step; the x axis of the loggers.
        epoch_progress: Counts of epochs.
        batch_progress: Counts of batches.
        closes: Whether the batch under way closes its window of accumulated batches.
        updates: Whether batches are trained on. False for an epoch that only runs forward: there no window closes, and
            no step is counted or logged. ``rebind`` has to follow a change.
        val_loop: The validation inside fit.
        restart_stage: Where it went on, if it was restored from a checkpoint.
    """

    step: Step

    def __init__(
        self, trainer: Trainer, max_epochs: int | None, min_epochs: int | None, max_steps: int, min_steps: int | None
    ) -> None:
        self.trainer = trainer
        self.max_epochs, self.min_epochs = max_epochs, min_epochs
        self.max_steps, self.min_steps = max_steps, min_steps
        self.val_loop = EvaluationLoop(trainer, "validate")
        self.epoch_progress = Progress()
        self.batch_progress = BatchProgress(self)
        self.global_step = 0
        self.batches_that_stepped = 0
        self.begun = (0, self.batch_progress.current)
        self.closes = self.updates = True
        self.feed: Feed | None = None
        self.num_batches: int | float = float("inf")
        self.schedulers = Schedulers(trainer, [])
        self.last_validation = 0.0
        self.validation_pending: bool | None = False
        self.batch_pending = self.plateau_pending = False
        self.step_at_epoch_start = 0
        self.schedulers_before = 0
        self.scheduler_steps_at_epoch_start = 0
        self.resumed = self.ended_on_last = self.metrics_unknown = False
        self.restart_stage: str = RestartStage.NONE
        self.random_state: dict[str, Any] | None = None
        self.samples_before_epoch = 0
        self.watched: dict[str, int] = {}
        self._feed_state: dict[str, Any] | None = None
        self._loaded_at_epoch = 0
        self._told_to_go_on = False
        self._warned = WarningCache()

    # ------------------------------------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Trains until a limit is reached."""
        trainer = self.trainer
        if trainer.limit_train_batches:
            self.load_data()
        else:
            self.num_batches = 0
        self.schedulers = Schedulers(trainer, trainer.lr_scheduler_configs, self.schedulers_before)
        if self.plateau_pending:
            self.plateau_pending = False
            self.schedulers.after_epoch(self.current_epoch - 1)
        if self.over():
            self.tell_nothing_is_left()
            return
        self.step = self.bind_step()
        self.last_validation = trainer.clock.now(fresh=True)
        self.watched = {}
        for every in trainer.watched_triggers():
            self.watch(every)
        if self.validates_in(self.current_epoch):
            self.val_loop.load_data()
        self.warn_eval_mode()
        warn_never_due(trainer)
        with torch.enable_grad():
            trainer.hooks.call("on_train_start")
            while not self.over():
                self.epoch()
            trainer.hooks.call("on_train_end")
        self.schedulers_before = self.schedulers.steps

    def epoch(self) -> None:
        """Trains on the batches of one epoch."""
        trainer, book = self.trainer, self.trainer.book
        batches = self.begin_epoch()
        schedulers = self.schedulers
        counts, feed, updates = self.batch_progress.current, self.feed, self.updates
        assert feed is not None
        for batch in batches:
            index = counts.ready
            counts.ready += 1
            book.batch, book.batch_size = batch, None
            book.stamp += 1
            self.closes = updates and (feed.is_last or (index + 1) % trainer.accumulate_grad_batches == 0)
            skip = False
            for call in trainer.hooks.on_train_batch_start if batch is not None else ():
                if call(batch, index) == -1 and trainer.hooks.may_skip(call):
                    skip = True
            if skip:  # what is left of the epoch counts as done with
                feed.is_last, self.closes = True, updates
                schedulers.after_batch(index, updates, is_last=True)
                break
            counts.started += 1
            try:
                outputs = self.step.train(batch, index) if batch is not None else None
            except Exhausted:
                schedulers.after_batch(index, closes=False, is_last=True)
                break
            if batch is None:
                self.warn_no_batch(index)
            counts.processed += 1
            if schedulers.by_batch:
                schedulers.after_batch(index, self.closes, feed.is_last)
            for call in trainer.hooks.on_train_batch_end:
                call(outputs, batch, index)
            counts.completed += 1
            self.after_batch(index)
            maybe = trainer.should_stop or self.global_step >= self.max_steps >= 0 or trainer.max_count is not None
            if maybe and self.epoch_ends_early():
                break
        self.end_epoch()

    def begin_epoch(self) -> Iterator[Any]:
        """Starts an epoch, or goes on with the one a checkpoint was taken in; returns its batches."""
        trainer = self.trainer
        if self.resumed:
            self.resumed = False
            self.load_data()
            batches = self._start_feed()
            self._restore_random()
            self.begun = (self.batch_progress.base.ready, self.batch_progress.current)
            if self.batch_pending:
                self.finish_batch(self.batch_progress.current.processed - 1)
            if self.epoch_ends_early():
                return iter(())
            return batches
        self._restore_random()
        self.metrics_unknown = False
        self.reload_data()
        self.begun = (self.batch_progress.total.ready, self.batch_progress.begin())
        self.val_loop.batch_progress.forget_total()
        self.step_at_epoch_start = self.global_step
        self.scheduler_steps_at_epoch_start = self.schedulers.steps
        self.epoch_progress.current.ready += 1
        trainer.hooks.call("on_train_epoch_start")
        self.epoch_progress.current.started += 1
        samples = self.count("samples")
        batches = self._start_feed()
        self.samples_before_epoch = samples
        return iter(()) if trainer.should_stop and self.epoch_ends_early() else batches

    def after_batch(self, index: int) -> None:
        """What follows a trained batch: its metrics to the loggers, validation, schedulers that wait for it."""
        trainer = self.trainer
        stepped = self.closes or (self.updates and not trainer.lightning_module.automatic_optimization)
        if stepped and trainer._loggers and trainer.logs_step(self.batches_that_stepped):
            trainer.log_step("train", self.batches_that_stepped)
        if self.validates and self.validation_due(index):
            self.validate()
        if self.schedulers.on_plateau:
            self.schedulers.after_validation(index, self.closes)
        if stepped:
            self.batches_that_stepped += 1
        for unit in self.watched:
            self.watched[unit] = self.count(unit)
        if trainer.signals.received:
            trainer.leave_on_signal()

    def warn_no_batch(self, index: int) -> None:
        """Says once that the loader gave None, for which there is no step."""
        self._warned.warn(
            f"The train dataloader gave None for batch {index}, which is passed over. If that is not meant, look at its"
            " `collate_fn`."
        )

    def finish_batch(self, index: int) -> None:
        """What still follows a batch in whose end a checkpoint was taken: the rest of ``after_batch``."""
        assert self.feed is not None
        self.batch_pending = False
        in_window = not self.feed.is_last and (index + 1) % self.trainer.accumulate_grad_batches
        self.closes = self.updates and not in_window
        stepped = self.closes or (self.updates and not self.trainer.lightning_module.automatic_optimization)
        self.batches_that_stepped -= stepped
        if self.validation_pending is None:
            self.validation_pending = self.validates and self.validation_due(index)
        if self.validation_pending:
            self.validate()
        self.schedulers.after_validation(index, self.closes)
        self.batches_that_stepped += stepped

    def end_epoch(self) -> None:
        """Ends an epoch: hooks, schedulers on a plateau, the epoch's metrics."""
        trainer, book = self.trainer, self.trainer.book
        book.batch = None
        self.epoch_progress.current.processed += 1
        book.end("train")
        trainer.hooks.call("on_train_epoch_end")
        if self.schedulers.on_plateau and self.consumed:
            self.schedulers.after_epoch(self.current_epoch)
        trainer.log_epoch(book.publish("train"), max(self.batches_that_stepped - 1, 0))
        book.clear("train")
        self.epoch_progress.current.completed += 1
        if trainer.received_sigterm and not self.done:
            trainer.leave_on_signal()

    def validate(self) -> None:
        """One validation run inside the epoch."""
        trainer = self.trainer
        self.validation_pending = True
        if self.closes:
            trainer.hooks.call("on_validation_model_zero_grad")
        trainer.state.stage = RunningStage.VALIDATING
        with torch.no_grad():
            self.val_loop.run()
        trainer.state.stage = RunningStage.TRAINING
        trainer.book.close()
        if trainer.val_check_seconds is not None:
            self.last_validation = trainer.clock.now(fresh=True)

    # ------------------------------------------------------------------------------------------------ when to stop

    def over(self, tell: bool = True) -> bool:
        """Whether no further epoch is to be trained; says why."""
        reason = None
        if self.num_batches == 0:
            reason = "there are no training batches"
        elif self.global_step >= self.step_limit and not self.resumed:  # the epoch is still to be ended
            reason = f"`max_steps={self.max_steps}` reached"
        elif self.max_epochs not in (None, -1) and self.epoch_progress.current.processed >= (self.max_epochs or 0):
            reason = f"`max_epochs={self.max_epochs}` reached"
        elif self.limit_reached():
            reason = f"`max_duration={self.trainer.max_count}` reached"
        elif self.trainer.should_stop and self.may_stop():
            reason = "something set `trainer.should_stop`"
        if reason is not None and tell:
            rank_zero_info(f"`Trainer.fit` stopped: {reason}.")
        return reason is not None

    def tell_nothing_is_left(self) -> None:
        """Says how to go on where all epochs were trained before this fit."""
        epochs = self.epoch_progress.current.processed
        if epochs and epochs == self.max_epochs:
            rank_zero_info(
                f"Nothing was trained, as {epochs} epochs were trained before. To go on raise the limit,"
                f" `trainer.fit_loop.max_epochs = {2 * epochs}`; to begin anew make a new Trainer,"
                " and give it no `ckpt_path`."
            )

    def epoch_ends_early(self) -> bool:
        """Whether the epoch ends before its batches do."""
        if self.global_step >= self.step_limit or self.limit_reached():
            return True
        if not self.trainer.should_stop:
            return False
        if self.may_stop():
            return True
        if not self._told_to_go_on:
            rank_zero_info(
                f"`trainer.should_stop` is set, but min_epochs={self.min_epochs} or min_steps={self.min_steps} is not"
                " reached yet: training goes on."
            )
            self._told_to_go_on = True
        return False

    def may_stop(self) -> bool:
        """Whether the minimum of epochs and steps is reached."""
        epochs = self.epoch_progress.current.processed >= (self.min_epochs or 0)
        return epochs and self.global_step >= (self.min_steps or 0)

    @property
    def step_limit(self) -> float:
        """``max_steps``, with infinity for no limit."""
        return float("inf") if self.max_steps == -1 else self.max_steps

    @property
    def current_epoch(self) -> int:
        """Completed epochs; inside epoch n it is n."""
        return self.epoch_progress.current.completed

    @property
    def consumed(self) -> bool:
        """Whether nothing is left of this epoch: all batches were trained on, or a hook skipped the rest."""
        assert self.feed is not None
        return self.feed.is_last

    # ------------------------------------------------------------------------------------------------ counts

    def count_begun(self) -> int:
        """How many batches have begun since the start of the fit; may be asked by another thread."""
        before, counts = self.begun
        return before + counts.ready

    def count(self, unit: str) -> int:
        """How many steps, batches, samples or epochs there have been since the start of the fit."""
        if unit == "samples":
            return self.samples_before_epoch + (self.feed.samples if self.feed is not None else 0)
        counts = {"steps": self.global_step, "batches": self.batch_progress.total.ready}
        return counts.get(unit, self.epoch_progress.current.processed)

    def watch(self, every: Every) -> None:
        """Has the loop keep the count that ``passed`` compares with; to be called before the epochs begin."""
        self.watched[every.unit] = self.count(every.unit)

    def passed(self, every: Every) -> bool:
        """Whether the batch under way has taken its count past a multiple of ``every``."""
        return self.count(every.unit) // every.interval > self.watched[every.unit] // every.interval

    def limit_reached(self) -> bool:
        """Whether a limit in batches or samples (``max_duration``) is reached."""
        limit = self.trainer.max_count
        return limit is not None and self.count(limit.unit) >= limit.interval

    # ------------------------------------------------------------------------------------------------ when to validate

    def validates_in(self, epoch: int) -> bool:
        """Whether an epoch has validations at all."""
        every = self.trainer.check_val_every_n_epoch
        return self.trainer.enable_validation and (every is None or (epoch + 1) % every == 0)

    def validation_follows(self, index: int) -> bool:
        """Whether batch ``index`` is validated after, as seen before that."""
        return self.validates and self.validation_due(index)

    def validation_due(self, index: int) -> bool:
        """Whether a validation follows batch ``index``."""
        trainer, feed = self.trainer, self.feed
        assert feed is not None
        if feed.is_last and self.step_draws:
            return True
        if trainer.should_stop and self.may_stop():
            return True
        if trainer.val_check_seconds is not None:
            return trainer.clock.now() - self.last_validation >= trainer.val_check_seconds
        if trainer.val_check_every is not None:
            return self.passed(trainer.val_check_every)
        if trainer.val_check_batch == float("inf"):
            return feed.is_last
        count = self.batch_progress.total.ready if trainer.check_val_every_n_epoch is None else index + 1
        return count % trainer.val_check_batch == 0

    # ------------------------------------------------------------------------------------------------ data

    def load_data(self) -> None:
        """Asks for the training data if they are not there yet."""
        if self.feed is None:
            trainer = self.trainer
            self.feed = trainer.data.feed("train")
            self.feed.is_last = self.ended_on_last
            self.num_batches = self.feed.num_batches
            self._loaded_at_epoch = self.current_epoch
            trainer.val_check_batch = trainer.data.resolve_val_check_batch(self.feed)
            trainer.data.warn_log_interval(self.feed.num_batches)
        if self._feed_state is not None:
            if self.resumed:
                self.feed.load_state_dict(self._feed_state)
            else:
                self.feed.continue_after(self._feed_state)
            self._feed_state = None

    def reload_data(self) -> None:
        """Asks for the data again when ``reload_dataloaders_every_n_epochs`` says so, or somebody outdated them."""
        every = self.trainer.reload_dataloaders_every_n_epochs
        if self.outdated or (every and self.current_epoch - self._loaded_at_epoch >= every):
            self.drop_data()
        self.load_data()
        self.validates = self.validates_in(self.current_epoch)

    def drop_data(self) -> None:
        """Closes the feed; the next use asks for the data again."""
        if self.feed is not None:
            self.ended_on_last = self.feed.is_last
            self.samples_before_epoch = self.count("samples")
            self.feed.close()
            self.feed = None
        self.outdated = False

    def close_data(self) -> None:
        """Ends the feed's workers; what was fed can still be read."""
        if self.feed is not None:
            self.feed.close()

    def bind_step(self) -> Step:
        """The kind of step this run needs, with everything it calls."""
        return choose_step(self.trainer, self.trainer.lightning_module, self)

    def rebind(self) -> None:
        """Binds the step again after hooks were assigned in the middle of a run."""
        if "step" in self.__dict__:
            self.step = self.bind_step()

    def _start_feed(self) -> Iterator[Any]:
        assert self.feed is not None
        self.validates = self.validates_in(self.current_epoch)
        if self.trainer.strategy.follow_trainable():
            self.rebind()
        return batches_for(self.trainer.lightning_module.training_step, self.feed, self.current_epoch)

    def _restore_random(self) -> None:
        if self.random_state is not None:
            restore_random(self.random_state)
            self.random_state = None

    def warn_eval_mode(self) -> None:
        """Says so if a part of the model would be trained in eval mode."""
        count = sum(not part.training for part in self.trainer.lightning_module.modules())
        if count:
            rank_zero_warn(
                f"{count} submodule(s) are in eval mode at the start of training, and stay so. If that is not meant,"
                " call `model.train()` before `fit`.",
                category=PossibleUserWarning,
            )

    # ------------------------------------------------------------------------------------------------ state

    def start_over(self) -> None:
        """Forgets how far the last epoch came, so that a fit that was stopped inside one begins a new one."""
        counts = self.epoch_progress.current
        counts.ready = counts.started = counts.processed = counts.completed
        self.resumed, self.restart_stage = False, RestartStage.NONE

    def load_position(self, state: dict[str, Any], manual: bool) -> None:
        """Goes to where a checkpoint was taken; the progress has been loaded before.

        Args:
            state: What ``position`` gave. Of a checkpoint that fulmen did not write: "loader_states", and "is_last",
                whether the last batch had been given.
            manual: Whether the module optimises manually.
        """
        epochs, batches = self.epoch_progress.current, self.batch_progress.current
        in_batch_end = batches.completed < batches.processed
        if state.get("is_last") and not in_batch_end:
            epochs.processed = epochs.ready  # there is nothing left of it but hooks, for which metrics are missing
        epochs.completed = epochs.processed
        self.resumed = epochs.ready > epochs.processed and batches.ready > 0
        if not self.resumed:
            epochs.ready = epochs.started = epochs.processed
        batches.ready = batches.started = batches.completed = batches.processed
        self.batches_that_stepped = self.batch_progress.total.processed if manual else self.global_step
        self.validation_pending = state.get("validation_pending")
        self.batch_pending = state.get("batch_pending", in_batch_end)
        self.plateau_pending = state.get("plateau_pending", False)
        self.samples_before_epoch = state.get("samples_before_epoch", 0)
        self._feed_state = state.get("feed")
        if self.resumed and self._feed_state is None:
            self._feed_state = {"epoch": self.current_epoch, "batches": batches.processed}
            self._feed_state["loader_states"] = state.get("loader_states")
        self.val_loop.feed_states = state.get("val_feeds")
        self.trainer.callback_metrics.update(state.get("metrics", {}))
        self.metrics_unknown = self.resumed and "metrics" not in state
        self.random_state = state.get("random")

    def position(self) -> dict[str, Any]:
        """Where the run is, beyond the counts: the position of the data, the metrics, and what is still to come."""
        trainer, epochs = self.trainer, self.epoch_progress.current
        counts: Counts = self.batch_progress.current
        in_batch_end = counts.completed < counts.processed
        validates = self.validation_pending
        if in_batch_end:
            validates = self.validation_follows(counts.processed - 1)
        in_epoch = epochs.processed < epochs.ready
        return {
            "validation_pending": validates,
            "samples_before_epoch": self.samples_before_epoch if in_epoch else self.count("samples"),
            "batch_pending": in_batch_end or (trainer.validating and trainer.state.fn == "fit"),
            "plateau_pending": epochs.completed < epochs.processed and self.feed is not None and self.consumed,
            "feed": self.feed.state_dict(used=None if self.step_draws else counts.processed)
            if self.feed is not None
            else None,
            "val_feeds": [feed.state_dict() for feed in self.val_loop.feeds or ()],
            "metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
        }

    @property
    def step_draws(self) -> bool:
        """Whether ``training_step`` draws its batches itself, so that a step may be of several."""
        return takes_dataloader_iter(self.trainer.lightning_module.training_step)

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch under way (or just done) is the epoch's last."""
        return self.ended_on_last if self.feed is None else self.feed.is_last

    validates = False


def resolve_epochs(trainer: Trainer) -> None:
    """Gives ``max_epochs`` and ``min_epochs`` their values if the user gave none."""
    fit = trainer.fit_loop
    if fit.max_epochs is None:
        if fit.max_steps == -1 and not trainer.has_time_limit:
            rank_zero_warn(
                "`Trainer(max_epochs=...)` is not set: training stops after 1000 epochs. Set it, to -1 for no limit.",
                category=PossibleUserWarning,
            )
            fit.max_epochs = 1000
        else:
            fit.max_epochs = -1
    if fit.min_epochs is None:
        fit.min_epochs = 1 if fit.min_steps else 0


def check_epoch_limit(trainer: Trainer) -> None:
    """A restored run must not be beyond its limit."""
    fit = trainer.fit_loop
    if fit.max_epochs not in (None, -1) and fit.current_epoch > (fit.max_epochs or 0):
        raise MisconfigurationException(
            f"The checkpoint was taken after {fit.current_epoch} epochs, but `Trainer(max_epochs={fit.max_epochs})`."
            f" Raise it to train further, e.g. `max_epochs={fit.current_epoch + 1}`."
        )
