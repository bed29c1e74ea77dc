"""Runs all benchmarks and writes ``benchmarks/RESULTS.md``: machine, versions, goals and what was reached, tables.

    python benchmarks/run_all.py [--quick] [--out FILE]

Run it with a Python that has the peers installed; those that are missing are listed as such. ``--quick`` only shows
that everything runs: its numbers are noise. Standard library only, so that children measure their own memory.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import machine, table, versions

HERE = Path(__file__).parent
PARTS = {"overhead": "Cost of a step", "digits": "A whole job", "imports": "Import", "distributed": "Two processes"}
QUICK = {
    "overhead": ["--rounds", "3", "--steps", "200"],
    "digits": ["--rounds", "1", "--epochs", "5"],
    "imports": ["--rounds", "1"],
    "distributed": ["--rounds", "1", "--seconds", "0.1"],
}
NOTES = """\
- Cost of a step: raw, A, raw, B, ... in one process on one thread; a row is the median over rounds of A minus the mean
  of its two raw neighbours, each (long run - short run) / steps. Linear(32, 2), SGD, batches of 32 made beforehand; all
  draw from the same iterable of ready batches unless a note says otherwise. Text goes to a sink that claims to be a
  terminal, so that bars work as for a user. What was imported before the measurement is frozen for garbage collection.
- A whole job: start of the process to its end, the programs in turn; "over raw" is the median of the differences within
  a round. No progress bar and no model summary in any of them. Peak memory is the kernel's maximum resident set.
- Import: torch first, then the framework, in fresh processes, in turn; files compiled and cached.
- Two processes: by hand and through the Trainer in the same processes, in turn, a barrier before and after each run; a
  row is the median over rounds of the speed over that of its two neighbours by hand, (long run - short run) / steps.
- Rows that could not be measured say why. A raw loop is what a careful person writes by hand."""

Results = dict[str, dict[str, Any]]
"""Per part, what it wrote as JSON; its table is under "table"."""


@dataclass(frozen=True)
class Goal:
    """A goal of the house: ``measure`` takes our row and gives the number that must not exceed ``limit``."""

    text: str
    limit: float
    unit: str
    part: str
    key: str
    measure: Callable[[dict[str, Any]], float]


def _median(name: str) -> Callable[[dict[str, Any]], float]:
    return lambda row: float(row[name]["median"])


_accuracy_over_raw = _median("accuracy_over_raw")


def _percent_slower(row: dict[str, Any]) -> float:
    return 100 * (1 - float(row["ratio"]["median"]))


GOALS = (
    Goal("step over raw, everything off", 10, "us", "overhead", "fulmen-off", lambda row: row["median"]),
    Goal("step over raw, self.log", 20, "us", "overhead", "fulmen-log", lambda row: row["median"]),
    Goal("step over raw, all defaults", 30, "us", "overhead", "fulmen-defaults", lambda row: row["median"]),
    Goal("whole job over raw", 0, "s", "digits", "fulmen", _median("seconds_over_raw")),
    Goal("peak memory over raw", 15, "MB", "digits", "fulmen", _median("megabytes_over_raw")),
    Goal("test accuracy below raw", 0, "", "digits", "fulmen", lambda row: -round(_accuracy_over_raw(row), 6)),
    Goal("import beyond torch", 100, "ms", "imports", "fulmen", _median("milliseconds")),
    Goal("modules loaded beyond torch", 150, "", "imports", "fulmen", lambda row: row["modules"]),
    Goal("2 processes, DDP small: slower than by hand", 2, "%", "distributed", "ddp-small", _percent_slower),
    Goal("2 processes, DDP middle: slower than by hand", 2, "%", "distributed", "ddp-middle", _percent_slower),
    Goal("2 processes, FSDP2 small: slower than by hand", 2, "%", "distributed", "fsdp-small", _percent_slower),
    Goal("2 processes, FSDP2 middle: slower than by hand", 2, "%", "distributed", "fsdp-middle", _percent_slower),
)


def run_parts(quick: bool) -> Results:
    """Runs each benchmark in a process of its own; returns their results."""
    results: Results = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            path = Path(folder) / f"{part}.json"
            command = [sys.executable, str(HERE / f"{part}.py"), "--json", str(path), *(QUICK[part] if quick else [])]
            start = time.perf_counter()
            process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[part] = json.loads(path.read_text()) | {"table": process.stdout.strip()}
            sys.stdout.write(f"{part}: {time.perf_counter() - start:.0f} s\n")
            sys.stdout.flush()
    return results


def goal_row(goal: Goal, results: Results) -> list[str]:
    """Returns one line of the table of goals."""
    limit = f"<= {goal.limit:g} {goal.unit}".rstrip()
    row = next(row for row in results[goal.part]["rows"] if row["key"] == goal.key)
    if "missing" in row:
        return [goal.text, limit, row["missing"], "not measured"]
    got = goal.measure(row) + 0.0
    return [goal.text, limit, f"{got:.4g} {goal.unit}".rstrip(), "yes" if got <= goal.limit else "NO"]


def page(results: Results, quick: bool) -> str:
    """Returns RESULTS.md."""
    facts = machine()
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    installed = ", ".join(f"{name} {version}" for name, version in versions().items())
    goals = table(["goal", "predicted", "got", "met"], [goal_row(goal, results) for goal in GOALS])
    sections = [
        "# Benchmark results",
        "Written by `python benchmarks/run_all.py`; do not edit.",
        *(["**Quick run: noise, not results.**"] if quick else []),
        f"- date: {now}\n- machine: {', '.join(facts.values())}\n- versions: {installed}",
        "## Goals",
        goals,
    ]
    for part, title in PARTS.items():
        sections += [f"## {title}", results[part]["table"]]
    return "\n\n".join([*sections, "## Method", NOTES]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small runs: shows that everything works")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    args = parser.parse_args()
    results = run_parts(args.quick)
    args.out.write_text(page(results, args.quick))
    sys.stdout.write(args.out.read_text())


if __name__ == "__main__":
    main()
