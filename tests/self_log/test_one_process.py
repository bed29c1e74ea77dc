"""`self.log` in whole runs: the reductions, the names over several loaders, and what has no effect on one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fulmen
from fulmen.errors import MisconfigurationException

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")

REDUCED = {"mean": 2.25, "avg": 2.25, "min": 1.0, "max": 3.0, "sum": 6.0}


def training(Net: Any, **arguments: Any) -> Any:
    """A module that logs 1, 2, 3 under "x" in batches of 1, 1 and 2 samples."""

    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", float(batch_idx + 1), **arguments)
            return super().training_step(batch, batch_idx)

    return Logs()


def batches() -> list[Any]:
    return [torch.ones(1, 2), torch.ones(1, 2), torch.ones(2, 2)]


class Loader:
    def __iter__(self) -> Any:
        return iter(batches())


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("mean", "mean"),
        ("avg", "avg"),
        ("MAX", "max"),
        ("Min", "min"),
        ("sum", "sum"),
        (torch.mean, "mean"),
        (torch.min, "min"),
        (torch.max, "max"),
        (torch.sum, "sum"),
        (min, "min"),
        (max, "max"),
        (sum, "sum"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_reductions_of_an_epoch(quiet: Any, Net: Any, recorder: Any, given: Any, name: str) -> None:
    trainer = quiet()
    trainer.fit(training(Net, on_epoch=True, reduce_fx=given), Loader())
    assert recorder.having("x_step") == [(1.0, 0), (2.0, 1), (3.0, 2)]
    assert recorder.having("x_epoch") == [(REDUCED[name], 2)]
    assert trainer.callback_metrics["x"] == trainer.callback_metrics["x_epoch"] == REDUCED[name]
    assert trainer.callback_metrics["x_step"] == 3.0


@pytest.mark.parametrize("given", ["median", torch.median, None, lambda values: values], ids=["a", "b", "c", "d"])
def test_other_reductions_end_the_run(quiet: Any, Net: Any, given: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"is not one of 'mean', 'min', 'max', 'sum'"):
        quiet().fit(training(Net, reduce_fx=given), Loader())


@pytest.mark.parametrize(("batch_size", "mean"), [(None, 2.25), (1, 2.0), (7, 2.0)])
def test_a_given_batch_size_wins(quiet: Any, Net: Any, batch_size: int | None, mean: float) -> None:
    trainer = quiet()
    trainer.fit(training(Net, on_epoch=True, batch_size=batch_size), Loader())
    assert trainer.callback_metrics["x"] == mean


@pytest.mark.parametrize(
    "arguments",
    [
        {"sync_dist": True},
        {"sync_dist": True, "sync_dist_group": object()},
        {"rank_zero_only": True},
        {"sync_dist": True, "rank_zero_only": True},
        {"enable_graph": True},
    ],
    ids="+".join,
)
def test_what_changes_nothing_on_one_process(quiet: Any, Net: Any, recorder: Any, arguments: Any) -> None:
    trainer = quiet()
    trainer.fit(training(Net, on_epoch=True, **arguments), Loader())
    assert recorder.having("x_step") == [(1.0, 0), (2.0, 1), (3.0, 2)]
    assert recorder.having("x_epoch") == [(2.25, 2)]


@pytest.mark.parametrize(
    ("arguments", "by_step", "by_epoch"),
    [
        ({}, [], ["v/dataloader_idx_0", "v/dataloader_idx_1"]),
        (
            {"on_step": True},
            ["v_step/dataloader_idx_0", "v_step/dataloader_idx_1"],
            ["v_epoch/dataloader_idx_0", "v_epoch/dataloader_idx_1"],
        ),
        ({"on_step": True, "on_epoch": False}, ["v/dataloader_idx_0", "v/dataloader_idx_1"], []),
    ],
    ids=str,
)
def test_names_over_two_loaders(
    quiet: Any, ValNet: Any, data: Any, recorder: Any, arguments: Any, by_step: list[str], by_epoch: list[str]
) -> None:
    class Logs(ValNet):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
            self.log("v", 10.0 * dataloader_idx + batch_idx, **arguments)

    results = quiet().validate(Logs(), [data(2), data(1)], verbose=False)
    steps = [(metrics, x) for metrics, x in recorder.rows if "epoch" not in metrics]
    if by_step:
        first, second = by_step
        assert steps == [({first: 0.0}, 0), ({first: 1.0}, 1), ({second: 10.0}, 0)]
    else:
        assert steps == []
    assert results == [{key: value} for key, value in zip(by_epoch, (0.5, 10.0), strict=False)] or not by_epoch
    rows = [metrics for metrics, _ in recorder.rows if "epoch" in metrics]
    assert rows == ([dict(zip(by_epoch, (0.5, 10.0), strict=True), epoch=0)] if by_epoch else [])


def test_log_dict_passes_its_arguments_on(quiet: Any, Net: Any, recorder: Any) -> None:
    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            values = {"a": batch_idx, "b": torch.tensor(2.0 * batch_idx)}
            self.log_dict(values, prog_bar=True, on_step=False, on_epoch=True, reduce_fx="sum", batch_size=5)
            self.log_dict({"c": 1.0}, logger=False)
            return super().training_step(batch, batch_idx)

    trainer = quiet()
    trainer.fit(Logs(), Loader())
    assert recorder.rows == [({"a": 3.0, "b": 6.0, "epoch": 0}, 2)]
    assert trainer.progress_bar_metrics == {"a": 3.0, "b": 6.0}
    assert trainer.callback_metrics == {"a": 3.0, "b": 6.0, "c": 1.0}


def test_callbacks_have_both_functions(quiet: Any, Net: Any, recorder: Any) -> None:
    class Logs(fulmen.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            self.log("a", 1.0)

        def on_train_epoch_end(self, *_: Any) -> None:
            self.log_dict({"b": 2.0})

    quiet(callbacks=Logs()).fit(Net(), Loader())
    assert recorder.rows == [({"a": 1.0, "epoch": 0}, x) for x in range(3)] + [({"b": 2.0, "epoch": 0}, 2)]


def test_all_gather_on_one_process(quiet: Any, Net: Any) -> None:
    gathered = []

    class Gathers(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            gathered.append(self.all_gather({"tensor": batch, "number": 3, "list": [1.5], "text": "x"}))
            return super().training_step(batch, batch_idx)

    quiet().fit(Gathers(), Loader())
    first = gathered[0]
    assert torch.equal(first["tensor"], batches()[0])
    assert (first["text"], torch.equal(first["number"], torch.tensor(3))) == ("x", True)
    assert torch.equal(first["list"][0], torch.tensor(1.5))
