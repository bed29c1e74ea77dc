"""Prediction runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fulmen
from fulmen.data import CombinedLoader
from fulmen.errors import MisconfigurationException


def test_one_loader_gives_the_outputs_of_its_batches(quiet: Any, ValNet: Any, data: Any) -> None:
    trainer = quiet()
    assert trainer.predict(ValNet(), data(3)) == [0.0, 2.0, 4.0]
    assert trainer.predict_loop.predictions == [0.0, 2.0, 4.0]
    assert trainer.num_predict_batches == [3]


def test_several_loaders_give_a_list_for_each(quiet: Any, Net: Any, data: Any) -> None:
    module = Net()
    module.predict_step = lambda batch, batch_idx, dataloader_idx: (dataloader_idx, batch_idx)
    trainer = quiet()
    assert trainer.predict(module, [data(2), data(1)]) == [[(0, 0), (0, 1)], [(1, 0)]]
    assert trainer.predict_loop.predictions == [[(0, 0), (0, 1)], [(1, 0)]]
    assert quiet().predict(module, CombinedLoader([data(2), data(1)], "sequential")) == [[(0, 0), (0, 1)], [(1, 0)]]


def test_forward_is_the_default_step(quiet: Any, Net: Any, data: Any) -> None:
    class Forward(Net):
        def forward(self, batch: Tensor) -> Tensor:
            return 10 * batch[:, 0]

    assert quiet().predict(Forward(), data(3)) == [0.0, 10.0, 20.0]


def test_there_must_be_something_to_call(quiet: Any, Net: Any, data: Any) -> None:
    with pytest.raises(MisconfigurationException, match="needs `predict_step` or `forward`"):
        quiet().predict(Net(), data(1))
    module = Net()
    module.predict_step = None
    with pytest.raises(MisconfigurationException, match="needs `predict_step` or `forward`"):
        quiet().predict(module, data(1))


@pytest.mark.parametrize(("limit", "batches"), [(2, 2), (0.25, 2), (1.0, 8), (1, 1)], ids=str)
def test_limits(quiet: Any, ValNet: Any, data: Any, limit: float, batches: int) -> None:
    assert len(quiet(limit_predict_batches=limit).predict(ValNet(), data(8))) == batches


@pytest.mark.parametrize("limit", [0, 0.0])
def test_nothing_to_run_gives_nothing(quiet: Any, ValNet: Any, data: Any, limit: float) -> None:
    module = ValNet()
    module.on_predict_start = lambda: pytest.fail("must not be called")
    assert quiet(limit_predict_batches=limit).predict(module, data(2)) is None


def test_predictions_need_not_be_kept(quiet: Any, ValNet: Any, data: Any) -> None:
    trainer = quiet()
    assert trainer.predict(ValNet(), data(2), return_predictions=False) is None
    assert trainer.predict_loop.predictions == []
    assert trainer.predict(ValNet(), data(2), return_predictions=True) == [0.0, 2.0]
    assert trainer.predict(ValNet(), data(2)) == [0.0, 2.0]


def test_no_prediction_is_kept_with_a_warning(quiet: Any, ValNet: Any, data: Any) -> None:
    module = ValNet()
    module.predict_step = lambda batch, batch_idx: None
    with pytest.warns(UserWarning, match="`predict_step` returned None") as warned:
        assert quiet().predict(module, data(3)) == [None, None, None]
    assert len(warned) == 1


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
def test_loaders_cannot_be_drawn_from_at_once(quiet: Any, ValNet: Any, data: Any, mode: str) -> None:
    with pytest.raises(ValueError, match="'sequential'"):
        quiet().predict(ValNet(), CombinedLoader([data(1), data(1)], mode))


@pytest.mark.parametrize("kind", ["start", "step", "end"])
def test_several_loaders_need_dataloader_idx(quiet: Any, ValNet: Any, data: Any, kind: str) -> None:
    module = ValNet()
    name = "predict_step" if kind == "step" else f"on_predict_batch_{kind}"
    if kind != "step":
        module.predict_step = lambda batch, batch_idx, dataloader_idx: None

        def hook(*, batch: Any, batch_idx: int) -> None: ...

        setattr(module, name, hook)
    with pytest.raises(RuntimeError, match=f"several dataloaders, but `{name}` does not take `dataloader_idx`"):
        quiet().predict(module, [data(1), data(1)])


@pytest.mark.parametrize("inference", [True, False])
def test_no_gradients_and_eval_mode(quiet: Any, ValNet: Any, data: Any, inference: bool) -> None:
    module = ValNet()
    module.predict_step = lambda batch, batch_idx: (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        module.training,
    )
    assert quiet(inference_mode=inference).predict(module, data(1)) == [(False, inference, False)]
    assert module.training


def test_hooks_and_what_they_get(quiet: Any, ValNet: Any, data: Any) -> None:
    seen: list[Any] = []

    class Watches(fulmen.Callback):
        def on_predict_batch_start(
            self, trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            seen.append(("start", batch_idx, dataloader_idx))

        def on_predict_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            seen.append(("end", float(outputs), batch_idx, dataloader_idx))

        def on_predict_epoch_end(self, trainer: Any, module: Any) -> None:
            seen.append(("all", trainer.predict_loop.predictions))

    quiet(callbacks=[Watches()]).predict(ValNet(), data(2))
    assert seen[:4] == [("start", 0, 0), ("end", 0.0, 0, 0), ("start", 1, 0), ("end", 2.0, 1, 0)]
    assert seen[4] == ("all", [0.0, 2.0])


def test_nothing_can_be_logged(quiet: Any, ValNet: Any, data: Any) -> None:
    module = ValNet()
    module.predict_step = lambda batch, batch_idx: module.log("a", 1.0)
    with pytest.raises(MisconfigurationException, match="in `predict_step`"):
        quiet().predict(module, data(1))


def test_a_step_may_do_without_the_index(quiet: Any, Net: Any, data: Any) -> None:
    module = Net()
    module.predict_step = lambda batch: float(batch.sum())
    assert quiet().predict(module, data(2)) == [0.0, 2.0]
