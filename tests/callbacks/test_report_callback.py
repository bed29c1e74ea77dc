from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.callbacks import LearningRateMonitor, ModelCheckpoint
from fulmen.callbacks.report import Report, write_atomically
from fulmen.loggers import CSVLogger

pytestmark = pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")


class Net(LightningModule):
    def __init__(self, hidden=5):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Sequential(torch.nn.Linear(4, hidden), torch.nn.Linear(hidden, 1))

    def training_step(self, batch, batch_idx):
        loss = (self.layer(batch) - 1).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", (self.layer(batch) - 1).square().mean(), on_step=True, on_epoch=True)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", 0.625)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def loader(batches=4):
    return DataLoader(torch.ones(batches * 2, 4), batch_size=2)


def trainer_with(tmp_path, *callbacks, **kwargs):
    settings = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "default_root_dir": tmp_path,
        "callbacks": list(callbacks),
    }
    return Trainer(**(settings | kwargs))


def test_a_report_lies_beside_the_logs(tmp_path):
    logger = CSVLogger(tmp_path)
    report = Report(title="My run")
    trainer = trainer_with(tmp_path, report, ModelCheckpoint(monitor="val_loss_epoch", save_top_k=2), logger=logger)
    trainer.fit(Net(hidden=7), loader(), loader(2))

    assert trainer.loggers == [logger]
    path = tmp_path / "lightning_logs" / "version_0" / "report.html"
    assert report.path == path
    html = path.read_text()
    for part in ("My run", "train_loss", "val_loss_epoch", "best checkpoint", "12 steps", "3 epochs", "hidden", "SGD"):
        assert part in html, part
    assert "Sequential" in html
    assert report._data.configuration["precision"] == "32-true"
    assert report._data.configuration["max_epochs"] == 3
    assert "finished" in html
    assert torch.__version__ in html


def test_curves_have_the_points_of_the_logger(tmp_path):
    report = Report()
    trainer_with(tmp_path, report, logger=CSVLogger(tmp_path)).fit(Net(), loader(), loader(2))
    curves = {curve.name: curve for curve in report._data.curves}
    assert curves["train_loss"].x == [float(step) for step in range(12)]
    assert curves["val_loss_epoch"].x == [3.0, 7.0, 11.0]
    assert "val_loss_step" not in curves  # counted in batches of validation
    assert curves["train_loss"].y[0] > curves["train_loss"].y[-1]
    (rate,) = report._data.learning_rates
    assert rate.y[0] == pytest.approx(0.01)
    assert rate.y[-1] < 0.01


def test_learning_rates_of_the_monitor_are_not_shown_twice(tmp_path):
    report = Report()
    trainer_with(tmp_path, report, LearningRateMonitor("step"), logger=CSVLogger(tmp_path)).fit(Net(), loader())
    (rate,) = report._data.learning_rates
    assert rate.name == "lr-SGD"
    assert len(rate.x) == 12
    assert not [curve for curve in report._data.curves if curve.name.startswith("lr-")]


def test_without_a_logger_there_is_a_point_per_epoch(tmp_path):
    report = Report()
    trainer = trainer_with(tmp_path, report)
    trainer.fit(Net(), loader(), loader(2))
    assert trainer.loggers == []
    assert report.path == tmp_path / "report.html"
    curves = {curve.name: curve for curve in report._data.curves}
    assert len(curves["val_loss_epoch"].x) == 3
    assert len(curves["train_loss"].x) == 3


def test_a_test_adds_to_the_page(tmp_path):
    report = Report(path=tmp_path / "deep" / "er" / "page.html")
    trainer = trainer_with(tmp_path, report)
    net = Net()
    trainer.fit(net, loader(), loader(2))
    assert "test_loss" not in report.path.read_text()
    trainer.test(net, loader(), verbose=False)
    html = report.path.read_text()
    assert "0.625" in html
    assert "train_loss" in html
    assert report._data.steps == 12


def test_timings_are_measured_only_during_the_run(tmp_path):
    report = Report()
    trainer = trainer_with(tmp_path, report)
    trainer.fit(Net(), loader(), loader(2))
    assert report._data.timings["forward_backward"] > 0
    assert "Where the time went" in report.path.read_text()
    assert "log_metrics" not in trainer.__dict__


def test_a_run_that_fails_has_a_report(tmp_path):
    class Failing(Net):
        def training_step(self, batch, batch_idx):
            if self.global_step == 6:
                raise ValueError("too <large>")
            return super().training_step(batch, batch_idx)

    report = Report()
    trainer = trainer_with(tmp_path, report, logger=CSVLogger(tmp_path))
    with pytest.raises(ValueError, match="too <large>"):
        trainer.fit(Failing(), loader())
    html = report.path.read_text()
    assert "failed" in html
    assert "ValueError: too &lt;large&gt;" in html
    assert "6 steps" in html
    assert len(trainer.loggers) == 1


def test_a_report_that_cannot_be_written_does_not_end_the_run(tmp_path):
    occupied = tmp_path / "folder"
    occupied.mkdir()
    with pytest.warns(UserWarning, match="could not be written"):
        trainer_with(tmp_path, Report(path=occupied), max_epochs=1).fit(Net(), loader())
    assert list(tmp_path.iterdir()) == [occupied]


def test_a_trial_run_writes_nothing(tmp_path):
    trainer_with(tmp_path, Report(), fast_dev_run=True).fit(Net(), loader())
    assert not (tmp_path / "report.html").exists()


def test_a_new_trainer_begins_a_new_report(tmp_path):
    report = Report()
    for name in ("first", "second"):
        trainer_with(tmp_path / name, report, max_epochs=1).fit(Net(), loader())
        assert report.path == tmp_path / name / "report.html"
    assert report._data.steps == 4


def test_writing_leaves_no_part_behind(tmp_path):
    path = tmp_path / "page.html"
    write_atomically(path, "old")
    with pytest.raises(TypeError):
        write_atomically(path, None)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_resumed_run_goes_on_with_its_curves_and_times(tmp_path):
    whole, first, second = Report(tmp_path / "whole.html"), Report(), Report()
    trainer_with(tmp_path, whole).fit(Net(), loader(), loader(2))
    trainer = trainer_with(tmp_path, first, ModelCheckpoint(tmp_path / "checkpoints"), max_epochs=2)
    trainer.fit(Net(), loader(), loader(2))
    path = trainer.checkpoint_callback.best_model_path
    trainer = trainer_with(tmp_path, second, ModelCheckpoint(tmp_path / "checkpoints"))
    trainer.fit(Net(), loader(), loader(2), ckpt_path=path)
    trainer.test(ckpt_path=path, dataloaders=loader(), verbose=False)

    def steps(report):
        return {curve.name: curve.x for curve in report._data.curves if curve.name != "test_loss"}

    assert steps(second) == steps(whole)
    assert second._data.duration > first._data.duration
    assert second._data.timings["forward_backward"] > first._data.timings["forward_backward"] > 0


def test_two_reports_keep_their_own_state(tmp_path):
    reports = [Report(), Report(tmp_path / "other.html")]
    trainer_with(tmp_path, *reports, max_epochs=1).fit(Net(), loader(), loader(2))
    assert all(report.path.exists() for report in reports)
