"""The parts of rich's display that users build their own columns and tasks with."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console
from rich.progress import TaskID

from fulmen.callbacks.progress import rich_progress
from fulmen.callbacks.progress.rich_display import (
    BatchesProcessedColumn,
    CustomBarColumn,
    CustomInfiniteTask,
    CustomProgress,
    CustomTimeColumn,
    MetricsTextColumn,
    default_columns,
)
from fulmen.callbacks.progress.rich_progress import RichProgressBarTheme


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def progress(output: io.StringIO) -> CustomProgress:
    console = Console(file=output, width=100, force_terminal=False)
    columns = [*default_columns(RichProgressBarTheme()), MetricsTextColumn(None, "", " ", ".3f")]
    return CustomProgress(*columns, console=console, auto_refresh=False)


def test_a_task_without_an_end(progress: CustomProgress, output: io.StringIO) -> None:
    number = progress.add_task("endless", total=math.inf, completed=3, metrics={"loss": 0.5})
    (task,) = progress.tasks
    assert isinstance(task, CustomInfiniteTask)
    assert (task.id, task.total, task.completed, task.started) == (number, math.inf, 3, True)
    progress.update(number, advance=4)
    assert task.time_remaining is None
    assert CustomBarColumn().render(task).pulse
    assert str(BatchesProcessedColumn("").render(task)) == "7/--"
    progress.start()
    progress.stop()
    assert "endless" in output.getvalue()
    assert "7/--" in output.getvalue()
    assert "loss: 0.5" in output.getvalue()


@pytest.mark.parametrize("total", [10.0, None])
def test_other_tasks_are_those_of_rich(progress: CustomProgress, total: float | None) -> None:
    progress.add_task("usual", start=False, total=total)
    (task,) = progress.tasks
    assert not isinstance(task, CustomInfiniteTask)
    assert (task.total, task.started) == (total, False)
    assert CustomBarColumn().render(task).pulse  # not begun
    progress.start_task(task.id)
    assert not CustomBarColumn().render(task).pulse


def test_a_task_made_before(progress: CustomProgress) -> None:
    task = CustomInfiniteTask(TaskID(7), "mine", math.inf, 0, _get_time=progress.get_time)
    assert progress.add_custom_task(task, start=False) == 7
    assert progress.tasks == [task]
    assert not task.started
    assert progress.add_task("next") == 8
    assert progress.add_task("endless", total=math.inf) == 9


def test_drawing_begins_and_ends_once(progress: CustomProgress, output: io.StringIO) -> None:
    progress.add_task("usual")
    for draw in (progress.soft_refresh, progress.stop):
        draw()
        assert output.getvalue() == ""
    progress.start()
    progress.start()
    progress.soft_refresh()
    progress.stop()
    written = output.getvalue()
    assert written.count("usual") == 1
    progress.stop()
    progress.soft_refresh()
    assert output.getvalue() == written


def test_metrics_beside_tasks_that_have_none(progress: CustomProgress) -> None:
    column = MetricsTextColumn(None, "", "; ", ".2f")
    progress.add_task("bare")
    progress.add_task("with its own", metrics={"loss": 0.5})
    column.update({"accuracy": 0.75, "v_num": 1})
    assert [str(column.render(task)) for task in progress.tasks] == ["accuracy: 0.75; v_num: 1", "loss: 0.50"]


def test_times_are_not_drawn_anew_all_the_time() -> None:
    assert CustomTimeColumn("dim").max_refresh == 0.5


@pytest.mark.parametrize("name", ["CustomBarColumn", "CustomInfiniteTask", "CustomProgress", "MetricsTextColumn"])
def test_they_are_found_beside_the_bar(name: str) -> None:
    found: Any = getattr(rich_progress, name)
    assert found.__module__ == "fulmen.callbacks.progress.rich_display"
