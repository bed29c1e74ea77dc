"""Torchmetrics objects in `self.log`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fulmen.errors import MisconfigurationException

torchmetrics = pytest.importorskip("torchmetrics")


class Accuracy(torchmetrics.Metric):
    """Share of right predictions; counts how often it is computed and reset."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0.0), dist_reduce_fx="sum")
        self.computed = self.resets = 0

    def update(self, predicted: Tensor, target: Tensor) -> None:
        self.right += (predicted == target).sum()
        self.seen += target.numel()

    def compute(self) -> Tensor:
        self.computed += 1
        return self.right / self.seen

    def reset(self) -> None:
        self.resets = getattr(self, "resets", 0) + 1
        super().reset()


class Wrong(Accuracy):
    def compute(self) -> Tensor:
        return 1 - super().compute()


@pytest.fixture
def fit(Net, data, quiet):
    """Fits a module with the given attributes, whose training step calls `log(module, batch_idx)`."""

    def run(log: Any, epochs: int = 1, batches: int = 2, **metrics: Any) -> Any:
        class WithMetrics(Net):
            def __init__(self) -> None:
                super().__init__()
                for name, metric in metrics.items():
                    setattr(self, name, metric)

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                log(self, batch_idx)
                return super().training_step(batch, batch_idx)

        trainer = quiet(max_epochs=epochs)
        trainer.fit(WithMetrics(), data(batches))
        return trainer

    return run


def rights(count: int) -> tuple[Tensor, Tensor]:
    """Predictions of which ``count`` of four are right."""
    return torch.arange(4) < count, torch.ones(4, dtype=torch.bool)


def test_the_step_has_the_forward_value_and_the_epoch_the_state_s(fit, recorder):
    accuracy = Accuracy()

    def log(module: Any, batch_idx: int) -> None:
        module.accuracy(*rights(1 + 2 * batch_idx))
        module.log("accuracy", module.accuracy, on_step=True, on_epoch=True)

    trainer = fit(log, epochs=2, accuracy=accuracy)
    assert recorder.having("accuracy_step") == [(0.25, 0), (0.75, 1), (0.25, 2), (0.75, 3)]
    assert recorder.having("accuracy_epoch") == [(0.5, 1), (0.5, 3)]  # of its epoch alone: it was reset
    assert trainer.callback_metrics == {"accuracy": 0.5, "accuracy_step": 0.75, "accuracy_epoch": 0.5}


def test_an_epoch_computes_once(fit):
    accuracy = Accuracy()

    def log(module: Any, batch_idx: int) -> None:
        module.accuracy.update(*rights(2))
        module.log("accuracy", module.accuracy, on_step=False, on_epoch=True)

    trainer = fit(log, batches=3, accuracy=accuracy)
    for _ in range(3):
        assert trainer.callback_metrics == {"accuracy": 0.5}
    assert accuracy.computed == 1
    assert accuracy.resets == 1
    assert accuracy.seen == 0


def test_only_updating_gives_nothing_for_the_step(fit, recorder):
    def log(module: Any, batch_idx: int) -> None:
        module.accuracy.update(*rights(1))
        module.log("accuracy", module.accuracy, on_step=True, on_epoch=True)

    trainer = fit(log, accuracy=Accuracy())
    assert recorder.rows == [({"accuracy_epoch": 0.25, "epoch": 0}, 1)]
    assert trainer.callback_metrics == {"accuracy": 0.25, "accuracy_epoch": 0.25}


def test_by_step_alone_it_is_not_computed_but_reset(fit, recorder):
    accuracy = Accuracy()
    seen = []

    def log(module: Any, batch_idx: int) -> None:
        seen.append(int(accuracy.seen))
        module.accuracy(*rights(3))
        module.log("accuracy", module.accuracy)
        accuracy.computed = 0

    fit(log, epochs=2, accuracy=accuracy)
    assert seen == [0, 4, 0, 4]
    assert [value for value, _ in recorder.having("accuracy")] == [0.75] * 4
    assert accuracy.computed == 0


def test_mean_metric(fit, recorder):
    def log(module: Any, batch_idx: int) -> None:
        module.mean(float(batch_idx), weight=batch_idx + 1.0)
        module.log("mean", module.mean, on_step=True, on_epoch=True)

    fit(log, batches=3, mean=torchmetrics.MeanMetric())
    assert recorder.having("mean_step") == [(0.0, 0), (1.0, 1), (2.0, 2)]
    assert recorder.having("mean_epoch") == [(pytest.approx(8 / 6), 2)]


def test_logged_by_an_epoch_hook(Net, data, quiet, recorder):
    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy = Accuracy()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.accuracy.update(*rights(1))
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self) -> None:
            self.log("accuracy", self.accuracy)

    module = Late()
    quiet(max_epochs=2).fit(module, data(2))
    assert recorder.having("accuracy") == [(0.25, 1), (0.25, 3)]
    assert module.accuracy.computed == 2


@pytest.mark.parametrize("update_only", [False, True])
def test_a_collection_through_log_dict(fit, recorder, update_only):
    """`update` shares the state of the two metrics, `forward` does not."""

    def log(module: Any, batch_idx: int) -> None:
        (module.both.update if update_only else module.both)(*rights(1 + 2 * batch_idx))
        module.log_dict(module.both, on_step=True, on_epoch=True)

    both = torchmetrics.MetricCollection({"accuracy": Accuracy(), "wrong": Wrong()}, prefix="train_")
    trainer = fit(log, epochs=2, both=both)
    assert recorder.having("train_accuracy_epoch") == [(0.5, 1), (0.5, 3)]
    assert recorder.having("train_wrong_epoch") == [(0.5, 1), (0.5, 3)]
    steps = [] if update_only else [(0.25, 0), (0.75, 1), (0.25, 2), (0.75, 3)]
    assert recorder.having("train_accuracy_step") == steps
    assert recorder.having("train_wrong_step") == [(1 - value, step) for value, step in steps]
    assert trainer.callback_metrics["train_wrong"] == 0.5


def test_values_by_name_through_log_dict(fit, recorder):
    def log(module: Any, batch_idx: int) -> None:
        module.log_dict({"a": 1.0, "b": torch.tensor(2.0), "accuracy": module.accuracy}, on_step=False, on_epoch=True)
        module.accuracy.update(*rights(1))

    fit(log, accuracy=Accuracy())
    assert recorder.rows == [({"a": 1.0, "b": 2.0, "accuracy": 0.25, "epoch": 0}, 1)]


def test_one_metric_for_two_loaders_begins_anew_with_each(ValNet, data, quiet, recorder):
    class TwoLoaders(ValNet):
        def __init__(self) -> None:
            super().__init__()
            self.mean = torchmetrics.MeanMetric()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.mean(10.0 * dataloader_idx + batch_idx)
            self.log("mean", self.mean)

    trainer, module = quiet(), TwoLoaders()
    for _ in range(2):
        results = trainer.validate(module, [data(2), data(2)], verbose=False)
        assert results == [{"mean/dataloader_idx_0": 0.5}, {"mean/dataloader_idx_1": 10.5}]


def test_a_metric_elsewhere_is_refused(fit):
    stranger = Accuracy()

    def log(module: Any, batch_idx: int) -> None:
        stranger(*rights(1))
        module.log("accuracy", stranger)

    with pytest.raises(MisconfigurationException, match=r"Accuracy.*not an attribute of the module.*self.accuracy = "):
        fit(log)


def test_a_metric_elsewhere_may_be_named(fit, recorder):
    holder = {"metric": Accuracy()}

    def log(module: Any, batch_idx: int) -> None:
        holder["metric"](*rights(1))
        module.log("accuracy", holder["metric"], metric_attribute="holder")

    fit(log)
    assert len(recorder.having("accuracy")) == 2


def test_a_metric_in_a_part_of_the_module_is_found(fit, recorder):
    def log(module: Any, batch_idx: int) -> None:
        module.parts[0](*rights(1))
        module.log("accuracy", module.parts[0])

    fit(log, parts=torch.nn.ModuleList([Accuracy()]))
    assert len(recorder.having("accuracy")) == 2


def test_a_metric_that_computes_no_tensor_is_refused(fit):
    class Several(Accuracy):
        def compute(self) -> Any:
            return {"right": self.right}

    def log(module: Any, batch_idx: int) -> None:
        module.several.update(*rights(1))
        module.log("several", module.several, on_epoch=True)

    with pytest.raises(ValueError, match=r"'several'.*`compute\(\)` returned dict, expected a tensor"):
        fit(log, several=Several())


def test_what_is_published_has_no_graph(fit):
    class Weighted(Accuracy):
        is_differentiable = True

        def compute(self) -> Tensor:
            return super().compute() * torch.ones((), requires_grad=True)

    def log(module: Any, batch_idx: int) -> None:
        with torch.enable_grad():
            module.weighted(*rights(1))
        module.log("weighted", module.weighted, on_step=True, on_epoch=True)

    trainer = fit(log, weighted=Weighted())
    assert set(trainer.callback_metrics) == {"weighted", "weighted_step", "weighted_epoch"}
    assert not any(value.requires_grad for value in trainer.callback_metrics.values())


def test_a_metric_made_anew_each_epoch(Net, data, quiet, recorder):
    class Anew(Net):
        def on_train_epoch_start(self) -> None:
            self.accuracy = Accuracy()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.accuracy(*rights(1 + self.current_epoch))
            self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    quiet(max_epochs=2).fit(Anew(), data(2))
    assert recorder.having("accuracy") == [(0.25, 1), (0.5, 3)]
