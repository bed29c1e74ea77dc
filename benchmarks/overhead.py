"""Microseconds a training step costs over the raw loop, measured in pairs in one process.

    python benchmarks/overhead.py [--rounds 21] [--steps 1000] [--only fulmen-off,lightning-off] [--json FILE]

Every contender is run between two runs of the raw loop, in alternation over many rounds; its overhead is the median of
the differences to its two neighbours. Per step means: (a long run - a short run) / the difference of their steps, so
that set-up and tear-down cancel.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from contenders import CONTENDERS, Contender, ReadyBatches, Run, load_raw
from report import last_line, spread, table, write_json

SHORTEST = 100


class TerminalSink(io.TextIOBase):
    """Swallows all text but says that it is a terminal, so that progress bars do the work they do for a user."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def isatty(self) -> bool:
        return True

    def writable(self) -> bool:
        return True


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Sends what frameworks print, warn and log to nowhere."""
    sink = TerminalSink()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def seconds(run: Run, steps: int) -> float:
    """Returns the wall time of one whole run over ``steps`` batches."""
    batches = ReadyBatches(steps)
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        start = time.perf_counter()
        run(batches, folder)
        return time.perf_counter() - start


def step_cost(run: Run, steps: int) -> float:
    """Returns the microseconds of one step without set-up and tear-down."""
    short = seconds(run, SHORTEST)
    long = seconds(run, SHORTEST + steps)
    return (long - short) / steps * 1e6


def load(only: list[str] | None) -> tuple[list[tuple[Contender, Run]], dict[str, str]]:
    """Returns the contenders that run here, and for each of the others the reason why it does not."""
    ready, missing = [], {}
    for contender in CONTENDERS:
        if only and contender.key not in only:
            continue
        try:
            run = contender.load()
            seconds(run, SHORTEST)
        except ModuleNotFoundError as error:
            missing[contender.key] = f"not installed ({error})"
        except Exception as error:
            missing[contender.key] = "failed: " + last_line(f"{type(error).__name__}: {error}")
        else:
            ready.append((contender, run))
    return ready, missing


def measure(ready: list[tuple[Contender, Run]], rounds: int, steps: int) -> tuple[dict[str, list[float]], list[float]]:
    """Returns the overheads of each contender in microseconds a step, and all costs of the raw loop."""
    raw = load_raw()
    step_cost(raw, steps)
    gc.collect()
    gc.freeze()  # the imported frameworks leave the collector's sight; else every loop would pay for all of them
    overheads: dict[str, list[float]] = {contender.key: [] for contender, _ in ready}
    raw_costs = []
    for _ in range(rounds):
        before = step_cost(raw, steps)
        raw_costs.append(before)
        for contender, run in ready:
            cost = step_cost(run, max(int(steps * contender.share), SHORTEST))
            after = step_cost(raw, steps)
            overheads[contender.key].append(cost - (before + after) / 2)
            raw_costs.append(after)
            before = after
    return overheads, raw_costs


def summarise(args: argparse.Namespace) -> dict[str, Any]:
    only = args.only.split(",") if args.only else None
    unknown = set(only or ()) - {contender.key for contender in CONTENDERS}
    if unknown:
        known = ", ".join(contender.key for contender in CONTENDERS)
        raise SystemExit(f"unknown contender {sorted(unknown)}; choose from: {known}")
    with silence():
        ready, missing = load(only)
        overheads, raw_costs = measure(ready, args.rounds, args.steps)
    rows = []
    for contender in CONTENDERS:
        if only and contender.key not in only:
            continue
        row: dict[str, Any] = {"key": contender.key, "label": contender.label, "note": contender.note}
        if contender.key in missing:
            rows.append(row | {"missing": missing[contender.key]})
        else:
            rows.append(row | spread(overheads[contender.key]))
    return {"rounds": args.rounds, "steps": args.steps, "raw_microseconds": spread(raw_costs), "rows": rows}


def render(result: dict[str, Any]) -> str:
    """Returns the table and its notes as Markdown."""
    rows = []
    for row in result["rows"]:
        if "missing" in row:
            rows.append([row["label"], row["missing"], ""])
        else:
            rows.append([row["label"], f"{row['median']:+.1f}", f"{row['low']:+.1f} .. {row['high']:+.1f}"])
    raw = result["raw_microseconds"]
    head = (
        f"A raw step takes {raw['median']:.1f} us (quartiles {raw['low']:.1f} .. {raw['high']:.1f}); "
        f"{result['rounds']} rounds of {result['steps']} steps."
    )
    notes = [f"- {row['label']}: {row['note']}." for row in result["rows"] if row["note"]]
    return "\n".join([head, "", table(["loop", "us a step over raw", "quartiles"], rows), "", *notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", help="comma-separated keys: " + ", ".join(contender.key for contender in CONTENDERS))
    parser.add_argument("--json", help="write the result to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = summarise(args)
    write_json(args.json, result)
    sys.stdout.write(render(result) + "\n")


if __name__ == "__main__":
    main()
