"""The progress bar: drawn by rich on a terminal and in a notebook, plain lines anywhere else."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

from fulmen.callbacks.progress.display import Display, LineDisplay, Track
from fulmen.callbacks.progress.drawn import DrawnBar
from fulmen.callbacks.progress.progress_bar import known_total
from fulmen.terminal import can_redraw, make_console

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, Task, TaskID

    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["RichProgressBar", "RichProgressBarTheme"]

# After a drawing that took t seconds, the next one waits for at least this many times t: drawing takes 2 % at most.
# Reading metrics may wait for a device that is behind, which is not lost time: a second is the longest rest.
_REST = 50
_LONGEST_REST = 1.0
_COLUMNS = (
    "BatchesProcessedColumn",
    "CustomBarColumn",
    "CustomInfiniteTask",
    "CustomProgress",
    "CustomTimeColumn",
    "MetricsTextColumn",
    "ProcessingSpeedColumn",
)


@dataclass
class RichProgressBarTheme:
    """Styles of the bar's parts, as rich writes them: "green", "bold #6206E0", "dim underline", ...

    Attributes:
        description: The title.
        progress_bar: The bar.
        progress_bar_finished: The bar when it is full.
        progress_bar_pulse: The bar while the total is unknown.
        batch_progress: The count of batches.
        time: Time passed and left.
        processing_speed: Batches per second.
        metrics: The metrics.
        metrics_text_delimiter: What stands between two metrics.
        metrics_format: Format of floating-point metrics.
    """

    description: str = ""
    progress_bar: str = "#6206E0"
    progress_bar_finished: str = "#6206E0"
    progress_bar_pulse: str = "#6206E0"
    batch_progress: str = ""
    time: str = "dim"
    processing_speed: str = "dim underline"
    metrics: str = "italic"
    metrics_text_delimiter: str = " "
    metrics_format: str = ".3f"


class RichProgressBar(DrawnBar):
    """Shows training, validation, test and prediction: a bar on a terminal or in a notebook, plain lines in a log file.

    A batch costs a look at the clock. Metrics are read, and the bar is drawn, ten times a second at most, and less
    often where that would take more than 2 % of the time. What the program prints appears above the bar.

    Args:
        refresh_rate: The bar is drawn after multiples of this number of batches, and four times a second if they take
            longer. 0 switches it off.
        leave: Whether the bar of each epoch stays on the screen.
        theme: Styles of the bar.
        console_kwargs: Arguments of `rich.console.Console`, e.g. `{"stderr": True}`.

    Raises:
        MisconfigurationException: If `refresh_rate` is negative.

    Example::

        Trainer(callbacks=RichProgressBar(leave=True, theme=RichProgressBarTheme(metrics_format=".2e")))
    """

    def __init__(
        self,
        refresh_rate: int = 100,
        leave: bool = False,
        theme: RichProgressBarTheme = RichProgressBarTheme(),  # noqa: B008 - read, never changed
        console_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(refresh_rate, leave)
        self._console_kwargs = console_kwargs or {}
        self.theme = theme
        self._display: Display | None = None
        self._train: Track | None = None
        self._evaluation: Track | None = None
        self._due = self._overdue = 0.0

    listens = DrawnBar.listens  # what a class says about its hooks binds none of its subclasses

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """The columns of a bar; override it to have others. The metrics follow them, unless a column has them.

        Args:
            trainer: The trainer that runs.

        Returns:
            Columns of `rich.progress`. Fields of a task: `task.fields["metrics"]` is what `get_metrics` returned.
        """
        from fulmen.callbacks.progress.rich_display import default_columns

        return default_columns(self.theme)

    # ---------------------------------------------------------------------------------------------- the bars

    @property
    def progress(self) -> Progress | None:
        """The display of rich; None while nothing is shown, or plain lines are."""
        return getattr(self._display, "progress", None)

    @property
    def train_progress_bar_id(self) -> TaskID | None:
        """The training bar's number in `progress`."""
        return _number(self._train)

    @property
    def train_progress_bar(self) -> Task | None:
        """The training bar."""
        return self._task(self._train)

    @property
    def evaluation_progress_bar(self) -> Task | None:
        """The bar of the sanity check, validation, test or prediction that runs."""
        return self._task(self._evaluation)

    def _task(self, track: Track | None) -> Task | None:
        if self.progress is None or track is None:
            return None
        return next((task for task in self.progress.tasks if task.id == track.handle), None)

    @property
    def val_sanity_check_bar(self) -> Task | None:
        """The bar of the sanity check."""
        return self._task(self._evaluation_in("sanity_check"))

    @property
    def val_sanity_progress_bar_id(self) -> TaskID | None:
        """The number of the sanity check's bar in `progress`."""
        return _number(self._evaluation_in("sanity_check"))

    @property
    def val_progress_bar(self) -> Task | None:
        """The validation bar."""
        return self._task(self._evaluation_in("validate"))

    @property
    def val_progress_bar_id(self) -> TaskID | None:
        """The validation bar's number in `progress`."""
        return _number(self._evaluation_in("validate"))

    @property
    def test_progress_bar(self) -> Task | None:
        """The test bar."""
        return self._task(self._evaluation_in("test"))

    @property
    def test_progress_bar_id(self) -> TaskID | None:
        """The test bar's number in `progress`."""
        return _number(self._evaluation_in("test"))

    @property
    def predict_progress_bar_id(self) -> TaskID | None:
        """The prediction bar's number in `progress`."""
        return _number(self._evaluation_in("predict"))

    def _evaluation_in(self, stage: str) -> Track | None:
        return self._evaluation if self._trainer is not None and self._trainer.state.stage == stage else None

    def refresh(self, hard: bool = False) -> None:
        """Draw now, due or not.

        Args:
            hard: Draw even what was drawn at this position already, as after a change of the columns.
        """
        track = self._evaluation or self._train
        if track is not None and (hard or track.drawn != track.position):
            self._draw(track)

    # ---------------------------------------------------------------------------------------------- training

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new epoch begins."""
        self._begin_epoch(trainer, pl_module)

    def _begin_epoch(self, trainer: Trainer, pl_module: LightningModule) -> Track | None:
        if self.is_disabled:
            return None
        last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs - 1}"
        self._train = Track(
            f"Epoch {trainer.current_epoch}{last}",
            known_total(self.total_train_batches),
            partial(self.get_metrics, trainer, pl_module),
            position=trainer.fit_loop.batch_idx + 1,
            training=True,
        )
        self._open(self._train)
        return self._train

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch, and draws when it is time."""
        track = self._train
        if track is None:
            # An epoch that is resumed in its middle has no `on_train_epoch_start`.
            track = self._begin_epoch(trainer, pl_module)
            if track is None:
                return
        track.position = position = batch_idx + 1
        now = monotonic()
        if now < self._due or (now < self._overdue and position % self._refresh_rate):
            return
        self._draw(track)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch has ended, and its metrics are known."""
        if self._train is not None and self._display is not None:
            self._display.close(self._train)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last drawing."""
        self._train = None
        self._finish()

    # ---------------------------------------------------------------------------------------------- evaluation

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The bar of the sanity check is gone."""
        self._finish()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The evaluation has ended."""
        self._close_evaluation()

    on_test_end = on_predict_end = on_validation_end

    def _begin_evaluation(self, trainer: Trainer, dataloader_idx: int) -> None:
        self._current_eval_dataloader_idx = dataloader_idx
        title, batches, total = self._evaluated(trainer)
        if self._evaluation is not None and self._display is not None:
            self._display.close(self._evaluation)
        if isinstance(batches, list) and len(batches) > 1:
            title = f"{title} DataLoader {dataloader_idx}"
        self._evaluation = Track(
            title,
            known_total(total),
            partial(self._evaluation_metrics, trainer, trainer.lightning_module),
            inside=trainer.state.fn == "fit",
            quiet=trainer.sanity_checking or (trainer.state.fn == "fit" and trainer.is_last_batch),
        )
        self._open(self._evaluation)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the terminal back."""
        self._stop()

    def __getstate__(self) -> dict[str, Any]:
        # A display holds the terminal; the copy, in another process perhaps, opens its own.
        return self.__dict__ | {"_display": None, "_train": None, "_evaluation": None}

    # ---------------------------------------------------------------------------------------------- drawing

    def _evaluation_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[str, Any]:
        # Within training the metrics stand beside the training bar.
        return {} if trainer.state.fn == "fit" else self.get_metrics(trainer, pl_module)

    def _count(self, batch_idx: int) -> None:
        track = self._evaluation
        if track is None:
            return
        track.position = position = batch_idx + 1
        now = monotonic()
        if now < self._due or (now < self._overdue and position % self._refresh_rate):
            return
        self._draw(track)

    def _close_evaluation(self) -> None:
        if self._evaluation is not None and self._display is not None:
            self._display.close(self._evaluation)
        self._evaluation = None
        if self.trainer.state.fn != "fit":
            self._finish()

    def _open(self, track: Track) -> None:
        if self.is_disabled:
            return
        if self._display is None:
            self._display = self._new_display()
            self._due = self._overdue = 0.0
        self._display.open(track)
        if monotonic() >= self._due:
            self._draw(track)

    def _new_display(self) -> Display:
        if not can_redraw(self._stream()) and not self._console_kwargs.get("force_terminal"):
            return LineDisplay(self._stream())
        from fulmen.callbacks.progress.rich_display import RichDisplay, with_metrics

        console = make_console(**self._console_kwargs)
        columns = with_metrics(self.configure_columns(self.trainer), self.trainer, self.theme)
        return RichDisplay(console, columns, self._leave)

    def _stream(self) -> TextIO | None:
        if self._console_kwargs.get("stderr"):
            return sys.stderr
        stream: TextIO | None = self._console_kwargs.get("file")
        return stream

    def _draw(self, track: Track) -> None:
        display = self._display
        if display is None:
            return
        begin = monotonic()
        display.draw(track)
        end = monotonic()
        self._due = end + max(display.interval, min(_REST * (end - begin), _LONGEST_REST))
        self._overdue = max(self._due, end + display.patience)

    def _finish(self) -> None:
        if self._display is not None:
            self._display.finish()
        self._stop()

    def _stop(self) -> None:
        self._train = self._evaluation = None
        # After this no drawing is due until a display is opened.
        self._due = self._overdue = math.inf
        if self._display is not None:
            self._display.stop()
            self._display = None


def _number(track: Track | None) -> TaskID | None:
    return None if track is None else track.handle


def __getattr__(name: str) -> Any:
    # These are subclasses of rich's classes, and rich is imported only when it draws.
    if name in _COLUMNS:
        from fulmen.callbacks.progress import rich_display

        return getattr(rich_display, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
