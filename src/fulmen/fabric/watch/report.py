"""The one report of a run of several processes that has failed."""

from __future__ import annotations

import signal
import traceback
from typing import Any

from fulmen.fabric.watch.stand import Stand

_OTHERS = "Where the others stood:"


def failure_of(rank: int, error: BaseException) -> dict[str, Any]:
    """What the others are told about an exception."""
    return {
        "kind": "raised",
        "rank": rank,
        "error": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
    }


def death_of(rank: int, exit_code: int | None = None) -> dict[str, Any]:
    """What is told about a process that is not there any more."""
    return {"kind": "died", "rank": rank, "exit_code": exit_code}


def parting(stands: dict[int, Stand], left: set[int]) -> dict[str, Any]:
    """What is told about processes that wait for each other in different places."""
    return {"kind": "left" if left else "parted", "rank": min(left) if left else min(stands), "left": sorted(left)}


def compose(failure: dict[str, Any], stands: dict[int, dict[str, Any]], world_size: int) -> str:
    """The report, in lines for a terminal."""
    lines = [headline(failure, world_size)]
    if failure["kind"] == "raised":
        lines += ["", failure["traceback"].rstrip(), ""]
    others = {rank: Stand.from_dict(stand) for rank, stand in sorted(stands.items())}
    if failure["kind"] not in ("parted", "left"):
        others.pop(failure["rank"], None)
    if others:
        lines.append("Where the processes stood:" if failure["kind"] == "parted" else _OTHERS)
        lines += [f"  rank {rank}: {stand.describe()}" for rank, stand in others.items()]
    if failure["kind"] in ("parted", "left"):
        lines.append(
            "All processes have to take part in the same exchanges in the same order. Look for data of different"
            " lengths, and for a branch that only some ranks take (a `self.log(..., sync_dist=True)`, a return)."
        )
    return "\n".join(lines)


def others_in(report: str) -> str:
    """The part of a report that says where the others stood; empty if it says nothing of them."""
    return report[report.find(_OTHERS) :] if _OTHERS in report else ""


def headline(failure: dict[str, Any], world_size: int) -> str:
    """Who failed first, in one line."""
    who = f"Rank {failure['rank']} of {world_size}"
    if failure["kind"] == "raised":
        return f"{who} failed first: {failure['error'].splitlines()[0]}"
    if failure["kind"] == "died":
        return f"{who} {_cause_of_death(failure['exit_code'])}"
    if failure["kind"] == "left":
        return f"{who} has ended while others still wait for it."
    return "The processes have parted: each waits for something that the others do not take part in."


def _cause_of_death(exit_code: int | None) -> str:
    if exit_code is None:
        return (
            "has died without a word: killed from outside, out of memory, a crash in native code, or exchanges that do"
            " not fit, as of a `self.log(..., sync_dist=True)` on some ranks only. Its own terminal may say more."
        )
    if exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = f"signal {-exit_code}"
        hint = " Was it out of memory?" if name == "SIGKILL" else ""
        return f"was killed by {name}.{hint}"
    return f"ended with exit code {exit_code}."
