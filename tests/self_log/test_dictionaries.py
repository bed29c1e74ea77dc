"""What can be read in which hook: callback_metrics, logged_metrics, progress_bar_metrics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fulmen import Callback
from fulmen.callbacks import EarlyStopping

KINDS = {"callback": "callback_metrics", "logged": "logged_metrics", "bar": "progress_bar_metrics"}


class Watch(Callback):
    """Notes what is new or changed in the three dictionaries whenever a hook runs."""

    def __init__(self) -> None:
        self.before: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
        self.seen: list[tuple[str, dict[str, dict[str, float]]]] = []

    def look(self, hook: str, trainer: Any) -> None:
        changes = {}
        for kind, attribute in KINDS.items():
            now = {key: float(value) for key, value in getattr(trainer, attribute).items()}
            new = {key: value for key, value in now.items() if self.before[kind].get(key) != value}
            if new:
                changes[kind] = new
            self.before[kind] = now
        self.seen.append((hook, changes))

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.look(f"train_batch_start {batch_idx}", trainer)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.look(f"train_batch_end {batch_idx}", trainer)

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self.look("validation_start", trainer)

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.look(f"validation_batch_end {batch_idx} of {dataloader_idx}", trainer)

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        self.look("validation_epoch_end", trainer)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.look("validation_end", trainer)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.look("train_epoch_end", trainer)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.look("train_end", trainer)


@pytest.fixture
def LoggingNet(ValNet):
    class LoggingNet(ValNet):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            value = 10 * self.current_epoch + batch_idx
            self.log("t", float(value), on_step=True, on_epoch=True, prog_bar=True)
            self.log("plain", torch.tensor(float(batch_idx)))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("v", 100.0 + batch_idx, prog_bar=True)
            self.log("vs", 200.0 + batch_idx, on_step=True, on_epoch=True, prog_bar=True)
            self.log("vstep", 300.0 + batch_idx, on_step=True, on_epoch=False)

    return LoggingNet


def of_training_batch(index: int, epoch: int) -> dict[str, dict[str, float]]:
    t = 10.0 * epoch + index
    callback = {"t": t, "t_step": t, "plain": float(index)}
    return {"callback": callback, "logged": {"t_step": t, "plain": float(index)}, "bar": {"t_step": t}}


def of_validation_batch(index: int) -> dict[str, dict[str, float]]:
    vs = 200.0 + index
    return {"logged": {"vs_step": vs, "vstep": 300.0 + index}, "bar": {"vs_step": vs}}


OF_VALIDATION = {
    "callback": {"v": 100.5, "vs": 200.5, "vs_epoch": 200.5},
    "logged": {"v": 100.5, "vs_epoch": 200.5},
    "bar": {"v": 100.5, "vs_epoch": 200.5},
}


def of_epoch(epoch: int, **more: float) -> dict[str, dict[str, float]]:
    t = 10 * epoch + 0.5
    return {"callback": {"t": t, "t_epoch": t}, "logged": {"t_epoch": t}, "bar": {"t_epoch": t}}


@pytest.mark.parametrize("log_every_n_steps", [1, 2, 0])
def test_what_is_read_in_each_hook_of_a_fit(LoggingNet, data, quiet, log_every_n_steps):
    watch = Watch()
    trainer = quiet(callbacks=[watch], max_epochs=2, log_every_n_steps=log_every_n_steps)
    trainer.fit(LoggingNet(), data(2), data(2))
    expected: list[tuple[str, dict[str, Any]]] = []
    for epoch in (0, 1):
        expected += [("train_batch_start 0", {}), ("train_batch_end 0", of_training_batch(0, epoch))]
        expected += [("train_batch_start 1", {}), ("train_batch_end 1", of_training_batch(1, epoch))]
        expected += [("validation_start", {})]
        expected += [(f"validation_batch_end {index} of 0", of_validation_batch(index)) for index in (0, 1)]
        expected += [("validation_epoch_end", {} if epoch else OF_VALIDATION), ("validation_end", {})]
        expected += [("train_epoch_end", of_epoch(epoch))]
    assert watch.seen == [*expected, ("train_end", {})]


def test_order_and_types_after_a_fit(LoggingNet, data, quiet):
    trainer = quiet()
    trainer.fit(LoggingNet(), data(2), data(2))
    assert list(trainer.callback_metrics) == ["t", "t_step", "plain", "v", "vs", "vs_epoch", "t_epoch"]
    assert list(trainer.logged_metrics) == ["t_step", "plain", "vs_step", "vstep", "v", "vs_epoch", "t_epoch"]
    assert list(trainer.progress_bar_metrics) == ["t_step", "vs_step", "v", "vs_epoch", "t_epoch"]
    for metrics in (trainer.callback_metrics, trainer.logged_metrics):
        assert all(isinstance(value, Tensor) and value.device.type == "cpu" for value in metrics.values())
    assert all(isinstance(value, float) for value in trainer.progress_bar_metrics.values())


def test_two_loaders(ValNet, data, quiet, recorder):
    class TwoLoaders(ValNet):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            value = 10.0 * dataloader_idx + batch_idx
            self.log("both", value, on_step=True, on_epoch=True, prog_bar=True)
            self.log("plain", value)
            if dataloader_idx == 0:
                self.log("nosuf", value, add_dataloader_idx=False)

        def on_validation_epoch_end(self) -> None:
            self.log("end", 7.0)

    watch = Watch()
    results = quiet(callbacks=[watch]).validate(TwoLoaders(), [data(2), data(1)], verbose=False)

    def by_step(loader: int, value: float) -> dict[str, dict[str, float]]:
        key = f"both_step/dataloader_idx_{loader}"
        return {"logged": {key: value}, "bar": {key: value}}

    def by_epoch(loader: int, value: float, **more: float) -> dict[str, dict[str, float]]:
        suffix = f"/dataloader_idx_{loader}"
        bar = {f"both_epoch{suffix}": value}
        logged = {**bar, f"plain{suffix}": value, **more}
        return {"callback": {f"both{suffix}": value, **logged}, "logged": logged, "bar": bar}

    first, second = by_epoch(0, 0.5, nosuf=0.5), by_step(1, 10.0)
    between = {kind: {**first[kind], **second.get(kind, {})} for kind in KINDS}
    assert watch.seen == [
        ("validation_start", {}),
        ("validation_batch_end 0 of 0", by_step(0, 0.0)),
        ("validation_batch_end 1 of 0", by_step(0, 1.0)),
        ("validation_batch_end 0 of 1", between),
        ("validation_epoch_end", by_epoch(1, 10.0)),
        ("validation_end", {"callback": {"end": 7.0}, "logged": {"end": 7.0}}),
    ]
    suffixed = [{f"both_epoch/dataloader_idx_{i}": v, f"plain/dataloader_idx_{i}": v} for i, v in ((0, 0.5), (1, 10.0))]
    assert results == [{**suffixed[0], "nosuf": 0.5, "end": 7.0}, {**suffixed[1], "end": 7.0}]
    assert recorder.rows == [
        ({"both_step/dataloader_idx_0": 0.0}, 0),
        ({"both_step/dataloader_idx_0": 1.0}, 1),
        ({"both_step/dataloader_idx_1": 10.0}, 0),
        ({**suffixed[0], **suffixed[1], "nosuf": 0.5, "end": 7.0, "epoch": 0}, 0),
    ]


def test_one_name_for_two_loaders_is_refused(ValNet, data, quiet):
    class Mixes(ValNet):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("x", 1.0, add_dataloader_idx=False)

    with pytest.raises(Exception, match="was called for several loaders"):
        quiet().validate(Mixes(), [data(1), data(1)])


@pytest.mark.parametrize("step_only", [False, True])
def test_a_name_logged_twice_in_a_step(Net, data, quiet, recorder, step_only):
    class Twice(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for value in (batch_idx, batch_idx + 100):
                self.log("k", float(value), on_step=True, on_epoch=not step_only)
            return super().training_step(batch, batch_idx)

    trainer = quiet()
    trainer.fit(Twice(), data(3))
    key = "k" if step_only else "k_step"
    assert recorder.having(key) == [(100.0, 0), (101.0, 1), (102.0, 2)]
    assert trainer.callback_metrics["k"] == (102 if step_only else 51)
    assert recorder.having("k_epoch") == ([] if step_only else [(51.0, 2)])


@pytest.mark.parametrize(("reduce_fx", "expected"), [("sum", 306), ("max", 102), ("min", 0), ("mean", 51)])
def test_all_calls_of_a_step_count_for_the_epoch(Net, data, quiet, recorder, reduce_fx, expected):
    class Twice(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for value in (batch_idx, batch_idx + 100):
                self.log("k", float(value), on_step=False, on_epoch=True, reduce_fx=reduce_fx)
            return super().training_step(batch, batch_idx)

    quiet().fit(Twice(), data(3))
    assert recorder.having("k") == [(expected, 2)]


def test_one_name_from_several_hooks(ValNet, data, quiet, recorder):
    class Everywhere(ValNet):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("k", 1.0, on_step=True, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, *_: Any) -> None:
            self.log("k", 5.0, on_step=True, on_epoch=True)

        def on_train_epoch_end(self) -> None:
            self.log("k", 9.0)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("k", 30.0 + batch_idx)

    trainer = quiet()
    trainer.fit(Everywhere(), data(2), data(2))
    assert recorder.rows == [
        ({"k_step": 5.0, "epoch": 0}, 0),
        ({"k_step": 5.0, "epoch": 0}, 1),
        ({"k": 30.5, "epoch": 0}, 1),
        ({"k_epoch": 5.0, "k": 9.0, "epoch": 0}, 1),
    ]
    assert trainer.callback_metrics["k"] == 9


def test_reading_in_the_middle_of_a_step_gives_the_values_of_now(Net, data, quiet):
    read = []

    class Reads(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", float(batch_idx))
            read.append(float(self.trainer.callback_metrics["x"]))
            return super().training_step(batch, batch_idx)

    quiet().fit(Reads(), data(3))
    assert read == [0.0, 1.0, 2.0]


def test_what_is_logged_in_on_train_epoch_end_can_be_monitored_in_the_same_epoch(Net, data, quiet):
    class Late(Net):
        def on_train_epoch_end(self) -> None:
            self.log("late", 1.0)

    trainer = quiet(max_epochs=9, callbacks=[EarlyStopping("late", patience=1, verbose=False)])
    trainer.fit(Late(), data(1))
    assert trainer.current_epoch == 2


def test_what_is_logged_in_on_validation_epoch_end_is_there_at_its_end(ValNet, data, quiet):
    class Late(ValNet):
        def on_validation_epoch_end(self) -> None:
            self.log("late", 1.0)

        def on_validation_end(self) -> None:
            assert self.trainer.callback_metrics["late"] == 1

    trainer = quiet()
    trainer.fit(Late(), data(1), data(1))
    assert trainer.callback_metrics == {"late": 1}


def test_nothing_is_kept_from_the_sanity_check(LoggingNet, data, quiet, recorder):
    at_start = []

    class Looks(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            at_start.extend(dict(getattr(trainer, attribute)) for attribute in KINDS.values())

    quiet(num_sanity_val_steps=2, callbacks=[Looks()]).fit(LoggingNet(), data(2), data(2))
    assert at_start == [{}, {}, {}]
    assert recorder.having("vstep") == [(300.0, 0), (301.0, 1)]  # and x was not moved on either
    assert recorder.having("v") == [(100.5, 1)]


def test_each_run_starts_with_empty_dictionaries(LoggingNet, data, quiet):
    trainer, module = quiet(), LoggingNet()
    trainer.fit(module, data(2), data(2))
    trainer.validate(module, data(2), verbose=False)
    assert set(trainer.callback_metrics) == {"v", "vs", "vs_epoch"}
    assert "t_step" not in trainer.logged_metrics
    assert set(trainer.progress_bar_metrics) == {"v", "vs_step", "vs_epoch"}


def test_a_run_that_failed_in_a_second_loader_leaves_no_suffix(ValNet, data, quiet, recorder):
    class FailsOnce(ValNet):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("t", 1.0)
            return super().training_step(batch, batch_idx)

        def on_train_batch_start(self, *_: Any) -> None:
            self.log("start", 1.0)

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if dataloader_idx:
                raise ZeroDivisionError

    trainer, module = quiet(), FailsOnce()
    with pytest.raises(ZeroDivisionError):
        trainer.test(module, [data(1), data(1)])
    trainer.fit(module.train(), data(1), data(1))
    assert recorder.rows == [({"start": 1.0, "t": 1.0, "epoch": 0}, 0)]


@pytest.mark.parametrize("read", [False, True])
def test_validation_has_the_name_until_the_next_training_batch(ValNet, data, quiet, read):
    """Whether or not somebody reads in between."""
    at_end = []

    class Same(ValNet):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("loss", 1.0)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss", 2.0)

        def on_train_epoch_end(self) -> None:
            at_end.append(float(self.trainer.callback_metrics["loss"]))

    quiet(callbacks=[Watch()] if read else []).fit(Same(), data(2), data(2))
    assert at_end == [2.0]
