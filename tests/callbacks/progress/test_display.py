from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from fulmen.callbacks.progress.display import LineDisplay, Track, format_metrics, format_speed, format_time
from fulmen.callbacks.progress.rich_display import RichDisplay, default_columns, with_metrics
from fulmen.callbacks.progress.rich_progress import RichProgressBarTheme


def epoch(number=0, total=100, **kwargs):
    return Track(f"Epoch {number}/9", total, lambda: {"loss": 0.5, "v_num": 3}, training=True, **kwargs)


def aged(track, seconds):
    track.started -= seconds
    return track


@pytest.fixture
def lines():
    return LineDisplay(io.StringIO())


def written(display):
    return display._stream.getvalue().splitlines()


def test_an_epoch_is_two_lines(lines):
    track = epoch()
    lines.open(track)
    track.position = 100
    lines.close(aged(track, 50))
    first, second = written(lines)
    assert first == "Training: 100 batches per epoch"
    assert second == "Epoch 0/9: 100/100 batches in 0:00:50, 2.00it/s, loss: 0.5 v_num: 3"


def test_one_batch_is_not_several(lines):
    track = epoch()
    track.total = 1
    lines.open(track)
    assert written(lines) == ["Training: 1 batch per epoch"]


def test_only_the_first_epoch_says_how_much_there_is_to_do(lines):
    for number in range(3):
        track = epoch(number)
        lines.open(track)
        lines.close(track)
    assert [line.split(":")[0] for line in written(lines)] == ["Training", "Epoch 0/9", "Epoch 1/9", "Epoch 2/9"]


def test_within_an_epoch_a_line_needs_thirty_seconds_and_a_tenth(lines):
    track = epoch()
    lines.open(track)
    before = len(written(lines))

    track.position = 50
    lines.draw(track)
    assert len(written(lines)) == before  # a moment after the start

    lines._last_line -= 31
    lines.draw(aged(track, 31))
    assert written(lines)[-1].startswith("Epoch 0/9: 50/100 batches in 0:00:31, 1.61it/s, 0:00:3")

    track.position = 55
    lines._last_line -= 31
    lines.draw(track)
    assert len(written(lines)) == before + 1  # not a tenth further

    lines._last_line -= 600
    lines.draw(aged(track, 600))
    assert len(written(lines)) == before + 2


def test_many_short_epochs_share_lines_and_the_last_is_said(lines):
    for number in range(500):
        track = epoch(number)
        lines.open(track)
        lines.close(track)
    lines.finish()
    said = written(lines)
    assert len(said) < 20
    assert said[-1].startswith("Epoch 499/9")
    lines.finish()
    assert written(lines) == said


def test_metrics_are_read_only_to_be_written(lines):
    reads = []
    track = Track("Epoch 0", None, lambda: reads.append(1) or {}, training=True)
    lines.open(track)
    for position in range(1000):
        track.position = position
        lines.draw(track)
    assert reads == []
    lines.close(track)
    assert reads == [1]
    assert "an unknown number of" in written(lines)[0]


def test_a_quiet_track_ends_without_a_line(lines):
    track = Track("Validation", 5, dict, inside=True, quiet=True)
    lines.open(track)
    lines.close(track)
    assert written(lines) == []


def test_a_resumed_epoch_counts_speed_from_where_it_began():
    track = epoch(position=90)
    track.position = 100
    assert aged(track, 10).speed == pytest.approx(1.0, rel=1e-2)


def test_words_for_numbers():
    assert format_time(3661.9) == "1:01:01"
    assert format_time(90000) == "1 day, 1:00:00"
    assert [format_speed(speed) for speed in (None, 0.0, 12.345, 0.5)] == [
        "0.00it/s",
        "0.00it/s",
        "12.35it/s",
        "2.00s/it",
    ]
    assert format_metrics({"a": 1.23456, "n": 3, "s": "x"}, ".3f", " | ") == "a: 1.235 | n: 3 | s: x"


def rich_display(width=100, leave=False):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, legacy_windows=False)
    theme = RichProgressBarTheme()
    return RichDisplay(console, with_metrics(default_columns(theme), None, theme), leave), stream


def test_a_bar_shows_everything_and_gives_the_cursor_back():
    display, stream = rich_display()
    track = epoch()
    display.open(track)
    assert stream.getvalue() == ""
    track.position = 42
    display.draw(track)
    out = stream.getvalue()
    for part in ("Epoch 0/9", "42/100", "0:00:00 • ", "it/s", "loss: 0.500 v_num: 3", "\x1b[?25l"):
        assert part in out, part
    display.stop()
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")
    display.stop()


def test_an_unknown_total_works():
    display, stream = rich_display()
    track = epoch(total=None, position=3)
    display.open(track)
    display.draw(track)
    display.stop()
    assert "3/--" in stream.getvalue()


def test_metrics_go_below_the_bar_when_they_do_not_fit_beside_it():
    display, stream = rich_display(width=80)
    track = Track("Epoch 0", 10, lambda: {f"metric_{index}": 0.5 for index in range(4)}, training=True)
    display.open(track)
    display.draw(track)
    display.stop()
    last = stream.getvalue().split("\r")[-1]
    bar, metrics = (line for line in last.splitlines() if (line.strip() and "Epoch" in line) or "metric_0" in line)
    assert "0/10" in bar
    assert "metric_0" not in bar
    assert "metric_3" in metrics


def test_validation_within_training_is_a_second_bar_that_goes_away():
    display, stream = rich_display()
    train = epoch()
    display.open(train)
    train.position = 98
    display.draw(train)
    train.position = 100
    validation = Track("Validation", 5, dict, inside=True)
    display.open(validation)
    assert "100/100" in stream.getvalue()  # the bar does not stand short while validation runs
    display.draw(validation)
    assert [task.description for task in display.progress.tasks] == ["Epoch 0/9", "Validation"]
    display.close(validation)
    assert [task.description for task in display.progress.tasks] == ["Epoch 0/9"]
    display.finish()


def test_the_next_epoch_takes_over_the_bar():
    display, _ = rich_display()
    first, second = epoch(0), epoch(1)
    display.open(first)
    display.draw(first)
    display.close(first)
    display.open(second)
    assert [task.description for task in display.progress.tasks] == ["Epoch 1/9"]
    assert second.handle == first.handle
    display.finish()


def test_leave_keeps_the_bar_of_each_epoch():
    display, stream = rich_display(leave=True)
    for number in range(3):
        track = epoch(number)
        display.open(track)
        track.position = 100
        display.draw(track)
        display.close(track)
    display.finish()
    out = stream.getvalue()
    assert out.count("\x1b[?25h") == 3
    assert all(f"Epoch {number}/9" in out for number in range(3))


def test_finish_shows_the_last_state():
    display, stream = rich_display()
    track = epoch()
    display.open(track)
    display.draw(track)
    track.position = 100
    display.finish()
    assert "100/100" in stream.getvalue()


def test_stop_does_not_look_at_the_run():
    display, _ = rich_display()

    def broken():
        raise RuntimeError("the device is gone")

    track = epoch()
    display.open(track)
    display.draw(track)
    track.read_metrics = broken
    display.stop()
    with pytest.raises(RuntimeError, match="the device is gone"):
        display.draw(track)
    display.stop()


def test_what_is_printed_appears_above_the_bar(capsys):
    display, stream = rich_display()
    track = epoch()
    display.open(track)
    display.draw(track)
    print("a line of the user")
    display.stop()
    assert "a line of the user" in stream.getvalue()
    print("after")
    assert capsys.readouterr().out == "after\n"


def test_time_passes():
    track = epoch()
    assert 0 <= track.elapsed < 60
    assert track.started <= time.monotonic()
