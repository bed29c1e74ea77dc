from __future__ import annotations

import copy
import os
import pickle
import pty
import sys
import threading

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import ProgressBar, RichProgressBar, RichProgressBarTheme
from fulmen.errors import MisconfigurationException

pytestmark = pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val_loss", self.layer(batch).mean(), prog_bar=True)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.layer(batch).mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(batches=3):
    return DataLoader(torch.zeros(batches * 2, 4), batch_size=2)


def trainer_with(tmp_path, *callbacks, **kwargs):
    settings = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(
        **(settings | {"accelerator": "cpu", "default_root_dir": tmp_path, "callbacks": list(callbacks)} | kwargs)
    )


class Screen:
    """A terminal in the place of standard output; `text` is what was written, once it is closed."""

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch
        self._chunks: list[bytes] = []

    # Not done in a fixture: pytest sets standard output itself when the test begins.
    def __enter__(self):
        self._controller, device = pty.openpty()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._stream = os.fdopen(device, "w")
        self._monkeypatch.setenv("TERM", "xterm-256color")
        self._monkeypatch.setenv("COLUMNS", "100")
        self._monkeypatch.setattr(sys, "stdout", self._stream)
        return self

    def _read(self):
        while True:
            try:
                self._chunks.append(os.read(self._controller, 65536))
            except OSError:  # the other end is closed
                return

    def __exit__(self, *_):
        self._monkeypatch.undo()
        self._stream.close()
        self._reader.join()
        os.close(self._controller)
        self.text = b"".join(self._chunks).decode()


@pytest.fixture
def screen(monkeypatch):
    return Screen(monkeypatch)


def test_off_a_terminal_fit_is_a_few_plain_lines(tmp_path, capsys):
    trainer_with(tmp_path, RichProgressBar()).fit(Net(), loader(), loader(2))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0] == "Training: 3 batches per epoch"
    assert [line.split(" batches")[0] for line in lines[1:]] == ["Epoch 0/1: 3/3", "Epoch 1/1: 3/3"]
    assert all("loss: " in line and "val_loss: " in line for line in lines[1:])


def test_off_a_terminal_a_validation_within_an_epoch_has_its_line(tmp_path, capsys):
    trainer_with(tmp_path, RichProgressBar(), max_epochs=1, val_check_interval=2, num_sanity_val_steps=0).fit(
        Net(), loader(4), loader(2)
    )
    titles = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert titles == ["Training", "Validation", "Epoch 0/0"]


def test_off_a_terminal_evaluation_is_a_line(tmp_path, capsys):
    trainer = trainer_with(tmp_path, RichProgressBar())
    trainer.validate(Net(), loader(5), verbose=False)
    trainer.test(Net(), loader(4), verbose=False)
    trainer.predict(Net(), loader(6))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" batches")[0] for line in lines] == ["Validation: 5/5", "Testing: 4/4", "Predicting: 6/6"]
    assert "val_loss: " in lines[0]
    assert "test_loss: " in lines[1]


def test_on_a_terminal_a_bar_is_drawn_and_the_cursor_comes_back(tmp_path, screen):
    with screen:
        trainer_with(tmp_path, RichProgressBar()).fit(Net(), loader(), loader(2))
    out = screen.text
    for part in ("Sanity Checking", "Epoch 0/1", "Epoch 1/1", "3/3", "loss: ", "val_loss: "):
        assert part in out, part
    assert out.count(HIDE) == out.count(SHOW) > 0
    assert out.rindex(SHOW) > out.rindex(HIDE)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_cursor_comes_back_after_an_exception(tmp_path, screen, error):
    class Failing(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise error("stop here")
            return super().training_step(batch, batch_idx)

    bar = RichProgressBar()
    with screen, pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        trainer_with(tmp_path, bar).fit(Failing(), loader())
    out = screen.text
    assert out.count(HIDE) == out.count(SHOW) > 0
    assert bar.progress is None


def test_what_the_module_prints_stands_above_the_bar(tmp_path, screen):
    class Talking(Net):
        def on_train_epoch_end(self):
            self.print(f"epoch {self.current_epoch} [done]")

    with screen:
        trainer_with(tmp_path, RichProgressBar()).fit(Talking(), loader())
    out = screen.text
    assert "epoch 0 [done]" in out
    assert "epoch 1 [done]" in out


def test_unknown_total(tmp_path, screen):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from torch.zeros(6, 4)

    with screen:
        trainer_with(tmp_path, RichProgressBar(), max_epochs=1).fit(Net(), DataLoader(Stream(), batch_size=2))
    assert "3/--" in screen.text


def test_leave_keeps_each_epoch(tmp_path, screen):
    with screen:
        trainer_with(tmp_path, RichProgressBar(leave=True), max_epochs=3).fit(Net(), loader())
    out = screen.text
    assert all(f"Epoch {epoch}/2" in out for epoch in range(3))


def test_each_loader_has_its_bar(tmp_path, screen):
    with screen:
        trainer_with(tmp_path, RichProgressBar()).validate(Net(), [loader(2), loader(3)], verbose=False)
    out = screen.text
    assert "Validation DataLoader 0" in out
    assert "Validation DataLoader 1" in out
    assert "2/2" in out
    assert "3/3" in out


def test_a_run_without_epoch_limit_names_no_last_epoch(tmp_path, capsys):
    trainer_with(tmp_path, RichProgressBar(), max_epochs=-1, max_steps=5).fit(Net(), loader())
    titles = [line.split(" batches")[0] for line in capsys.readouterr().out.splitlines()]
    assert titles[1:] == ["Epoch 0: 3/3", "Epoch 1: 2/2"]


def test_metrics_are_read_rarely(tmp_path, screen):
    reads = []

    class Counting(RichProgressBar):
        def get_metrics(self, trainer, pl_module):
            reads.append(trainer.global_step)
            return {"mine": 1}

    with screen:
        trainer_with(tmp_path, Counting(), max_epochs=1).fit(Net(), loader(200))
    assert 1 <= len(reads) < 100
    assert "mine: 1" in screen.text


def test_refresh_rate_zero_is_off(tmp_path, capsys):
    bar = RichProgressBar(refresh_rate=0)
    assert bar.is_disabled
    trainer = trainer_with(tmp_path, bar)
    trainer.fit(Net(), loader(), loader())
    assert capsys.readouterr().out == ""
    assert not bar.listens("on_train_batch_end", trainer)


def test_disabled_in_the_middle_of_a_run(tmp_path, capsys):
    class Muting(Net):
        def on_train_epoch_end(self):
            if self.current_epoch == 0:
                self.trainer.progress_bar_callback.disable()

        def on_train_epoch_start(self):
            if self.current_epoch == 2:
                self.trainer.progress_bar_callback.enable()

    trainer_with(tmp_path, RichProgressBar(), max_epochs=5).fit(Muting(), loader())
    titles = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert titles == ["Training", "Epoch 0/4", "Training", "Epoch 2/4", "Epoch 3/4", "Epoch 4/4"]


def test_a_negative_rate_is_refused():
    with pytest.raises(MisconfigurationException, match="refresh_rate=-1"):
        RichProgressBar(refresh_rate=-1)


def test_theme_and_columns(tmp_path, screen):
    from rich.progress import TextColumn

    class Short(RichProgressBar):
        def configure_columns(self, trainer):
            return [TextColumn("only {task.description} {task.fields[metrics]}")]

    with screen:
        trainer_with(tmp_path, Short(theme=RichProgressBarTheme(metrics_format=".1f")), max_epochs=1).fit(
            Net(), loader()
        )
    assert "only Epoch 0/0" in screen.text


def test_the_console_can_be_chosen(tmp_path, capsys):
    trainer_with(tmp_path, RichProgressBar(console_kwargs={"stderr": True})).fit(Net(), loader())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Epoch 1/1" in captured.err


def test_copies_and_pickles(tmp_path):
    bar = RichProgressBar(leave=True)
    trainer_with(tmp_path, bar).validate(Net(), loader(), verbose=False)
    assert pickle.loads(pickle.dumps(RichProgressBar(leave=True)))._leave
    assert copy.deepcopy(RichProgressBar(refresh_rate=7)).refresh_rate == 7
    assert bar.progress is None


class Numbers(ProgressBar):
    """Takes down what the base class knows."""

    def __init__(self):
        super().__init__()
        self.seen = {}
        self.on = True

    def disable(self):
        self.on = False

    def on_train_epoch_start(self, trainer, pl_module):
        self.seen["train"] = self.total_train_batches
        self.seen["val"] = self.total_val_batches

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.has_dataloader_changed(dataloader_idx):
            self.seen.setdefault("changes", []).append((dataloader_idx, self.total_val_batches_current_dataloader))

    def on_validation_end(self, trainer, pl_module):
        self.reset_dataloader_idx_tracker()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen["metrics"] = self.get_metrics(trainer, pl_module)


def test_numbers_of_the_base_class(tmp_path):
    bar = Numbers()
    with pytest.raises(TypeError, match="not set yet"):
        _ = bar.trainer
    trainer = trainer_with(tmp_path, bar, max_epochs=1, num_sanity_val_steps=1)
    trainer.fit(Net(), loader(5), [loader(2), loader(3)])
    assert bar.trainer is trainer
    assert bar.seen["train"] == 5
    assert bar.seen["val"] == 5
    assert bar.seen["changes"] == [(0, 1), (1, 1), (0, 2), (1, 3)]
    assert set(bar.seen["metrics"]) == {"loss"}
    assert bar.on


def test_descriptions():
    bar = Numbers()
    assert (bar.sanity_check_description, bar.train_description, bar.validation_description) == (
        "Sanity Checking",
        "Training",
        "Validation",
    )
    assert (bar.test_description, bar.predict_description) == ("Testing", "Predicting")


def test_the_base_class_cannot_switch():
    with pytest.raises(NotImplementedError, match="disable"):
        ProgressBar().disable()
    with pytest.raises(NotImplementedError, match="enable"):
        ProgressBar().enable()


class _Logger:
    def __init__(self, version):
        self.version = version


class _Trainer:
    def __init__(self, *versions, metrics=None):
        self.loggers = [_Logger(version) for version in versions]
        self.progress_bar_metrics = metrics or {}


@pytest.mark.parametrize(
    ("versions", "shown"),
    [((), {}), ((3,), {"v_num": 3}), (("abcdefgh",), {"v_num": "efgh"}), ((None, ""), {}), ((1, 2), {"v_num": "1_2"})],
)
def test_version_number(versions, shown):
    assert ProgressBar().get_metrics(_Trainer(*versions), None) == shown


def test_a_metric_named_like_a_standard_one_warns_once():
    bar, trainer = ProgressBar(), _Trainer(1, metrics={"v_num": 9.0})
    with pytest.warns(UserWarning, match="'v_num'"):
        assert bar.get_metrics(trainer, None) == {"v_num": 9.0}
    assert bar.get_metrics(trainer, None) == {"v_num": 9.0}


# ---------------------------------------------------------------------------------------------------- parts by name


def test_the_bar_that_runs_is_found_under_the_name_of_its_stage(tmp_path, screen):
    seen = {}

    class Look(Callback):
        def look(self, trainer):
            bar = trainer.progress_bar_callback
            bars = {"sanity": bar.val_sanity_check_bar, "val": bar.val_progress_bar, "test": bar.test_progress_bar}
            ids = {
                "sanity": bar.val_sanity_progress_bar_id,
                "val": bar.val_progress_bar_id,
                "test": bar.test_progress_bar_id,
                "predict": bar.predict_progress_bar_id,
            }
            there = {name: task.id for name, task in bars.items() if task is not None}
            seen[str(trainer.state.stage)] = there, {name: number for name, number in ids.items() if number is not None}

        def on_validation_batch_end(self, trainer, *arguments):
            self.look(trainer)

        on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    with screen:
        trainer = trainer_with(tmp_path, RichProgressBar(), Look(), max_epochs=1, num_sanity_val_steps=1)
        trainer.fit(Net(), loader(), loader())
        trainer.test(Net(), loader(), verbose=False)
        trainer.predict(Net(), loader())
    for stage, name in {"sanity_check": "sanity", "validate": "val", "test": "test", "predict": "predict"}.items():
        bars, ids = seen[stage]
        assert list(ids) == [name]
        assert bars == ({} if name == "predict" else ids)


def test_columns_of_lightning_users_and_metrics_behind_them(tmp_path, screen):
    from fulmen.callbacks.progress.rich_progress import BatchesProcessedColumn, CustomBarColumn, CustomTimeColumn

    class Own(RichProgressBar):
        def configure_columns(self, trainer):
            return [CustomBarColumn(), BatchesProcessedColumn(style="green"), CustomTimeColumn(style="dim")]

    with screen:
        trainer_with(tmp_path, Own(), max_epochs=1).fit(Net(), loader())
    assert "3/3" in screen.text
    assert "loss: " in screen.text


def test_metrics_stand_where_their_column_is(tmp_path, screen):
    from fulmen.callbacks.progress.rich_progress import BatchesProcessedColumn, MetricsTextColumn

    class Own(RichProgressBar):
        def configure_columns(self, trainer):
            metrics = MetricsTextColumn(trainer, "italic", " ", ".1f")
            return [metrics, BatchesProcessedColumn("")]

    with screen:
        trainer_with(tmp_path, Own(), max_epochs=1).fit(Net(), loader())
    last = screen.text.split("\r")[-2]
    assert last.count("loss: ") == 1
    assert last.index("loss: ") < last.index("3/3")


def test_refresh_draws_what_is_new(tmp_path, screen):
    class Counting(RichProgressBar):
        reads = 0

        def get_metrics(self, trainer, pl_module):
            self.reads += 1
            return super().get_metrics(trainer, pl_module)

    counts = []

    class Refreshing(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            bar = trainer.progress_bar_callback
            for hard in (False, False, True):
                before = bar.reads
                bar.refresh(hard=hard)
                counts.append(bar.reads - before)

    with screen:
        trainer_with(tmp_path, Counting(refresh_rate=1000), Refreshing(), max_epochs=1).fit(Net(), loader(2))
    assert counts[1:3] == [0, 1]
    assert counts[4:6] == [0, 1]


def test_unknown_parts_are_attribute_errors():
    from fulmen.callbacks.progress import rich_progress, tqdm_progress

    for module in (rich_progress, tqdm_progress):
        with pytest.raises(AttributeError, match="has no attribute 'Columm'"):
            module.Columm  # noqa: B018
