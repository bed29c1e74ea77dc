"""The learning-rate range test: train for some steps with a rate that grows, and look at the loss.

After L. N. Smith, "Cyclical Learning Rates for Training Neural Networks" (2017).
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch

from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException
from fulmen.extras import available
from fulmen.ranks import rank_zero_info, rank_zero_only, rank_zero_warn
from fulmen.tuner.probe import Task, on_the_bench
from fulmen.utilities.parsing import holders_of, set_value

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["MODES", "attribute_of_lr", "check_mode", "find_learning_rate"]

MODES = ("linear", "exponential")
SMOOTHING = 0.98

log = logging.getLogger("fulmen")


class _LRFinder:
    """What a learning-rate range test found.

    Args:
        mode: "exponential" or "linear": how the rate grew.
        lr_min: The first rate.
        lr_max: The last rate.
        num_training: Steps that were asked for; there are fewer results if the loss grew too much.

    Attributes:
        results: "lr" and "loss" (smoothed), a list each, one entry for each step.
    """

    def __init__(self, mode: str, lr_min: float, lr_max: float, num_training: int) -> None:
        self.mode = mode
        self.lr_min = lr_min
        self.lr_max = lr_max
        self.num_training = num_training
        self.results: dict[str, list[float]] = {"lr": [], "loss": []}
        self._optimal_idx: int | None = None

    def rate(self, step: int) -> float:
        """The rate of step ``step``, counted from 0."""
        if step == 0:
            return self.lr_min
        fraction = (step + 1) / self.num_training
        if self.mode == "exponential":
            return float(self.lr_min * (self.lr_max / self.lr_min) ** fraction)
        return self.lr_min + (self.lr_max - self.lr_min) * fraction

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """The rate at which the loss fell most steeply: where its derivative by the rate is least.

        Args:
            skip_begin: So many steps at the start are not looked at, where the smoothed loss still swings.
            skip_end: So many steps at the end are not looked at, where training may have come apart already.

        Returns:
            The rate; None, with an error record, if fewer than two finite points are left.
        """
        stop = len(self.results["loss"]) - skip_end
        points = [place for place in range(skip_begin, stop) if math.isfinite(self.results["loss"][place])]
        if len(points) < 2:
            self._optimal_idx = None
            _report_too_few(len(points), len(self.results["loss"]), skip_begin, skip_end)
            return None
        rates, losses = (
            torch.tensor([self.results[name][place] for place in points], dtype=torch.float64)
            for name in ("lr", "loss")
        )
        slope = torch.gradient(losses, spacing=(rates,))[0]
        self._optimal_idx = points[int(slope.argmin())]
        return self.results["lr"][self._optimal_idx]

    def plot(self, suggest: bool = False, show: bool = False, ax: Any = None) -> Any:
        """Draws the loss over the rate.

        Args:
            suggest: Whether the suggested rate is marked.
            show: Whether the figure is shown at once.
            ax: The matplotlib axes to draw on; None for a new figure.

        Returns:
            The figure.

        Raises:
            MisconfigurationException: matplotlib is not installed.
        """
        if ax is None:
            ax = _new_axes()
        rates, losses = self.results["lr"], self.results["loss"]
        ax.plot(rates, losses)
        if self.mode == "exponential":
            ax.set_xscale("log")
        ax.set_xlabel("Learning rate")
        ax.set_ylabel("Loss")
        if suggest and self.suggestion() is not None and self._optimal_idx is not None:
            ax.plot(rates[self._optimal_idx], losses[self._optimal_idx], marker="o", markersize=10, color="red")
        if show:
            _pyplot().show()
        return ax.figure


def _report_too_few(left: int, total: int, skip_begin: int, skip_end: int) -> None:
    rank_zero_only(log.error)(
        f"No learning rate can be suggested: of {total} steps {left} finite ones are left without the first"
        f" {skip_begin} and the last {skip_end}, and two are needed. Take more steps (`num_training`), skip fewer"
        " (`suggestion(skip_begin=0)`), or let the loss grow further (`early_stop_threshold=None`)."
    )


def _pyplot() -> Any:
    if not available("matplotlib"):
        raise MisconfigurationException("`plot` needs matplotlib, which is not installed. Type: pip install matplotlib")
    import importlib

    return importlib.import_module("matplotlib.pyplot")


def _new_axes() -> Any:
    return _pyplot().subplots()[1]


class _RangeTest(Callback):
    """Sets the rate of each step and writes down its loss; ends the run when the loss has grown too much.

    Args:
        finder: Knows the rates, and gets the results.
        early_stop_threshold: The run ends when the smoothed loss is so many times its least value; None: never.
    """

    def __init__(self, finder: _LRFinder, early_stop_threshold: float | None) -> None:
        self.finder = finder
        self.threshold = early_stop_threshold
        self.steps = 0
        self._window: list[Any] = []
        self._average = 0.0
        self._best = math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first rate is set."""
        if len(trainer.optimizers) > 1:
            raise MisconfigurationException(
                f"The learning-rate finder needs one optimizer; `configure_optimizers` returned"
                f" {len(trainer.optimizers)}."
            )
        self._set_rate(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collects the losses of a window of accumulated batches; at its end the step is over."""
        if batch is None:
            return
        self._window.append(outputs.get("loss"))
        if not trainer.fit_loop.closes:
            return
        losses, self._window = self._window, []
        loss = None
        if all(each is not None for each in losses):
            # each was divided by the size of a full window, and the epoch's last one may be shorter
            loss = sum(float(each) for each in losses) * trainer.accumulate_grad_batches / len(losses)
        self._write_down(_of_all(loss, trainer))
        self.steps += 1
        if self._has_grown() or self.steps >= self.finder.num_training:
            trainer.should_stop = True
        else:
            self._set_rate(trainer)

    def _set_rate(self, trainer: Trainer) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.finder.rate(self.steps)

    def _write_down(self, loss: float | None) -> None:
        """The exponential moving average of the losses; a step without a loss leaves it as it is."""
        results = self.finder.results
        results["lr"].append(self.finder.rate(self.steps))
        if loss is None:
            results["loss"].append(math.nan)
            return
        self._average = SMOOTHING * self._average + (1 - SMOOTHING) * loss
        smoothed = self._average / (1 - SMOOTHING ** (self.steps + 2))
        results["loss"].append(smoothed)
        self._best = min(self._best, smoothed)

    def _has_grown(self) -> bool:
        if self.threshold is None or self.steps < 2 or math.isinf(self._best):
            return False
        if math.isnan(self._average):
            return True
        # for a loss above 0 this is threshold * best; below 0 that would be a limit under the best loss itself
        limit = self._best + (self.threshold - 1) * abs(self._best)
        return self.finder.results["loss"][-1] > limit


def _of_all(loss: float | None, trainer: Trainer) -> float | None:
    """The mean of the losses of all processes, which all have to stop at the same step."""
    if trainer.world_size == 1:
        return loss
    value = torch.tensor(math.nan if loss is None else loss, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(value))


def find_learning_rate(
    task: Task,
    min_lr: float = 1e-8,
    max_lr: float = 1,
    num_training: int = 100,
    mode: str = "exponential",
    early_stop_threshold: float | None = 4.0,
    update_attr: bool = False,
    attr_name: str = "",
) -> _LRFinder | None:
    """Runs the test; the arguments are those of ``Tuner.lr_find``.

    Args:
        task: A fit.
        min_lr: See there.
        max_lr: See there.
        num_training: See there.
        mode: See there.
        early_stop_threshold: See there.
        update_attr: See there.
        attr_name: See there.

    Returns:
        What was found; None in a fast_dev_run.
    """
    check_mode(mode)
    _check_range(min_lr, max_lr, num_training, mode)
    if task.trainer.fast_dev_run:
        rank_zero_warn("The learning-rate finder does nothing in a `fast_dev_run`.")
        return None
    attribute = attribute_of_lr(task, attr_name) if update_attr else None
    finder = _LRFinder(mode, min_lr, max_lr, num_training)
    test = _RangeTest(finder, early_stop_threshold)
    # an epoch is one step at least, so that the run ends after so many, whatever the module does
    limits = {"max_epochs": num_training, "max_steps": num_training if task.module.automatic_optimization else -1}
    with on_the_bench(task) as bench, bench.probe(test, limit_val_batches=0, **limits) as probe:
        probe.run()
    if not test.steps:
        raise MisconfigurationException(
            "The learning-rate finder could not train a single step. Is the train dataloader empty,"
            f" `limit_train_batches` 0 (it is {task.trainer.limit_train_batches}), or does `on_train_batch_start`"
            " return -1?"
        )
    if attribute is not None and (rate := finder.suggestion()) is not None:
        for holder in holders_of(attribute, task.module, task.datamodule):
            set_value(holder, attribute, rate)
        rank_zero_info(f"Learning rate set to {rate}.")
    return finder


def check_mode(mode: str) -> None:
    """Refuses an unknown mode.

    Raises:
        ValueError: It is one.
    """
    if mode not in MODES:
        raise ValueError(f"`mode={mode!r}` is not known. Type one of: {', '.join(map(repr, MODES))}")


def _check_range(min_lr: float, max_lr: float, num_training: int, mode: str) -> None:
    if not 0 <= min_lr < max_lr or (min_lr == 0 and mode == "exponential"):
        raise MisconfigurationException(
            f"The learning-rate finder goes from `min_lr={min_lr}` to `max_lr={max_lr}`; expected 0 < min_lr < max_lr."
        )
    if num_training < 1:
        raise MisconfigurationException(f"The learning-rate finder needs 1 step at least, got {num_training}.")


def attribute_of_lr(task: Task, attr_name: str = "") -> str:
    """The attribute that holds the learning rate: the one named, else ``lr`` or ``learning_rate``.

    Raises:
        AttributeError: There is none in the module, the datamodule and the hyperparameters of both.
    """
    names = [attr_name] if attr_name else ["lr", "learning_rate"]
    for name in names:
        if holders_of(name, task.module, task.datamodule):
            return name
    looked_for = " nor ".join(map(repr, names))
    raise AttributeError(
        f"The learning-rate finder found neither {looked_for} in `{type(task.module).__name__}`, its datamodule, or"
        " their hyperparameters. Name the attribute (`attr_name='...'`), or only look (`update_attr=False`)."
        if not attr_name
        else f"The learning-rate finder found no {attr_name!r} in `{type(task.module).__name__}`, its datamodule, or"
        " their hyperparameters. Correct `attr_name`, or only look (`update_attr=False`)."
    )
