"""The examples run, and are written as a user would write them."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ACCURACY = {"digits.py": 0.98, "raw_loop.py": 0.97}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_only_public_names_are_used(example):
    tree = ast.parse(example.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("fulmen")]
    assert imports
    for node in imports:
        assert {alias.name for alias in node.names} <= set(importlib.import_module(node.module).__all__)
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert [name for name in names if re.match(r"_(?!_)", name)] == []


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_reaches_its_accuracy(example, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    environment.pop("PL_GLOBAL_SEED", None)
    command = [sys.executable, "-W", "error", str(example)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    accuracy = re.findall(r"test.accuracy\W+(0\.\d+|1\.0)", run.stdout)[-1]
    assert float(accuracy) >= ACCURACY[example.name]
