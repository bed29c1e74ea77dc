"""Which functions the time of each part of a run goes to, by Python's own profiler."""

from __future__ import annotations

import cProfile
import io
import pstats
from pathlib import Path

from fulmen.profilers.profiler import Profiler, local

__all__ = ["AdvancedProfiler"]


class AdvancedProfiler(Profiler):
    """Records every Python call of each action with `cProfile`.

    It slows the run down. Python runs one such profiler at a time: calls within an action that runs inside another
    count in the inner one.

    Args:
        dirpath: Folder of the files. Default: the `log_dir` of the Trainer.
        filename: Name of the report's file, without its ending. None writes the report to the log instead.
        line_count_restriction: Rows of the report for each action: a number (int) or a fraction (float up to 1.0).
        dump_stats: Whether the records of each action go to a file `<stage>-<filename>-<action>.prof`, to be read with
            `pstats.Stats` or a viewer.

    Attributes:
        profiled_actions: The profile of each action.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        line_count_restriction: float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        super().__init__(dirpath, filename)
        self.profiled_actions: dict[str, cProfile.Profile] = {}
        self.line_count_restriction = line_count_restriction
        self.dump_stats = dump_stats
        self._running: list[str] = []

    def start(self, action_name: str) -> None:
        """An action begins; what it runs inside of is not recorded meanwhile.

        Raises:
            ValueError: It runs already.
        """
        if action_name in self._running:
            raise ValueError(f"The action {action_name!r} was started, but it runs already. Stop it first.")
        if self._running:
            self.profiled_actions[self._running[-1]].disable()
        self._running.append(action_name)
        self.profiled_actions.setdefault(action_name, cProfile.Profile()).enable()

    def stop(self, action_name: str) -> None:
        """An action has ended.

        Raises:
            ValueError: It was not started.
        """
        if action_name not in self._running:
            raise ValueError(f"The action {action_name!r} was stopped, but it does not run. Start it first.")
        self.profiled_actions[self._running[-1]].disable()
        self._running.remove(action_name)
        if self._running:
            self.profiled_actions[self._running[-1]].enable()

    def summary(self) -> str:
        """For each action the functions that took the most time, the most expensive first."""
        if not self.profiled_actions:
            return ""
        parts = [self._title()]
        for action_name, profile in self.profiled_actions.items():
            text = io.StringIO()
            stats = pstats.Stats(profile, stream=text).strip_dirs().sort_stats("cumulative")
            stats.print_stats(self.line_count_restriction)
            parts.append(f"Profile stats for: {action_name}\n{text.getvalue().rstrip()}\n")
        return "\n".join(parts)

    def teardown(self, stage: str | None) -> None:
        """Writes the records if they are wanted, and forgets them."""
        for action_name in reversed(self._running):
            self.profiled_actions[action_name].disable()
        self._running = []
        if self.dump_stats:
            for action_name, profile in self.profiled_actions.items():
                profile.dump_stats(local(self._path(".prof", action_name)))
        self.profiled_actions = {}
