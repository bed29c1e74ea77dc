"""Validation and test as runs of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fulmen
from fulmen.data import CombinedLoader
from fulmen.errors import MisconfigurationException, PossibleUserWarning

CALLS = ["validate", "test"]
STEP = {"validate": "validation", "test": "test"}


def evaluating(base: type[Any], function: Any, stage: str) -> Any:
    """A module whose step of the stage is a function of the module and what the loop gives."""
    return type("Evaluates", (base,), {f"{STEP[stage]}_step": function})()


@pytest.mark.parametrize("stage", CALLS)
def test_results_are_the_metrics_of_the_epoch_as_numbers(quiet: Any, Net: Any, data: Any, stage: str) -> None:
    def step(self: Any, batch: Tensor, batch_idx: int) -> None:
        self.log("mean", batch.mean())
        self.log("both", batch.mean(), on_step=True, on_epoch=True)
        self.log("largest", batch.max(), reduce_fx="max")
        self.log("step", batch.mean(), on_step=True, on_epoch=False)
        self.log("hidden", batch.mean(), logger=False)

    module = evaluating(Net, step, stage)
    setattr(module, f"on_{STEP[stage]}_epoch_end", lambda: module.log("late", 7))
    results = getattr(quiet(), stage)(module, data(4), verbose=False)
    assert results == [{"mean": 1.5, "both_epoch": 1.5, "largest": 3.0, "late": 7}]
    assert all(type(value) in (int, float) for value in results[0].values())


@pytest.mark.parametrize("stage", CALLS)
def test_means_are_weighted_by_the_batch_size(quiet: Any, Net: Any, data: Any, stage: str) -> None:
    def step(self: Any, batch: Tensor, batch_idx: int) -> None:
        self.log("mean", batch.mean())
        self.log("plain", batch.mean(), batch_size=1)

    results = getattr(quiet(), stage)(evaluating(Net, step, stage), data(3, batch_size=2), verbose=False)
    assert results == [{"mean": 1.0, "plain": 1.25}]


@pytest.mark.parametrize("stage", CALLS)
def test_several_loaders(quiet: Any, Net: Any, data: Any, stage: str) -> None:
    seen = []

    def step(self: Any, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        seen.append((dataloader_idx, batch_idx))
        self.log("m", batch.mean())
        self.log(f"own_{dataloader_idx}", batch.mean(), add_dataloader_idx=False)

    module = evaluating(Net, step, stage)
    setattr(module, f"on_{STEP[stage]}_epoch_end", lambda: module.log("all", 7.0))
    results = getattr(quiet(), stage)(module, [data(3), data(1), data(2)], verbose=False)
    assert seen == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]
    assert results == [
        {"m/dataloader_idx_0": 1.0, "own_0": 1.0, "all": 7.0},
        {"m/dataloader_idx_1": 0.0, "own_1": 0.0, "all": 7.0},
        {"m/dataloader_idx_2": 0.5, "own_2": 0.5, "all": 7.0},
    ]


@pytest.mark.parametrize("stage", CALLS)
@pytest.mark.parametrize("kind", ["start", "step", "end"])
def test_several_loaders_need_dataloader_idx(quiet: Any, ValNet: Any, data: Any, stage: str, kind: str) -> None:
    module = ValNet()
    if kind == "step":
        name = f"{STEP[stage]}_step"
    else:
        setattr(module, f"{STEP[stage]}_step", lambda batch, batch_idx, dataloader_idx: None)
        name = f"on_{STEP[stage]}_batch_{kind}"

        def hook(*, batch: Any, batch_idx: int) -> None: ...

        setattr(module, name, hook)
    with pytest.raises(RuntimeError, match=f"several dataloaders, but `{name}` does not take `dataloader_idx`"):
        getattr(quiet(), stage)(module, [data(1), data(1)], verbose=False)


@pytest.mark.parametrize("stage", CALLS)
def test_arguments_by_name_are_no_dataloader_idx(quiet: Any, Net: Any, data: Any, stage: str) -> None:
    def step(self: Any, batch: Tensor, batch_idx: int, **arguments: Any) -> None:
        assert arguments == {}

    module = evaluating(Net, step, stage)
    getattr(quiet(), stage)(module, data(1), verbose=False)
    with pytest.raises(RuntimeError, match=f"`{STEP[stage]}_step` does not take `dataloader_idx`"):
        getattr(quiet(), stage)(module, [data(1), data(1)], verbose=False)


@pytest.mark.parametrize("stage", CALLS)
def test_one_loader_gives_no_dataloader_idx(quiet: Any, Net: Any, data: Any, stage: str) -> None:
    def step(self: Any, batch: Tensor, batch_idx: int, dataloader_idx: int) -> None: ...

    with pytest.raises(RuntimeError, match=f"one dataloader, but `{STEP[stage]}_step` requires `dataloader_idx`"):
        getattr(quiet(), stage)(evaluating(Net, step, stage), [data(1)], verbose=False)


def step_of_batch(self: Any, batch: Tensor) -> None:
    self.seen = [*getattr(self, "seen", []), float(batch.mean())]


def step_of_two(self: Any, x: Tensor, i: int) -> None:
    self.seen = [*getattr(self, "seen", []), float(x.mean() + i)]


def step_of_all(self: Any, *arguments: Any) -> None:
    self.seen = [*getattr(self, "seen", []), len(arguments)]


@pytest.mark.parametrize("stage", CALLS)
@pytest.mark.parametrize(("step", "seen"), [(step_of_batch, [0, 1]), (step_of_two, [0, 2]), (step_of_all, [2, 2])])
def test_arguments_of_the_step(quiet: Any, Net: Any, data: Any, stage: str, step: Any, seen: list[Any]) -> None:
    module = evaluating(Net, step, stage)
    getattr(quiet(), stage)(module, data(2), verbose=False)
    assert module.seen == seen


@pytest.mark.parametrize("stage", CALLS)
def test_loaders_drawn_from_at_once(quiet: Any, Net: Any, data: Any, stage: str) -> None:
    seen = []

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        seen.append((int(batch["a"].mean()), None if batch["b"] is None else int(batch["b"].mean())))

    loaders = CombinedLoader({"a": data(3), "b": data(2)}, "max_size")
    results = getattr(quiet(), stage)(evaluating(Net, step, stage), loaders, verbose=False)
    assert seen == [(0, 0), (1, 1), (2, None)]
    assert results == [{}]


@pytest.mark.parametrize("stage", CALLS)
@pytest.mark.parametrize(
    ("limit", "batches"), [(3, 3), (1, 1), (0.5, 4), (0.99, 7), (1.0, 8), (2.0, 2), (100, 8)], ids=str
)
def test_limits(quiet: Any, ValNet: Any, data: Any, stage: str, limit: float, batches: int) -> None:
    trainer = quiet(**{f"limit_{stage[:3] if stage == 'validate' else stage}_batches": limit})
    results = getattr(trainer, stage)(ValNet(), data(8), verbose=False)
    assert list(results[0].values()) == [(batches - 1) / 2]
    assert (trainer.num_val_batches if stage == "validate" else trainer.num_test_batches) == [batches]


@pytest.mark.parametrize("stage", CALLS)
def test_limits_count_for_each_loader(quiet: Any, Net: Any, data: Any, stage: str) -> None:
    def step(self: Any, batch: Tensor, batch_idx: int, dataloader_idx: int) -> None:
        self.log("m", 1.0, reduce_fx="sum")

    trainer = quiet(limit_val_batches=0.5, limit_test_batches=0.5)
    results = getattr(trainer, stage)(evaluating(Net, step, stage), [data(6), data(2)], verbose=False)
    assert [list(metrics.values()) for metrics in results] == [[3], [1]]


@pytest.mark.parametrize("stage", CALLS)
@pytest.mark.parametrize("limit", [0, 0.0])
def test_nothing_to_run_gives_no_results(quiet: Any, ValNet: Any, data: Any, stage: str, limit: float) -> None:
    module = ValNet()

    def never() -> None:
        raise AssertionError

    setattr(module, f"on_{STEP[stage]}_start", never)
    trainer = quiet(limit_val_batches=limit, limit_test_batches=limit)
    assert getattr(trainer, stage)(module, data(2), verbose=False) == []
    assert module.training


@pytest.mark.parametrize("stage", CALLS)
@pytest.mark.parametrize("inference", [True, False])
def test_no_gradients(quiet: Any, Net: Any, data: Any, stage: str, inference: bool) -> None:
    def step(self: Any, batch: Tensor, batch_idx: int) -> None:
        self.modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), self.training, self.layer.training)

    module = evaluating(Net, step, stage)
    module.layer.eval()
    getattr(quiet(inference_mode=inference), stage)(module, data(1), verbose=False)
    assert module.modes == (False, inference, False, False)
    assert (torch.is_grad_enabled(), module.training, module.layer.training) == (True, True, False)


@pytest.mark.parametrize("stage", CALLS)
def test_precision(quiet: Any, Net: Any, data: Any, stage: str) -> None:
    def step(self: Any, batch: Tensor, batch_idx: int) -> None:
        self.dtypes = batch.dtype, self.layer(batch).dtype

    for precision, dtypes in [
        ("bf16-mixed", (torch.float32, torch.bfloat16)),
        ("64-true", (torch.float64, torch.float64)),
    ]:
        module = evaluating(Net, step, stage)
        getattr(quiet(precision=precision), stage)(module, data(1), verbose=False)
        assert module.dtypes == dtypes


@pytest.mark.parametrize("stage", CALLS)
def test_the_module_of_the_last_run_is_used_again(quiet: Any, ValNet: Any, data: Any, stage: str) -> None:
    trainer, module = quiet(), ValNet()
    with pytest.raises(TypeError, match="without a model, and none from an earlier run"):
        getattr(trainer, stage)(dataloaders=data(1))
    first = getattr(trainer, stage)(module, data(3), verbose=False)
    assert getattr(trainer, stage)(module, verbose=False, dataloaders=data(3)) == first


@pytest.mark.parametrize("stage", CALLS)
def test_data_come_from_a_datamodule(quiet: Any, ValNet: Any, data: Any, stage: str) -> None:
    class Data(fulmen.LightningDataModule):
        def val_dataloader(self) -> Any:
            return data(3)

        test_dataloader = val_dataloader

    datamodule = Data()
    trainer = quiet()
    for keywords in ({"dataloaders": datamodule}, {"datamodule": datamodule}):
        assert list(getattr(trainer, stage)(ValNet(), verbose=False, **keywords)[0].values()) == [1.0]
    assert trainer.datamodule is datamodule
    with pytest.raises(MisconfigurationException, match="dataloaders and a datamodule"):
        getattr(trainer, stage)(ValNet(), data(1), datamodule=datamodule)


@pytest.mark.parametrize("stage", CALLS)
def test_the_results_are_printed_unless_told_not_to(
    quiet: Any, ValNet: Any, data: Any, stage: str, capsys: Any
) -> None:
    getattr(quiet(), stage)(ValNet(), data(3), verbose=False)
    assert capsys.readouterr().out == ""
    getattr(quiet(), stage)(ValNet(), data(3))
    assert f"{stage.capitalize()} metric" in capsys.readouterr().out


@pytest.mark.parametrize("stage", CALLS)
def test_each_run_counts_anew(quiet: Any, ValNet: Any, data: Any, stage: str) -> None:
    trainer, module = quiet(), ValNet()
    loop = trainer.validate_loop if stage == "validate" else trainer.test_loop
    for batches in (3, 2):
        results = getattr(trainer, stage)(module, data(batches), verbose=False)
        assert loop.batch_progress.current.completed == batches
        assert list(results[0].values()) == [(batches - 1) / 2]


def test_outputs_of_the_step_reach_the_hooks(quiet: Any, ValNet: Any, data: Any) -> None:
    seen = []

    class Watches(fulmen.Callback):
        def on_test_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            seen.append((outputs, float(batch.mean()), batch_idx, dataloader_idx, trainer.test_loop.is_last_batch))

    module = ValNet()
    module.test_step = lambda batch, batch_idx: {"index": batch_idx}
    quiet(callbacks=[Watches()]).test(module, data(2))
    assert seen == [({"index": 0}, 0.0, 0, 0, False), ({"index": 1}, 1.0, 1, 0, True)]


def test_a_shuffled_evaluation_is_probably_a_mistake(quiet: Any, ValNet: Any, data: Any) -> None:
    with pytest.warns(PossibleUserWarning, match="shuffle"):
        quiet().test(ValNet(), data(2, shuffle=True), verbose=False)
