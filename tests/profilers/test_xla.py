from __future__ import annotations

import inspect
import sys
from types import ModuleType

import pytest

from fulmen.extras import available
from fulmen.profilers import XLAProfiler


@pytest.mark.skipif(available("torch_xla"), reason="torch_xla is installed")
def test_without_torch_xla_it_says_what_is_missing(trainer_with):
    with pytest.raises(ModuleNotFoundError, match="torch_xla"):
        XLAProfiler()
    with pytest.raises(ModuleNotFoundError, match="pip install torch_xla"):
        trainer_with("xla")


def test_the_port():
    assert inspect.signature(XLAProfiler).parameters["port"].default == 9012


class Service(ModuleType):
    """The interface of torch_xla's profiler, the foreign service."""

    def __init__(self):
        super().__init__("torch_xla.debug.profiler")
        self.events = []

    def start_server(self, port):
        self.events.append(("server", port))
        return object()

    def record(self, *name, **step):
        service = self

        class Record:
            def __enter__(self):
                service.events.append(("begin", *name, *step.values()))

            def __exit__(self, *_):
                service.events.append(("end", *name, *step.values()))

        return Record()

    Trace = StepTrace = record


def test_steps_are_numbered_and_other_parts_are_named(monkeypatch, trainer_with, net, batches):
    service = Service()
    for name, module in {
        "torch_xla": ModuleType("torch_xla"),
        "torch_xla.debug": ModuleType("torch_xla.debug"),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "torch_xla.debug.profiler", service)
    trainer_with(XLAProfiler(port=1)).fit(net(), batches(1), batches(2))
    assert service.events == [
        ("server", 1),
        ("begin", "training_step"),
        ("end", "training_step"),
        ("begin", "backward"),
        ("end", "backward"),
        ("begin", "validation_step", 0),
        ("end", "validation_step", 0),
        ("begin", "validation_step", 1),
        ("end", "validation_step", 1),
    ]
