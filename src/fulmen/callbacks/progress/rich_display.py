"""Progress on a terminal or in a notebook, drawn by rich. Imported only when such a display is opened."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Column
from rich.text import Text

from fulmen.callbacks.progress.display import Track, format_metrics, format_speed, format_time

if TYPE_CHECKING:
    from fulmen.callbacks.progress.rich_progress import RichProgressBarTheme
    from fulmen.trainer import Trainer

__all__ = [
    "BatchesProcessedColumn",
    "CustomBarColumn",
    "CustomInfiniteTask",
    "CustomProgress",
    "CustomTimeColumn",
    "MetricsTextColumn",
    "ProcessingSpeedColumn",
    "RichDisplay",
    "default_columns",
    "with_metrics",
]

_NARROWEST_BAR = 10
_UNLIMITED = 10_000


def _one_line() -> Column:
    return Column(no_wrap=True)


class CustomInfiniteTask(Task):
    """A task without an end: its total is infinite."""

    @property
    def time_remaining(self) -> float | None:
        """None: it is not known."""
        return None


class BatchesProcessedColumn(ProgressColumn):
    """Batches done and to do: "12/100", or "12/--" when the total is unknown."""

    def __init__(self, style: str | Style) -> None:
        super().__init__(_one_line())
        self.style = style

    def render(self, task: Task) -> RenderableType:
        """The column's cell."""
        total = "--" if task.total in (None, math.inf) else int(task.total)
        return Text(f"{int(task.completed)}/{total}", style=self.style)


class CustomBarColumn(BarColumn):
    """The bar itself; arguments are those of `rich.progress.BarColumn`."""

    def render(self, task: Task) -> ProgressBar:
        """The column's cell; without an end it pulses."""
        bar = super().render(task)
        bar.pulse = bar.pulse or task.total == math.inf
        return bar


class CustomTimeColumn(ProgressColumn):
    """Time passed and time left."""

    max_refresh = 0.5

    def __init__(self, style: str | Style) -> None:
        super().__init__(_one_line())
        self.style = style

    def render(self, task: Task) -> RenderableType:
        """The column's cell."""
        elapsed = task.finished_time if task.finished else task.elapsed
        left = task.time_remaining
        before = "-:--:--" if elapsed is None else format_time(elapsed)
        after = "-:--:--" if left is None else format_time(left)
        return Text(f"{before} • {after}", style=self.style)


class ProcessingSpeedColumn(ProgressColumn):
    """Batches per second."""

    def __init__(self, style: str | Style) -> None:
        super().__init__(_one_line())
        self.style = style

    def render(self, task: Task) -> RenderableType:
        """The column's cell."""
        return Text(format_speed(task.finished_speed or task.speed), style=self.style)


class MetricsTextColumn(ProgressColumn):
    """The metrics of each task, `task.fields["metrics"]`; below the bar when they do not fit beside it.

    Args:
        trainer: The trainer that runs.
        style: Style of the text.
        text_delimiter: What stands between two metrics.
        metrics_format: Format of floating-point metrics.
    """

    def __init__(
        self, trainer: Trainer | None, style: str | Style, text_delimiter: str = " ", metrics_format: str = ".3f"
    ) -> None:
        super().__init__()
        self.trainer = trainer
        self.style = style
        self.text_delimiter = text_delimiter
        self.metrics_format = metrics_format
        self._metrics: Mapping[str, Any] = {}

    def update(self, metrics: Mapping[str, Any]) -> None:
        """Shows these beside the tasks that have no metrics of their own.

        Args:
            metrics: Names to values.
        """
        self._metrics = metrics

    def render(self, task: Task) -> Text:
        """The column's cell."""
        metrics = format_metrics(task.fields.get("metrics", self._metrics), self.metrics_format, self.text_delimiter)
        return Text(metrics, style=self.style)


def default_columns(theme: RichProgressBarTheme) -> list[ProgressColumn]:
    """Description, bar, count, times and speed."""
    return [
        TextColumn("[progress.description]{task.description}", style=theme.description or "none"),
        CustomBarColumn(
            complete_style=theme.progress_bar,
            finished_style=theme.progress_bar_finished,
            pulse_style=theme.progress_bar_pulse,
        ),
        BatchesProcessedColumn(theme.batch_progress),
        CustomTimeColumn(theme.time),
        ProcessingSpeedColumn(theme.processing_speed),
    ]


def with_metrics(
    columns: list[ProgressColumn], trainer: Trainer | None, theme: RichProgressBarTheme
) -> list[ProgressColumn]:
    """The columns and one for the metrics, unless there is one already."""
    if any(isinstance(column, MetricsTextColumn) for column in columns):
        return columns
    return [*columns, MetricsTextColumn(trainer, theme.metrics, theme.metrics_text_delimiter, theme.metrics_format)]


class CustomProgress(Progress):
    """A progress display that writes metrics on a line of their own when the terminal is too narrow."""

    def start(self) -> None:
        """Begins to draw; does nothing the second time."""
        if not self.live.is_started:
            super().start()

    def stop(self) -> None:
        """Ends drawing; does nothing the second time, where rich would write another line."""
        if self.live.is_started:
            super().stop()

    def soft_refresh(self) -> None:
        """Draws, if drawing has begun and not ended."""
        if self.live.is_started:
            self.refresh()

    def add_task(
        self,
        description: str,
        start: bool = True,
        total: float | None = 100.0,
        completed: int = 0,
        visible: bool = True,
        **fields: Any,
    ) -> TaskID:
        """Adds a task, and draws.

        Args:
            description: Its title.
            start: Whether its time begins now, and not with `start_task`.
            total: Steps in all; None or infinity if that is not known.
            completed: Steps done.
            visible: Whether it is shown.
            **fields: What the columns need, such as `metrics`.

        Returns:
            Its number.
        """
        if total != math.inf:
            return super().add_task(description, start, total, completed, visible, **fields)
        task = CustomInfiniteTask(
            self._task_index,
            description,
            total,
            completed,
            visible=visible,
            fields=fields,
            _get_time=self.get_time,
            _lock=self._lock,
        )
        return self.add_custom_task(task, start)

    def add_custom_task(self, task: Task, start: bool = True) -> TaskID:
        """Adds a task that is made already, and draws.

        Args:
            task: The task; its number must be free.
            start: Whether its time begins now.

        Returns:
            Its number.
        """
        with self._lock:
            self._tasks[task.id] = task
            self._task_index = TaskID(max(task.id, self._task_index) + 1)
            if start:
                self.start_task(task.id)
        self.refresh()
        return task.id

    def get_renderables(self) -> Iterable[RenderableType]:
        """The table of bars, and the metrics below it if they do not fit."""
        tasks = [task for task in self.tasks if task.visible]
        if not tasks:
            return
        table = self.make_tasks_table(tasks)
        width = self.console.measure(table, options=self.console.options.update(max_width=_UNLIMITED)).maximum
        bar = next((column for column in self.columns if isinstance(column, BarColumn)), None)
        spare = 0 if bar is None else (bar.bar_width or 0) - _NARROWEST_BAR
        if width - spare <= self.console.width:
            yield table
            return
        yield self._table_without_metrics(tasks)
        for column in self.columns:
            if isinstance(column, MetricsTextColumn):
                yield from (text for task in tasks if (text := column.render(task)).plain)

    def _table_without_metrics(self, tasks: list[Task]) -> RenderableType:
        columns = self.columns
        self.columns = tuple(column for column in columns if not isinstance(column, MetricsTextColumn))
        try:
            return self.make_tasks_table(tasks)
        finally:
            self.columns = columns


class RichDisplay:
    """Bars that are drawn over: training, and below it, while it runs, validation.

    No thread redraws it: a drawing happens when `draw` is called.

    Args:
        console: Where to draw.
        columns: What a bar is made of.
        leave: Whether the bar of each finished epoch stays on the screen.
    """

    interval = 0.1
    patience = 0.25

    def __init__(self, console: Console, columns: Iterable[str | ProgressColumn], leave: bool) -> None:
        self._columns = tuple(columns)
        self.progress = CustomProgress(*self._columns, console=console, auto_refresh=False)
        self._leave = leave
        self._tracks: list[Track] = []
        self._train: Track | None = None

    def open(self, track: Track) -> None:
        """Add a bar; a new epoch takes over the bar of the last one unless that one stays on the screen."""
        before = self._train
        if track.training and before is not None:
            self._tracks.remove(before)
            if self._leave:
                self._leave_on_screen()
            else:
                track.handle, track.metrics = before.handle, before.metrics
        if track.training:
            self._train = track
        elif before is not None:
            self._catch_up(before)
        self._tracks.append(track)
        fields: dict[str, Any] = {"total": track.total, "completed": track.position, "description": track.title}
        if track.handle is None:
            track.handle = self.progress.add_task(**fields, metrics=track.metrics)
        else:
            self.progress.reset(track.handle, **fields)

    def draw(self, track: Track) -> None:
        """Draw all bars, with this one brought up to date."""
        self.progress.start()
        self._update(track)
        self.progress.refresh()

    def close(self, track: Track) -> None:
        """Take the bar off the screen if it ran within training; others stay."""
        if track.inside:
            self._tracks.remove(track)
            self.progress.remove_task(track.handle)
            if track.drawn is not None:
                self.progress.refresh()
        elif track.drawn is not None or self._leave:
            self.draw(track)

    def finish(self) -> None:
        """Draw all bars for the last time."""
        if self.progress.live.is_started:
            for track in self._tracks:
                self._update(track)
        self.stop()

    def stop(self) -> None:
        """End drawing: what stands on the screen stays, the cursor is back."""
        self.progress.stop()

    def _update(self, track: Track) -> None:
        track.note()
        self.progress.update(track.handle, completed=track.position, metrics=track.metrics)

    def _catch_up(self, track: Track) -> None:
        # What follows may take long; the bar should not stand short of where training is.
        if track.drawn not in (None, track.position):
            self.draw(track)

    def _leave_on_screen(self) -> None:
        self.stop()
        self.progress = CustomProgress(*self._columns, console=self.progress.console, auto_refresh=False)
