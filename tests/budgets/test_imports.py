"""What an import costs, counted in modules."""

import json
import subprocess
import sys

import pytest

MAX_MODULES_BEYOND_TORCH = 150


def modules_loaded(code):
    """Names of the modules that are in memory after `code` ran in a fresh interpreter."""
    report = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


@pytest.fixture(scope="module")
def of_torch():
    return modules_loaded("import torch")


def test_importing_fulmen_imports_the_standard_library_only():
    roots = {name.split(".")[0] for name in modules_loaded("import fulmen") - modules_loaded("")}
    assert roots - {"fulmen"} <= sys.stdlib_module_names
    assert len(roots) < 20


def test_importing_a_trainer_costs_little_more_than_torch(of_torch):
    new = modules_loaded("import fulmen; fulmen.Trainer") - of_torch
    assert len(new) <= MAX_MODULES_BEYOND_TORCH, sorted(new)


def test_no_third_party_but_torch_comes_with_the_trainer(of_torch):
    new = modules_loaded("import fulmen; fulmen.Trainer") - of_torch
    foreign = {name.split(".")[0] for name in new} - sys.stdlib_module_names - {"fulmen", "torch"}
    assert foreign == set()
