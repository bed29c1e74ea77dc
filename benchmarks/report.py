"""What the benchmarks share: statistics, tables, and the facts about the machine. Standard library only.

The parent process of a memory measurement must stay small (a child's peak memory starts at its parent's), so nothing
here imports torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DISTRIBUTIONS = (
    "torch",
    "fulmen",
    "lightning",
    "pytorch-ignite",
    "accelerate",
    "transformers",
    "keras",
    "numpy",
    "scikit-learn",
)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns the median and the quartiles of ``values`` (one value stands for all three)."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, padded so that it reads well in a terminal too."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def last_line(error: str) -> str:
    """Returns the last line of an error message, without the paths of this machine."""
    lines = error.strip().splitlines() or ["no message"]
    return re.sub(r" \(/[^)]*\)", "", lines[-1])


def versions() -> dict[str, str]:
    """Returns the version of Python and of every package that is compared; a missing one says so."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, str]:
    """Returns the processor, its usable cores, the memory and the system this runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": f"{cores} cores",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def write_json(path: str | None, result: dict[str, Any]) -> None:
    """Writes ``result`` to ``path`` when one was asked for."""
    if path:
        Path(path).write_text(json.dumps(result, indent=1) + "\n")
