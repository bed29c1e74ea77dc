"""What validate and test return and print."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.fixture
def Evaluated(ValNet):
    class Evaluated(ValNet):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("both", batch_idx + 10 * dataloader_idx, on_step=True, on_epoch=True)
            self.log("hidden", 1.0, logger=False)
            self.log("step only", 1.0, on_step=True, on_epoch=False)
            self.log("tensor", torch.tensor(2.5, dtype=torch.bfloat16))

        def on_test_epoch_end(self) -> None:
            self.log("end", 7)

        validation_step = test_step
        on_validation_epoch_end = on_test_epoch_end

    return Evaluated


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_one_loader(Evaluated, data, quiet, stage):
    results = getattr(quiet(), stage)(Evaluated(), data(2), verbose=False)
    assert results == [{"both_epoch": 0.5, "tensor": 2.5, "end": 7.0}]
    assert {type(value) for value in results[0].values()} == {float}


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_several_loaders(Evaluated, data, quiet, stage):
    results = getattr(quiet(), stage)(Evaluated(), [data(2), data(1)], verbose=False)
    assert results == [
        {"both_epoch/dataloader_idx_0": 0.5, "tensor/dataloader_idx_0": 2.5, "end": 7.0},
        {"both_epoch/dataloader_idx_1": 10.0, "tensor/dataloader_idx_1": 2.5, "end": 7.0},
    ]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_table(Evaluated, data, quiet, stage, capsys):
    getattr(quiet(), stage)(Evaluated(), [data(2), data(1)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip("-")]
    assert lines == [
        [stage.capitalize(), "metric", "DataLoader", "0", "DataLoader", "1"],
        ["both_epoch", "0.5", "10"],
        ["end", "7", "7"],
        ["tensor", "2.5", "2.5"],
    ]


def test_no_table_when_not_asked_for_or_empty(Evaluated, ValNet, data, quiet, capsys):
    quiet().test(Evaluated(), data(1), verbose=False)
    assert quiet().test(ValNet(), data(1)) == [{}]
    assert capsys.readouterr().out == ""


def test_without_batches_there_are_no_results(Evaluated, data, quiet, recorder, capsys):
    assert quiet(limit_test_batches=0).test(Evaluated(), [data(2), data(1)]) == []
    assert recorder.rows == []
    assert capsys.readouterr().out == ""
