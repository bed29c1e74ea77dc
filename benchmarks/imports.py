"""What importing costs beyond ``import torch``: wall milliseconds and modules, in fresh processes.

    python benchmarks/imports.py [--rounds 7] [--json FILE]

Each process imports torch first, then the framework and its main class; the second part is what counts. Files are
compiled and in the page cache; the candidates take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from report import last_line, spread, table, write_json

CANDIDATES = {
    "torch": ("torch alone", "pass"),
    "fulmen": ("fulmen (and Trainer touched)", "import fulmen; fulmen.Trainer"),
    "lightning": ("lightning.pytorch (Trainer)", "import lightning.pytorch as framework; framework.Trainer"),
    "lightning-fabric": ("lightning.fabric (Fabric)", "from lightning.fabric import Fabric"),
    "ignite": ("ignite (Engine)", "from ignite.engine import Engine"),
    "accelerate": ("accelerate (Accelerator)", "from accelerate import Accelerator"),
    "transformers": ("transformers (Trainer)", "from transformers import Trainer"),
    "keras": ("keras on torch (Model)", "import keras; keras.Model"),
}

PROBE = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
start = time.perf_counter()
import torch
middle, before = time.perf_counter(), set(sys.modules)
{statement}
end = time.perf_counter()
print()
print(json.dumps({{"torch": (middle - start) * 1e3, "beyond": (end - middle) * 1e3,
                  "modules": len(set(sys.modules) - before)}}))
"""


def probe(statement: str) -> dict[str, float] | str:
    """Runs one fresh process; returns milliseconds and modules, or the last line of its error."""
    environment = os.environ | {"KERAS_BACKEND": "torch", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-c", PROBE.format(statement=statement)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if process.returncode:
        return last_line(process.stderr)
    result: dict[str, float] = json.loads(process.stdout.strip().splitlines()[-1])
    return result


def measure(rounds: int) -> tuple[dict[str, list[dict[str, float]]], dict[str, str]]:
    """Returns the outcomes of each candidate, and for each of the others why it cannot be imported.

    The first of several rounds is dropped: it compiles the files and brings them into the page cache.
    """
    series: dict[str, list[dict[str, float]]] = {key: [] for key in CANDIDATES}
    missing: dict[str, str] = {}
    for _ in range(rounds + 1 if rounds > 1 else 1):
        for key, outcomes in series.items():
            if key in missing:
                continue
            outcome = probe(CANDIDATES[key][1])
            if isinstance(outcome, str):
                missing[key] = f"not importable ({outcome})"
            else:
                outcomes.append(outcome)
    return {key: outcomes[-rounds:] for key, outcomes in series.items() if key not in missing}, missing


def summarise(rounds: int) -> dict[str, Any]:
    series, missing = measure(rounds)
    rows: list[dict[str, Any]] = []
    for key, (label, _) in CANDIDATES.items():
        row: dict[str, Any] = {"key": key, "label": label}
        if key in missing:
            rows.append(row | {"missing": missing[key]})
            continue
        beyond = spread([outcome["beyond"] for outcome in series[key]])
        rows.append(row | {"milliseconds": beyond, "modules": int(series[key][0]["modules"])})
    torch_times = [outcome["torch"] for outcomes in series.values() for outcome in outcomes]
    return {"rounds": rounds, "torch_milliseconds": spread(torch_times), "rows": rows}


def render(result: dict[str, Any]) -> str:
    """Returns the table as Markdown."""
    rows = []
    for row in result["rows"]:
        if "missing" in row:
            rows.append([row["label"], row["missing"], "", ""])
            continue
        wall = row["milliseconds"]
        spread_text = f"{wall['low']:.1f} .. {wall['high']:.1f}"
        rows.append([row["label"], f"{wall['median']:.1f}", spread_text, str(row["modules"])])
    head = f"`import torch` takes {result['torch_milliseconds']['median']:.0f} ms; {result['rounds']} rounds."
    return f"{head}\n\n" + table(["import", "ms beyond torch", "quartiles", "modules beyond torch"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="write the result to this file as well")
    args = parser.parse_args()
    result = summarise(args.rounds)
    write_json(args.json, result)
    sys.stdout.write(render(result) + "\n")


if __name__ == "__main__":
    main()
