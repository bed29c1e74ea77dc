"""Where progress is shown: a `Track` is what is counted, a display draws tracks.

`LineDisplay` writes plain lines, for log files. The display for terminals is in `rich_display`, which needs rich.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TextIO

__all__ = ["Display", "LineDisplay", "Track", "format_metrics"]


@dataclass(eq=False)
class Track:
    """One thing that is counted: an epoch of training, a validation, ...

    Attributes:
        title: What is counted.
        total: Number of batches, None if unknown.
        read_metrics: Gives the metrics of this moment; copies from the device, so it is called only to draw.
        position: Batches done.
        training: Whether it is an epoch of training, one in a row of many.
        inside: Whether it runs within training, and is gone when done.
        quiet: Whether its end needs no line of its own.
        first: Batches that were done before this run began to count.
        metrics: The metrics at the last drawing.
        drawn: The position at the last drawing, None if it was not drawn yet.
        handle: What the display knows it by.
    """

    title: str
    total: int | None
    read_metrics: Callable[[], Mapping[str, Any]]
    position: int = 0
    training: bool = False
    inside: bool = False
    quiet: bool = False
    first: int = field(init=False)
    started: float = field(init=False, default_factory=time.monotonic)
    metrics: Mapping[str, Any] = field(init=False, default_factory=dict)
    drawn: int | None = field(init=False, default=None)
    handle: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.first = self.position

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started

    @property
    def speed(self) -> float:
        """Batches per second since it began."""
        return (self.position - self.first) / max(self.elapsed, 1e-9)

    def note(self) -> None:
        """Take the metrics of this moment, for a drawing."""
        self.metrics = self.read_metrics()
        self.drawn = self.position


class Display(Protocol):
    """Draws tracks.

    Attributes:
        interval: Seconds that at least pass between two drawings.
        patience: Seconds after which a drawing is due even if the refresh rate says otherwise.
    """

    interval: float
    patience: float

    def open(self, track: Track) -> None:
        """A track begins. It is drawn when its first drawing is due."""

    def draw(self, track: Track) -> None:
        """Show the track as it is now."""

    def close(self, track: Track) -> None:
        """A track has ended."""

    def finish(self) -> None:
        """Show how everything ended, then `stop`."""

    def stop(self) -> None:
        """Give the terminal back as it was, without another look at the run. Harmless when called twice."""


class LineDisplay:
    """Plain lines for streams that cannot be drawn over: when training starts, per epoch, and rarely within an epoch.

    Within an epoch a line is due after 30 seconds at the earliest, and only when a tenth of the epoch or ten minutes
    have passed. From the eleventh epoch on, epochs that end within a second of the last line have none.

    Args:
        stream: Where to write; standard output, as it is at that moment, if None.
    """

    interval = 1.0
    patience = 1.0
    _SHORTEST_SILENCE = 30.0
    _LONGEST_SILENCE = 600.0
    _EPOCHS_WITH_LINE = 10

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._epochs = 0
        self._last_line = 0.0
        self._unsaid: Track | None = None

    def open(self, track: Track) -> None:
        """Say how much there is to do, at the first epoch only."""
        if track.training and self._epochs == 0:
            batches = "an unknown number of" if track.total is None else f"{track.total:,}"
            self._write(f"Training: {batches} {'batch' if track.total == 1 else 'batches'} per epoch")
        self._epochs += track.training

    def draw(self, track: Track) -> None:
        """Write where a long track stands."""
        moved = track.position - (track.drawn or track.first)
        tenth = track.total is None or moved * 10 >= track.total
        silence = time.monotonic() - max(self._last_line, track.started)
        if silence >= (self._SHORTEST_SILENCE if tenth else self._LONGEST_SILENCE):
            self._report(track)

    def close(self, track: Track) -> None:
        """Write how a track ended."""
        if track.quiet:
            return
        if track.training and self._epochs > self._EPOCHS_WITH_LINE and time.monotonic() - self._last_line < 1.0:
            self._unsaid = track
            return
        self._report(track)

    def finish(self) -> None:
        """Write the last epoch's line if it was held back."""
        if self._unsaid is not None:
            self._report(self._unsaid)

    def stop(self) -> None:
        """Nothing to give back."""

    def _report(self, track: Track) -> None:
        track.note()
        self._write(_line(track))

    def _write(self, line: str) -> None:
        print(line, file=self._stream if self._stream is not None else sys.stdout, flush=True)
        self._last_line = time.monotonic()
        self._unsaid = None


def _line(track: Track) -> str:
    total = "" if track.total is None else f"/{track.total}"
    parts = [
        f"{track.title}: {track.position}{total} batches in {format_time(track.elapsed)}",
        format_speed(track.speed),
    ]
    left = None if track.total is None else track.total - track.position
    if left and track.speed > 0:
        parts.append(f"{format_time(left / track.speed)} left")
    if track.metrics:
        parts.append(format_metrics(track.metrics, ".4g", " "))
    return ", ".join(parts)


def format_time(seconds: float) -> str:
    """Whole seconds as "H:MM:SS", with days before it where needed."""
    return str(timedelta(seconds=int(seconds)))


def format_speed(speed: float | None) -> str:
    """Iterations per second, or seconds per iteration where that is the larger number."""
    if not speed:
        return "0.00it/s"
    return f"{speed:.2f}it/s" if speed >= 1 else f"{1 / speed:.2f}s/it"


def format_metrics(metrics: Mapping[str, Any], number_format: str, delimiter: str) -> str:
    """Metrics as "name: value", floats in `number_format`."""
    return delimiter.join(
        f"{name}: {value:{number_format}}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in metrics.items()
    )
