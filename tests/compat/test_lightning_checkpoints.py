"""Half a run here, half with Lightning, in all combinations; Lightning is a black box in an environment of its own."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

PYTHON = os.environ.get("FULMEN_BENCH_PYTHON")
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def matrix() -> Any:
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield importlib.import_module("checkpoint_matrix")
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(PYTHON is None, reason="FULMEN_BENCH_PYTHON names no Python that has Lightning")
def test_either_goes_on_from_the_checkpoints_of_the_other(matrix: Any, tmp_path: Path) -> None:
    scenarios = list(matrix.SCENARIOS)
    records = matrix.run_all(
        {"fulmen": sys.executable, "lightning": str(Path(PYTHON or "").absolute())}, scenarios, tmp_path
    )
    lines, differing = matrix.report(records, scenarios)
    assert len(lines) > 200
    assert differing == []


@pytest.fixture
def records(matrix: Any) -> Any:
    """A run of two batches in both frameworks, in two halves in all combinations."""
    end = {"epoch": 2, "fulmen": 1, "weight": 0.5}
    records = {}
    for one in matrix.FRAMEWORKS:
        records["whole", one, "s"] = {"tape": [("train", 1), ("hparams", 1), ("train", 2)], "files": ["a"], "end": end}
        records["first", one, "s", "end"] = {"tape": [("hparams", 1), ("train", 1)]}
        for other in matrix.FRAMEWORKS:
            second = {"tape": [("train", 2)], "files": ["a"], "end": {**end, "fulmen": 2}, "resumed_from": "b"}
            records["second", one, other, "s", "end"] = second
    return records


def judged(matrix: Any, records: Any, saved_by: str, run_by: str) -> str:
    good, why = matrix.judge(records, saved_by, run_by, "s", "end")
    return f"{'good' if good else 'bad'}: {why}"


def test_the_judge_sees_what_differs(matrix: Any, records: Any) -> None:
    assert judged(matrix, records, "fulmen", "lightning") == "good: as in one piece"
    records["second", "fulmen", "lightning", "s", "end"]["end"]["weight"] = 0.6
    found = "/end/weight: 0.5 != 0.6"
    expected = f"bad: not as in one piece: {found}; not as Lightning from its own checkpoint: {found}"
    assert judged(matrix, records, "fulmen", "lightning") == expected
    records["second", "fulmen", "fulmen", "s", "end"]["tape"] = [("train", 3)]
    assert judged(matrix, records, "fulmen", "fulmen") == "bad: not as in one piece: /tape/1/1: 2 != 3"


def test_the_judge_forgives_what_lightning_does_by_itself(matrix: Any, records: Any) -> None:
    for saved_by in matrix.FRAMEWORKS:
        records["second", saved_by, "lightning", "s", "end"]["files"] = ["a", "c"]
    assert judged(matrix, records, "lightning", "lightning").startswith("good: not as in one piece: /files/1")
    assert judged(matrix, records, "fulmen", "lightning") == "good: as Lightning from its own checkpoint"
    records["second", "lightning", "lightning", "s", "end"] = {"error": "IndexError"}
    assert judged(matrix, records, "fulmen", "lightning").startswith("good: better than Lightning")
    records["second", "lightning", "fulmen", "s", "end"] = {"error": "KeyError"}
    assert judged(matrix, records, "lightning", "fulmen") == "bad: fails: KeyError"
