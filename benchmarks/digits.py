"""A whole job as whole processes: raw PyTorch, fulmen and Lightning train a CNN on scikit-learn's digits.

    python benchmarks/digits.py [--rounds 5] [--epochs 20] [--json FILE]

Each program does the same: fixed epochs, validation after each, a CSV file of metrics, the best checkpoint, and a test.
Measured from outside, from start to exit: wall seconds and peak memory; the programs take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import last_line, spread, table, write_json

JOBS = Path(__file__).parent / "jobs"
PROGRAMS = {"raw": "raw.py", "fulmen": "fulmen_job.py", "lightning": "lightning_job.py"}
LABELS = {"raw": "raw PyTorch", "fulmen": "fulmen", "lightning": "Lightning"}


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run_program(program: str, data: Path, epochs: int) -> dict[str, float] | str:
    """Runs one whole process.

    Returns:
        Wall ``seconds``, peak ``megabytes`` and test ``accuracy``; or, when the program failed, its last line of error.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        command = [sys.executable, str(JOBS / program), str(data), folder, str(epochs)]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment())
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            return last_line(err.read().decode(errors="replace"))
        result = json.loads(out.read().decode().strip().splitlines()[-1])
    # Linux counts kilobytes, macOS bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {"seconds": seconds, "megabytes": usage.ru_maxrss / unit, "accuracy": result["accuracy"]}


def measure(rounds: int, epochs: int) -> dict[str, list[dict[str, float]] | str]:
    """Returns the measurements of each program, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits.pt"
        subprocess.run([sys.executable, str(JOBS / "prepare.py"), str(data)], check=True, env=environment())
        results: dict[str, list[dict[str, float]] | str] = {key: [] for key in PROGRAMS}
        for _ in range(rounds):
            for key, program in PROGRAMS.items():
                series = results[key]
                if isinstance(series, str):
                    continue
                outcome = run_program(program, data, epochs)
                if isinstance(outcome, str):
                    results[key] = f"failed: {outcome}"
                else:
                    series.append(outcome)
    return results


def summarise(rounds: int, epochs: int) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    results = measure(rounds, epochs)
    raw = results["raw"]
    if isinstance(raw, str):
        raise RuntimeError(f"the raw program, which all others are compared with, {raw}")
    for key, series in results.items():
        row: dict[str, Any] = {"key": key, "label": LABELS[key]}
        if isinstance(series, str):
            rows.append(row | {"missing": series})
            continue
        for name in ("seconds", "megabytes", "accuracy"):
            row[name] = spread([outcome[name] for outcome in series])
            pairs = zip(series, raw, strict=True)
            row[f"{name}_over_raw"] = spread([outcome[name] - neighbour[name] for outcome, neighbour in pairs])
        rows.append(row)
    return {"rounds": rounds, "epochs": epochs, "rows": rows}


def render(result: dict[str, Any]) -> str:
    """Returns the table as Markdown."""
    rows = []
    for row in result["rows"]:
        if "missing" in row:
            rows.append([row["label"], row["missing"], "", "", "", "", ""])
            continue
        wall = row["seconds"]
        rows.append(
            [
                row["label"],
                f"{wall['median']:.2f}",
                f"{wall['low']:.2f} .. {wall['high']:.2f}",
                f"{row['seconds_over_raw']['median']:+.2f}",
                f"{row['megabytes']['median']:.1f}",
                f"{row['megabytes_over_raw']['median']:+.1f}",
                f"{row['accuracy']['median']:.4f}",
            ]
        )
    head = f"{result['rounds']} rounds of {result['epochs']} epochs; whole processes, one thread each."
    header = ["program", "wall s", "quartiles", "over raw", "peak memory MB", "over raw", "test accuracy"]
    return f"{head}\n\n" + table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", help="write the result to this file as well")
    args = parser.parse_args()
    result = summarise(args.rounds, args.epochs)
    write_json(args.json, result)
    sys.stdout.write(render(result) + "\n")


if __name__ == "__main__":
    main()
