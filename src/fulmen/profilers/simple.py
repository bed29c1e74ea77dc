"""How long each part of a run takes, as a table."""

from __future__ import annotations

import time
from pathlib import Path

from fulmen.profilers.profiler import Profiler

__all__ = ["SimpleProfiler"]


class SimpleProfiler(Profiler):
    """Measures the duration of each action, and reports mean, number of calls, total and share of the whole time.

    Time in an action that runs within another counts in both.

    Args:
        dirpath: Folder of the report. Default: the `log_dir` of the Trainer.
        filename: Name of the report's file, without its ending. None writes the report to the log instead.
        extended: Whether the report has the number of calls and the share of the whole time.

    Attributes:
        current_actions: Running actions, and when they began.
        recorded_durations: Seconds of every call, by action.
        start_time: When the profiler was made, as `time.monotonic` counts.
    """

    def __init__(self, dirpath: str | Path | None = None, filename: str | None = None, extended: bool = True) -> None:
        super().__init__(dirpath, filename)
        self.extended = extended
        self.current_actions: dict[str, float] = {}
        self.recorded_durations: dict[str, list[float]] = {}
        self.start_time = time.monotonic()

    def start(self, action_name: str) -> None:
        """An action begins.

        Raises:
            ValueError: It runs already.
        """
        if action_name in self.current_actions:
            raise ValueError(f"The action {action_name!r} was started, but it runs already. Stop it first.")
        self.current_actions[action_name] = time.monotonic()

    def stop(self, action_name: str) -> None:
        """An action has ended.

        Raises:
            ValueError: It was not started.
        """
        end = time.monotonic()
        begin = self.current_actions.pop(action_name, None)
        if begin is None:
            raise ValueError(f"The action {action_name!r} was stopped, but it does not run. Start it first.")
        self.recorded_durations.setdefault(action_name, []).append(end - begin)

    def summary(self) -> str:
        """The table."""
        if not self.recorded_durations:
            return ""
        rows = self._rows()
        if not self.extended:
            rows = [[name, mean, total] for name, mean, _, total, _ in rows]
        header, *rows = rows
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        lines = ["|  " + "  |  ".join(map(str.ljust, row, widths)) + "  |" for row in [header, *rows]]
        rule = "-" * len(lines[0])
        return "\n".join([self._title(), "", rule, lines[0], rule, *lines[1:], rule])

    def _rows(self) -> list[list[str]]:
        """Cells of the header, of the whole if it is wanted, and of each action."""
        whole = time.monotonic() - self.start_time
        totals = {name: sum(durations) for name, durations in self.recorded_durations.items()}
        calls = {name: len(durations) for name, durations in self.recorded_durations.items()}
        rows = [["Action", "Mean duration (s)", "Num calls", "Total time (s)", "Percentage %"]]
        if self.extended:
            rows.append(["Total", "-", str(sum(calls.values())), f"{whole:.5}", "100 %"])
        for name in sorted(totals, key=totals.__getitem__, reverse=True):
            mean, share = totals[name] / calls[name], 100 * totals[name] / whole
            rows.append([name, f"{mean:.5}", str(calls[name]), f"{totals[name]:.5}", f"{share:.5}"])
        return rows
