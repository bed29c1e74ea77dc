"""Half a run with fulmen, half with Lightning: ``checkpoint_matrix.py --python PYTHON_WITH_LIGHTNING [SCENARIO ...]``.

For each scenario of ``checkpoint_runs.py`` the run is done whole, and in two halves with a checkpoint between them, in
every combination of the two frameworks; Lightning, a black box, runs under a Python of its own. What counts is what
each batch and validation saw and gave, what the logger got, which files were kept, and what the checkpoint at the end
holds. Two halves are to be the whole run; where Lightning by itself does not get there, they are to be what Lightning
makes of its own checkpoint.

Printed is one line for each pair of halves; exit code 1 when any differs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from checkpoint_runs import POINTS_OF, SCENARIOS

FRAMEWORKS = ("fulmen", "lightning")
POINTS = ("epoch", "middle", "end")
RUNS = Path(__file__).with_name("checkpoint_runs.py")
# our own part, who wrote it, the clock, and calls of zero_grad (Lightning counts one for each call of a closure)
VOLATILE = {"fulmen", "pytorch-lightning_version", "time_elapsed", "zero_grad"}
# SWALR makes no use of these; at the end of fit the average replaces that, and before the end the losses show it
VOLATILE_IN = {"swa": {"base_lrs", "last_epoch", "initial_lr"}, "ema": {"current_model_state"}}
Record = dict[str, Any]
Key = tuple[
    str, ...
]  # ("whole", framework, scenario), ("first", framework, scenario, point), ("second", saved by, ...)


# ------------------------------------------------------------------------------------------------ running


def run_all(pythons: dict[str, str], scenarios: list[str], folder: Path) -> dict[Key, Record]:
    """All whole runs, all first halves, and each second half by both frameworks."""
    halves = [(scenario, point) for scenario in scenarios for point in POINTS_OF.get(scenario, POINTS)]
    records: dict[Key, Record] = {}
    for framework in FRAMEWORKS:
        keys: list[Key] = [("whole", framework, scenario) for scenario in scenarios]
        keys += [("first", framework, *half) for half in halves]
        records.update(do(framework, pythons[framework], keys, folder))
    for framework in FRAMEWORKS:
        keys = [("second", saved_by, framework, *half) for saved_by in FRAMEWORKS for half in halves]
        records.update(do(framework, pythons[framework], keys, folder))
    return records


def do(framework: str, python: str, keys: list[Key], folder: Path) -> dict[Key, Record]:
    """Does jobs in one process of a framework; their records."""
    listed, results = folder / "jobs.json", folder / "results.pt"
    listed.write_text(json.dumps([job(key, folder) for key in keys]))
    environment = {**os.environ, "PYTHONPATH": str(RUNS.parent.parent / "src") if framework == "fulmen" else ""}
    subprocess.run([python, str(RUNS), framework, str(listed), str(results)], check=True, env=environment, cwd=folder)
    return dict(zip(keys, torch.load(results, weights_only=False), strict=True))


def job(key: Key, folder: Path) -> dict[str, str]:
    """A job as ``checkpoint_runs.py`` takes it: all parts of a scenario run in the same folder, as paths are stored."""
    part, framework, *_ = key
    if part == "whole":
        return {"part": part, "scenario": key[-1], "folder": str(folder / "run" / key[-1])}
    scenario, point = key[-2:]
    saved = str(folder / "saved" / framework / scenario / point)
    described = {"part": part, "scenario": scenario, "point": point, "folder": str(folder / "run" / scenario)}
    return {**described, "to" if part == "first" else "from": saved}


# ------------------------------------------------------------------------------------------------ comparing


def difference(left: Any, right: Any, volatile: set[str], where: str = "") -> str | None:
    """The first place in which two nested values differ, None if there is none; volatile keys are passed over."""
    if isinstance(left, dict) and isinstance(right, dict):
        left, right = ({k: v for k, v in each.items() if k not in volatile} for each in (left, right))
        if left.keys() != right.keys():
            return f"{where}: only on one side: {sorted(map(str, left.keys() ^ right.keys()))}"
        pairs = [(key, left[key], right[key]) for key in left]
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        pairs = [(index, *pair) for index, pair in enumerate(zip(left, right, strict=False))]
        if len(left) != len(right):
            pairs.append((min(len(left), len(right)), f"{len(left)} entries", f"{len(right)} entries"))
    else:
        return None if same(left, right) else f"{where}: {left!r} != {right!r}"
    return next((found for key, *pair in pairs if (found := difference(*pair, volatile, f"{where}/{key}"))), None)


def same(left: Any, right: Any) -> bool:
    """Whether two leaves are equal, numbers up to rounding."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and torch.allclose(left, right, rtol=1e-5, atol=1e-6)
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-5, abs_tol=1e-6) or (math.isnan(left) and math.isnan(right))
    return bool(left == right)


def judge(records: dict[Key, Record], saved_by: str, run_by: str, scenario: str, point: str) -> tuple[bool, str]:
    """Whether a run in two halves is what it is to be, and why."""
    first, second = records["first", saved_by, scenario, point], records["second", saved_by, run_by, scenario, point]
    whole = records["whole", run_by, scenario]
    alone = records["first", "lightning", scenario, point], records["second", "lightning", "lightning", scenario, point]
    fails_alone = any("error" in record for record in alone)
    if errors := [record["error"] for record in (first, second, whole) if "error" in record]:
        return run_by == "lightning" and fails_alone, f"fails: {errors[0]}"
    resumed_from = [second["resumed_from"]]  # whether that file is kept is a matter of taste
    files = [name for name in whole["files"] if name not in resumed_from]
    goal = {"tape": steps(whole["tape"]), "files": files, "end": whole["end"]}
    volatile = VOLATILE | VOLATILE_IN.get(scenario, set())
    if (found := difference(goal, assembled(first, second), volatile)) is None:
        return True, "as in one piece"
    if saved_by == run_by:
        return run_by == "lightning", f"not as in one piece: {found}"
    if fails_alone:
        return True, f"better than Lightning, which fails from its own checkpoint; {found}"
    if (more := difference(assembled(*alone), assembled(first, second), volatile)) is None:
        return True, "as Lightning from its own checkpoint"
    return False, f"not as in one piece: {found}; not as Lightning from its own checkpoint: {more}"


def assembled(first: Record, second: Record) -> Record:
    """Two halves as one run."""
    return {"tape": steps(first["tape"]) + steps(second["tape"]), "files": second["files"], "end": second["end"]}


def steps(tape: list[Any]) -> list[Any]:
    """Batches and validations, and what the logger got; not what the start of a run adds."""
    return [entry for entry in tape if entry[0] in ("train", "val", "log")]


def brief(text: str) -> str:
    """The first and the last line of a text."""
    lines = text.strip().splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"


def report(records: dict[Key, Record], scenarios: list[str]) -> tuple[list[str], list[str]]:
    """All lines, and those of them that tell of a difference."""
    lines, differing = [], []
    for scenario in scenarios:
        both = (records["whole", framework, scenario] for framework in FRAMEWORKS)
        whole = difference(*both, VOLATILE | VOLATILE_IN.get(scenario, set()))
        cases = [("whole run  in both", whole is None, whole or "the same")]
        for point in POINTS_OF.get(scenario, POINTS):
            cases += [
                (f"{point:7} {saved_by:9} -> {run_by:9}", *judge(records, saved_by, run_by, scenario, point))
                for saved_by in FRAMEWORKS
                for run_by in FRAMEWORKS
            ]
        for case, good, why in cases:
            lines.append(f"{scenario:22} {case:28} {'' if good else 'DIFFERS: '}{brief(why) if good else why}")
            differing += [] if good else [lines[-1]]
    return lines, differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="a Python in which Lightning is installed")
    parser.add_argument("scenarios", nargs="*", help=f"of {', '.join(SCENARIOS)}; all if none is given")
    arguments = parser.parse_args()
    scenarios = arguments.scenarios or list(SCENARIOS)
    with tempfile.TemporaryDirectory() as folder:
        pythons = {"fulmen": sys.executable, "lightning": str(arguments.python.absolute())}
        records = run_all(pythons, scenarios, Path(folder).resolve())
    lines, differing = report(records, scenarios)
    print("\n".join([*lines, f"{len(differing)} of {len(lines)} differ"]))
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
