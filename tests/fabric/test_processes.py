"""Collectives of Fabric: what goes in comes out, numbers as tensors."""

import sys
from typing import NamedTuple

import torch
from torch import nn

from fulmen import Fabric
from fulmen.fabric.processes import _report_uncaught
from fulmen.fabric.strategies import SingleDeviceStrategy


class Pair(NamedTuple):
    a: object
    b: object


def test_gather_and_reduce_turn_numbers_into_tensors():
    run = Fabric(accelerator="cpu")
    tensor = torch.ones(2)
    assert run.all_gather(tensor) is tensor
    assert run.all_reduce(tensor, reduce_op="sum") is tensor
    result = run.all_reduce({"i": 3, "f": [0.5, True], "p": Pair(2, "text"), "n": None})
    assert result == {
        "i": torch.tensor(3),
        "f": [torch.tensor(0.5), torch.tensor(True)],
        "p": Pair(2, "text"),
        "n": None,
    }
    assert isinstance(result["p"].a, torch.Tensor)
    assert run.all_gather((1, 2.0))[1].item() == 2.0


def test_broadcast_barrier_and_print(capsys):
    run = Fabric(accelerator="cpu")
    obj = object()
    assert run.broadcast(obj) is obj
    run.barrier("here")
    run.print("hello", end="!")
    assert capsys.readouterr().out == "hello!"


def test_only_one_process_per_node_prints(capsys):
    class Second(SingleDeviceStrategy):
        local_rank = 1

    Fabric(strategy=Second()).print("hello")
    assert capsys.readouterr().out == ""


def test_rank_zero_goes_first():
    def order(rank):
        events = []

        class Ranked(SingleDeviceStrategy):
            global_rank = rank
            local_rank = 0

            def barrier(self, name=None):
                events.append("barrier")

        run = Fabric(strategy=Ranked())
        with run.rank_zero_first():
            events.append("work")
        with run.rank_zero_first(local=True):
            events.append("local work")
        return events

    assert order(0) == ["work", "barrier", "local work", "barrier"]
    assert order(1) == ["barrier", "work", "local work", "barrier"]


def test_to_device():
    run = Fabric(accelerator="cpu")
    model = nn.Linear(1, 1)
    assert run.to_device(model) is model
    moved = run.to_device({"x": [torch.ones(1, device="cpu")], "y": 3})
    assert moved["x"][0].device == run.device
    assert moved["y"] == 3


def test_an_exception_that_nobody_catches_is_explained(monkeypatch):
    shown = []

    class Explains(SingleDeviceStrategy):
        def explain(self, error):
            return RuntimeError(f"because of {error}")

    monkeypatch.setattr(sys, "excepthook", lambda *args: shown.append(args))
    before = sys.excepthook
    _report_uncaught(Explains())
    error = ValueError("this")
    sys.excepthook(ValueError, error, None)
    (kind, explained, traceback), *rest = shown
    assert (kind, str(explained), traceback, rest) == (RuntimeError, "because of this", None, [])
    assert sys.excepthook is before


def test_on_one_device_nobody_explains(monkeypatch):
    before = sys.excepthook
    Fabric(accelerator="cpu").launch()
    assert sys.excepthook is before
