"""What reaches the loggers, when, and with which x."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fulmen
from fulmen.loggers import CSVLogger


@pytest.fixture
def TwoNet(ValNet):
    class TwoNet(ValNet):
        """Logs in training and validation what the black-box runs of the reference logged."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("t", 10.0 * self.current_epoch + batch_idx, on_step=True, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("v", 100.0 + batch_idx)

    return TwoNet


ROWS = """\
epoch,step,t_epoch,t_step,v
0,1,,1.0,
0,3,,3.0,
0,3,,,100.5
0,3,1.5,,
1,5,,11.0,
1,7,,13.0,
1,7,,,100.5
1,7,11.5,,
"""
ROWS_ACCUMULATED = """\
epoch,step,t_epoch,t_step,v
0,0,,1.0,
0,1,,3.0,
0,1,,,100.5
0,1,1.5,,
1,2,,11.0,
1,3,,13.0,
1,3,,,100.5
1,3,11.5,,
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"log_every_n_steps": 2}, ROWS),
        ({"log_every_n_steps": 1, "accumulate_grad_batches": 2}, ROWS_ACCUMULATED),
    ],
)
def test_csv_file(TwoNet, data, quiet, tmp_path, arguments, expected):
    quiet(max_epochs=2, logger=CSVLogger(tmp_path), **arguments).fit(TwoNet(), data(4), data(2))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.relative_to(tmp_path) for path in files] == [Path("lightning_logs/version_0/metrics.csv")]
    assert files[0].read_text().replace("\r\n", "\n") == expected


def test_csv_file_with_keys_that_come_and_go(ValNet, data, quiet, tmp_path):
    """Unlike in Lightning, a key that is not logged any more is not repeated in the rows that follow."""

    class Changes(ValNet):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("a" if batch_idx < 2 else "b", 1.0 if batch_idx < 2 else 2.0)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("v", 100.0 + batch_idx)

    quiet(logger=CSVLogger(tmp_path, flush_logs_every_n_steps=1)).fit(Changes(), data(4), data(2))
    text = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()
    assert text.split() == ["a,b,epoch,step,v", "1.0,,0,0,", "1.0,,0,1,", ",2.0,0,2,", ",2.0,0,3,", ",,0,3,100.5"]


@pytest.mark.parametrize(("every", "due"), [(0, []), (1, [0, 1, 2, 3, 4]), (2, [1, 3]), (3, [2]), (9, [])])
@pytest.mark.filterwarnings("ignore:.*log_every_n_steps")
def test_log_every_n_steps(TwoNet, data, quiet, recorder, every, due):
    quiet(log_every_n_steps=every).fit(TwoNet(), data(5), data(2))
    assert [step for _, step in recorder.having("t_step")] == due
    assert recorder.having("t_epoch") == [(2.0, 4)]  # epochs are logged whatever the interval
    assert recorder.having("v") == [(100.5, 4)]


def test_should_stop_makes_a_step_due(Net, data, quiet, recorder):
    class Stops(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", float(batch_idx))
            self.trainer.should_stop = batch_idx == 2
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="log_every_n_steps"):
        quiet(log_every_n_steps=50).fit(Stops(), data(5))
    assert recorder.having("x") == [(2.0, 2)]


def test_types_of_what_arrives(Net, data, quiet, recorder):
    class Kinds(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("int", 3)
            self.log("bool", True)
            self.log("tensor", torch.tensor(2.5))
            self.log("double", torch.tensor(2.5, dtype=torch.float64))
            self.log("half", torch.tensor(2.5, dtype=torch.bfloat16))
            return super().training_step(batch, batch_idx)

    quiet().fit(Kinds(), data(1))
    metrics, _ = recorder.rows[0]
    assert metrics == {"int": 3.0, "bool": 1.0, "tensor": 2.5, "double": 2.5, "half": 2.5, "epoch": 0}
    assert {type(value) for key, value in metrics.items() if key != "epoch"} == {float}
    assert type(metrics["epoch"]) is int


def test_steps_of_validation_are_counted_over_the_validations_of_a_fit(ValNet, data, quiet, recorder):
    class Steps(ValNet):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("v", 1.0, on_step=True)

    trainer, module = quiet(max_epochs=2), Steps()
    trainer.fit(module, data(1), data(2))
    assert recorder.having("v_step") == [(1.0, step) for step in range(4)]
    assert not any("epoch" in metrics for metrics, _ in recorder.rows if "v_step" in metrics)
    for _ in range(2):  # every run begins with 0
        recorder.calls.clear()
        trainer.validate(module, data(2), verbose=False)
        assert recorder.having("v_step") == [(1.0, 0), (1.0, 1)]
    recorder.calls.clear()
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, data(1), data(2))
    assert recorder.having("v_step") == [(1.0, 0), (1.0, 1)]


def test_a_metric_named_step_is_the_x(ValNet, data, quiet, recorder):
    class Steps(ValNet):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log_dict({"step": 40.0 + batch_idx, "x": 1.0})
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log_dict({"step": 13.0, "v": 1.0})

    quiet().fit(Steps(), data(2), data(1))
    assert recorder.rows == [({"x": 1.0}, 40), ({"x": 1.0}, 41), ({"v": 1.0}, 13)]
    assert all(type(step) is int for _, step in recorder.rows)


def test_a_metric_named_epoch_is_the_user_s(Net, data, quiet, recorder):
    class Epochs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("epoch", 7.5)
            return super().training_step(batch, batch_idx)

    quiet().fit(Epochs(), data(1))
    assert recorder.rows == [({"epoch": 7.5}, 0)]


def test_logger_false_reaches_callbacks_only(Net, data, quiet, recorder):
    class Hidden(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", 1.0, logger=False, on_step=True, on_epoch=True)
            return super().training_step(batch, batch_idx)

    trainer = quiet()
    trainer.fit(Hidden(), data(2))
    assert recorder.rows == []
    assert trainer.callback_metrics == {"x": 1, "x_step": 1, "x_epoch": 1}
    assert trainer.logged_metrics == {}


def test_a_window_sends_what_its_last_batch_logged(Net, data, quiet, recorder):
    class First(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("first" if batch_idx % 2 == 0 else "second", float(batch_idx))
            return super().training_step(batch, batch_idx)

    quiet(accumulate_grad_batches=2).fit(First(), data(4))
    assert recorder.rows == [({"second": 1.0, "epoch": 0}, 0), ({"second": 3.0, "epoch": 0}, 1)]


def test_manual_optimisation_logs_each_batch(Net, data, quiet, recorder):
    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.log("x", float(batch_idx))
            if batch_idx == 1:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()
                self.log("stepped", 1.0)

    quiet().fit(Manual(), data(3))
    assert recorder.having("x") == [(0.0, 0), (1.0, 1), (2.0, 2)]
    assert recorder.having("stepped") == [(1.0, 1)]


def test_the_logger_can_be_called_directly(Net, data, quiet, recorder):
    class Direct(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert self.logger is self.trainer.logger is recorder
            self.logger.log_metrics({"mine": 1.0}, step=99)
            return super().training_step(batch, batch_idx)

    quiet().fit(Direct(), data(1))
    assert recorder.rows == [({"mine": 1.0}, 99)]


# -------------------------------------------------------------------------------------------------- several loggers


def test_every_call_goes_to_each_logger_and_is_saved(TwoNet, data, quiet, Recorder):
    calls: list[Any] = []
    quiet(logger=[Recorder("A", calls), Recorder("B", calls)], log_every_n_steps=2).fit(TwoNet(), data(2), data(1))
    names = [(call[0], call[1]) for call in calls]
    begin = [(name, what) for name in "AB" for what in ("log_graph", "save")]
    rows = [(name, what) for _ in range(3) for name in "AB" for what in ("log_metrics", "save")]
    assert names == [*begin, *rows, ("A", "finalize"), ("B", "finalize")]
    assert [call[2:] for call in calls if call[0] == "A"] == [call[2:] for call in calls if call[0] == "B"]
    assert [call[2] for call in calls if call[1] == "finalize"] == ["success", "success"]


def test_loggers_are_told_of_a_failure(Net, data, quiet, recorder):
    class Broken(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        quiet().fit(Broken(), data(1))
    assert recorder.calls[-1] == ("recorder", "finalize", "failed")


def test_asking_for_a_logger_without_one_warns(Net, data, quiet):
    class Asks(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", 1.0, logger=True)
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="the Trainer has no logger") as caught:
        quiet(logger=False).fit(Asks(), data(3))
    assert len(caught) == 1


def test_print_is_heard(Net, data, quiet, capsys):
    class Prints(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.print("batch", batch_idx, sep="-")
            return super().training_step(batch, batch_idx)

    trainer = quiet()
    trainer.fit(Prints(), data(2))
    trainer.print("done")
    assert capsys.readouterr().out.splitlines() == ["batch-0", "batch-1", "done"]


# -------------------------------------------------------------------------------------------------- hyperparameters


class Data(fulmen.LightningDataModule):
    def __init__(self, loader: Any, width: Any = 3, size: int = 4, save: bool = True) -> None:
        super().__init__()
        self.loader = loader
        if save:
            self.save_hyperparameters("width", "size")

    def train_dataloader(self) -> Any:
        return self.loader


@pytest.fixture
def WithHyperparameters(Net):
    class WithHyperparameters(Net):
        def __init__(self, lr: float = 0.1, width: Any = 3, logger: bool = True) -> None:
            super().__init__()
            self.save_hyperparameters(ignore="logger", logger=logger)

    return WithHyperparameters


def hyperparameters(recorder: Any) -> list[Any]:
    return [call[2] for call in recorder.calls if call[1] == "log_hyperparams"]


def test_hyperparameters_come_first_then_the_graph(WithHyperparameters, data, quiet, Recorder):
    calls: list[Any] = []
    quiet(logger=[Recorder("A", calls), Recorder("B", calls)]).fit(WithHyperparameters(), data(1))
    names = [(call[0], call[1]) for call in calls]
    begin = [(name, what) for name in "AB" for what in ("log_hyperparams", "log_graph", "save")]
    assert names == [*begin, ("A", "finalize"), ("B", "finalize")]
    assert calls[0][2] == {"lr": 0.1, "width": 3}


def test_module_and_datamodule_are_merged(WithHyperparameters, data, quiet, recorder):
    quiet().fit(WithHyperparameters(), datamodule=Data(data(1)))
    assert hyperparameters(recorder) == [{"lr": 0.1, "width": 3, "size": 4}]


@pytest.mark.parametrize("width", [4, 3.0, "3"])
def test_values_that_differ_are_refused(WithHyperparameters, data, quiet, width):
    with pytest.raises(RuntimeError, match=r"Module and datamodule both saved the hyperparameters \['width'\]"):
        quiet().fit(WithHyperparameters(), datamodule=Data(data(1), width=width))


def test_only_what_may_be_logged_is(WithHyperparameters, data, quiet, recorder):
    quiet().fit(WithHyperparameters(logger=False), datamodule=Data(data(1), width=99))
    assert hyperparameters(recorder) == [{"width": 99, "size": 4}]


def test_the_class_path_of_the_command_line_is_left_out(WithHyperparameters, data, quiet, recorder):
    module, datamodule = WithHyperparameters(), Data(data(1))
    module._hparams_initial["_class_path"] = "some.Module"
    datamodule._hparams_initial["_class_path"] = "some.Data"
    quiet().fit(module, datamodule=datamodule)
    assert hyperparameters(recorder) == [{"lr": 0.1, "width": 3, "size": 4}]


def test_the_values_at_saving_are_logged(WithHyperparameters, data, quiet, recorder):
    module = WithHyperparameters()
    module.hparams.lr = 5.0
    quiet().fit(module, data(1))
    assert hyperparameters(recorder) == [{"lr": 0.1, "width": 3}]


def test_without_hyperparameters_the_graph_is_logged_all_the_same(Net, data, quiet, recorder):
    quiet().fit(Net(), data(1))
    assert [call[1] for call in recorder.calls] == ["log_graph", "save", "finalize"]


def test_no_hyperparameters_are_logged_as_none(Net, data, quiet, recorder):
    class SavesNone(Net):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()

    quiet().fit(SavesNone(), data(1))
    assert hyperparameters(recorder) == [{}]


def test_autolog_can_be_switched_off(WithHyperparameters, data, quiet, recorder):
    quiet(enable_autolog_hparams=False).fit(WithHyperparameters(), data(1))
    assert [call[1] for call in recorder.calls] == ["finalize"]


def test_each_run_logs_them(WithHyperparameters, data, quiet, recorder):
    class Tested(WithHyperparameters):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            """Nothing to do."""

    trainer, module = quiet(), Tested()
    trainer.fit(module, data(1))
    trainer.test(module, data(1), verbose=False)
    assert len(hyperparameters(recorder)) == 2
