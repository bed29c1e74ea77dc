"""Environments and collectives, under the paths users import: the very same classes."""

import importlib

import pytest

from fulmen.fabric import collectives, environments

ENVIRONMENTS = [name for name in environments.__all__ if name.endswith("Environment")]
COLLECTIVES = [name for name in collectives.__all__ if name.endswith("Collective")]


@pytest.mark.parametrize("shelf", ["fulmen.plugins.environments", "fulmen.fabric.plugins.environments"])
def test_environments(shelf):
    module = importlib.import_module(shelf)
    assert sorted(module.__all__) == sorted(ENVIRONMENTS)
    assert all(getattr(module, name) is getattr(environments, name) for name in ENVIRONMENTS)


def test_collectives():
    module = importlib.import_module("fulmen.fabric.plugins.collectives")
    assert sorted(module.__all__) == sorted(COLLECTIVES)
    assert all(getattr(module, name) is getattr(collectives, name) for name in COLLECTIVES)


@pytest.mark.parametrize("name", [*ENVIRONMENTS, *COLLECTIVES])
def test_each_has_a_file_of_its_own(name):
    home = environments if name in ENVIRONMENTS else collectives
    file = getattr(home, name).__module__.replace("fulmen.fabric.", "fulmen.fabric.plugins.")
    assert getattr(importlib.import_module(file), name) is getattr(home, name)


def test_functions_and_values():
    lightning = importlib.import_module("fulmen.fabric.plugins.environments.lightning")
    assert lightning.find_free_network_port is environments.find_free_network_port
    torch_collective = importlib.import_module("fulmen.fabric.plugins.collectives.torch_collective")
    assert torch_collective.default_pg_timeout.total_seconds() == 1800
