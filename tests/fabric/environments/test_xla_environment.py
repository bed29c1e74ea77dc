"""The environment of torch_xla, which is played by a module of the few names that are used."""

import sys
from types import ModuleType

import pytest

from fulmen.fabric.environments import XLAEnvironment


def test_without_torch_xla(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    assert not XLAEnvironment.detect()
    with pytest.raises(ModuleNotFoundError, match="pip install torch_xla"):
        XLAEnvironment()


def test_what_torch_xla_says(monkeypatch):
    package, runtime = ModuleType("torch_xla"), ModuleType("torch_xla.runtime")
    package.__path__ = []
    sizes = {"world_size": 8, "global_ordinal": 5, "local_ordinal": 1, "host_index": 1}
    for name, value in sizes.items():
        setattr(runtime, name, lambda value=value: value)
    monkeypatch.setitem(sys.modules, "torch_xla", package)
    monkeypatch.setitem(sys.modules, "torch_xla.runtime", runtime)
    environment = XLAEnvironment()
    assert not environment.creates_processes_externally
    assert (environment.world_size(), environment.global_rank()) == (8, 5)
    assert (environment.local_rank(), environment.node_rank()) == (1, 1)
    environment.set_world_size(1)
    environment.set_global_rank(0)
    assert (environment.world_size(), environment.global_rank()) == (8, 5)
    for name in ("main_address", "main_port"):
        with pytest.raises(NotImplementedError, match="meet by itself"):
            getattr(environment, name)
