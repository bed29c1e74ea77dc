from __future__ import annotations

import copy
import io
import pickle
import re
import sys

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import fulmen
from fulmen import LightningModule, Trainer
from fulmen.callbacks import TQDMProgressBar
from fulmen.callbacks.progress.tqdm_progress import Tqdm, convert_inf
from fulmen.errors import MisconfigurationException

pytestmark = pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).mean()
        self.log("loss", 0.5, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("score", 0.25, prog_bar=True)

    def test_step(self, batch, batch_idx):
        self.layer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(batches=3):
    return DataLoader(torch.zeros(batches * 2, 4), batch_size=2)


def trainer_with(tmp_path, *callbacks, **kwargs):
    settings = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    settings |= {"accelerator": "cpu", "default_root_dir": tmp_path, "num_sanity_val_steps": 0}
    return Trainer(**(settings | {"callbacks": list(callbacks)} | kwargs))


def shown(text):
    """What a bar showed, one drawing after the other: its title, count and metrics."""
    pattern = re.compile(r"([A-Z][\w ]*?): .*?\| *(\d+/(?:\d+|\?)) \[[^\]]*?it/s(?:, )?([^\]]*)\]")
    return [" ".join(part for part in match if part) for match in pattern.findall(text)]


# ---------------------------------------------------------------------------------------------------- runs


def test_a_fit(tmp_path, capsys):
    trainer = trainer_with(tmp_path, TQDMProgressBar(), max_epochs=1, num_sanity_val_steps=1)
    trainer.fit(Net(), loader(3), loader(2))
    drawn = shown(capsys.readouterr().out)
    for expected in (
        "Sanity Checking DataLoader 0 1/1",
        "Epoch 0 1/3 loss=0.500",
        "Epoch 0 2/3 loss=0.500",
        "Epoch 0 3/3 loss=0.500",
        "Validation DataLoader 0 1/2",
        "Validation DataLoader 0 2/2",
    ):
        assert expected in drawn, expected
    assert drawn[-1] == "Epoch 0 3/3 loss=0.500, score=0.250"


@pytest.mark.parametrize(
    ("name", "title"), [("validate", "Validation"), ("test", "Testing"), ("predict", "Predicting")]
)
def test_other_runs(tmp_path, capsys, name, title):
    getattr(trainer_with(tmp_path, TQDMProgressBar()), name)(Net(), loader(2))
    assert f"{title} DataLoader 0 2/2" in shown(capsys.readouterr().out)


def test_each_loader_begins_anew(tmp_path, capsys):
    trainer_with(tmp_path, TQDMProgressBar()).validate(Net(), [loader(2), loader(1)], verbose=False)
    drawn = shown(capsys.readouterr().out)
    assert drawn.index("Validation DataLoader 0 2/2") < drawn.index("Validation DataLoader 1 1/1")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(3, 4))


def test_an_unknown_total(tmp_path, capsys):
    bar = TQDMProgressBar()
    trainer_with(tmp_path, bar, max_epochs=1).fit(Net(), DataLoader(Stream(), batch_size=1))
    assert bar.train_progress_bar.total is None
    assert "Epoch 0: |" in capsys.readouterr().out


def test_bars_are_drawn_after_multiples_and_at_the_end(tmp_path, capsys):
    trainer_with(tmp_path, TQDMProgressBar(refresh_rate=3), max_epochs=1).fit(Net(), loader(7))
    counts = re.findall(r"Epoch 0 (\d)/7", "\n".join(shown(capsys.readouterr().out)))
    assert list(dict.fromkeys(counts)) == ["0", "3", "6", "7"]


def test_metrics_are_read_only_to_draw(tmp_path):
    class Counting(TQDMProgressBar):
        reads = 0

        def get_metrics(self, trainer, pl_module):
            self.reads += 1
            return super().get_metrics(trainer, pl_module)

    bar = Counting(refresh_rate=50)
    trainer_with(tmp_path, bar, max_epochs=1).fit(Net(), loader(100))
    assert bar.reads == 3


@pytest.mark.parametrize(("leave", "bars"), [(False, 1), (True, 3)])
def test_leave_has_a_bar_for_each_epoch(tmp_path, leave, bars):
    class Counting(TQDMProgressBar):
        made = 0

        def init_train_tqdm(self):
            self.made += 1
            return super().init_train_tqdm()

    bar = Counting(leave=leave)
    trainer_with(tmp_path, bar, max_epochs=3).fit(Net(), loader(1))
    assert bar.made == bars


def test_an_epoch_that_is_resumed_goes_on_counting(tmp_path, capsys):
    class Stop(fulmen.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    trainer_with(tmp_path, Stop(), max_epochs=1, enable_progress_bar=False).fit(Net(), loader(4))
    bar = TQDMProgressBar()
    trainer_with(tmp_path, bar, max_epochs=1).fit(Net(), loader(4), ckpt_path=tmp_path / "middle.ckpt")
    drawn = shown(capsys.readouterr().out)
    counts = [line.split(" loss")[0] for line in drawn]
    assert list(dict.fromkeys(counts)) == ["Training 0/?", "Epoch 0 2/4", "Epoch 0 3/4", "Epoch 0 4/4"]


def test_an_exception_leaves_the_bars_closed(tmp_path, capsys):
    class Failing(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    bar = TQDMProgressBar()
    with pytest.raises(ZeroDivisionError):
        trainer_with(tmp_path, bar).fit(Failing(), loader(3))
    assert bar.train_progress_bar.disable
    assert capsys.readouterr().out.endswith("\n")


# ---------------------------------------------------------------------------------------------------- switches


def test_off_means_not_called(tmp_path, capsys):
    bar = TQDMProgressBar(refresh_rate=0)
    trainer = trainer_with(tmp_path, bar, max_epochs=1)
    trainer.fit(Net(), loader(), loader())
    assert bar.is_disabled
    assert capsys.readouterr().out == ""
    assert trainer.hooks.on_train_batch_end == ()


def test_bars_go_on_and_off_in_a_run(tmp_path, capsys):
    class Switch(fulmen.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            bar = trainer.progress_bar_callback
            (bar.disable if trainer.current_epoch == 1 else bar.enable)()

    trainer_with(tmp_path, Switch(), TQDMProgressBar(), max_epochs=3).fit(Net(), loader(2))
    epochs = {line[:7] for line in shown(capsys.readouterr().out) if line.startswith("Epoch")}
    assert epochs == {"Epoch 0", "Epoch 2"}


def test_the_environment_has_a_say(monkeypatch):
    monkeypatch.setenv("TQDM_MINITERS", "7")
    assert TQDMProgressBar().refresh_rate == 7
    assert TQDMProgressBar(refresh_rate=20).refresh_rate == 20
    assert TQDMProgressBar(refresh_rate=0).is_disabled
    monkeypatch.delenv("TQDM_MINITERS")
    monkeypatch.setenv("COLAB_JUPYTER_IP", "1.2.3.4")
    assert TQDMProgressBar().refresh_rate == 20
    assert TQDMProgressBar(refresh_rate=2).refresh_rate == 2


def test_a_negative_rate_is_refused():
    with pytest.raises(MisconfigurationException, match="refresh_rate=-1"):
        TQDMProgressBar(refresh_rate=-1)


def test_without_tqdm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fulmen\[tqdm\]"'):
        TQDMProgressBar()


def test_nothing_of_tqdm_is_imported_before_it_is_used():
    import subprocess

    code = (
        "import sys, torch; before = set(sys.modules); import fulmen.callbacks.progress.tqdm_progress;"
        "assert not [name for name in set(sys.modules) - before if name.startswith('tqdm')]"  # torch imports it, too
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------------------------------- bars


@pytest.mark.parametrize("name", ["train", "val", "test", "predict"])
def test_there_is_no_bar_before_it_begins(name):
    with pytest.raises(TypeError, match=f"TQDMProgressBar.{name}_progress_bar"):
        getattr(TQDMProgressBar(), f"{name}_progress_bar")


def test_bars_can_be_made_by_subclasses(tmp_path):
    class Own(TQDMProgressBar):
        BAR_FORMAT = "{desc}"

        def init_train_tqdm(self):
            bar = super().init_train_tqdm()
            bar.colour = "green"
            return bar

    bar = Own(process_position=2)
    trainer_with(tmp_path, bar, max_epochs=1).fit(Net(), loader(1), loader(1))
    assert bar.train_progress_bar.colour == "green"
    assert bar.train_progress_bar.bar_format == "{desc}"
    assert abs(bar.train_progress_bar.pos) == 4
    assert abs(bar.val_progress_bar.pos) == 5


def test_what_is_printed_stands_above_the_bar(tmp_path, capsys):
    class Printing(Net):
        def on_train_epoch_end(self):
            self.print("epoch", "ended", sep="-")

    trainer_with(tmp_path, TQDMProgressBar(), max_epochs=1).fit(Printing(), loader(1))
    assert "epoch-ended\n" in capsys.readouterr().out


def test_copies_and_pickles(tmp_path):
    bar = TQDMProgressBar(leave=True)
    trainer_with(tmp_path, bar, max_epochs=1).fit(Net(), loader(1))
    other = copy.deepcopy(TQDMProgressBar(refresh_rate=3))
    assert other.refresh_rate == 3
    bar._trainer = None
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(bar)).train_progress_bar  # noqa: B018


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, "1"),
        (0.1, "0.100"),
        (0.0, "0.000"),
        (1.23456789, "1.230"),
        (1234.5678, "1.23e+3"),
        (123456, "123456"),
        (1e-9, "1e-9"),
        ("abc", "abc"),
    ],
)
def test_numbers_have_five_characters(number, text):
    assert Tqdm.format_num(number) == text


def test_the_bar_of_tqdm_is_tqdm():
    import tqdm

    assert issubclass(Tqdm, tqdm.std.tqdm)
    assert list(Tqdm(range(3), file=io.StringIO())) == [0, 1, 2]


@pytest.mark.parametrize(
    ("total", "expected"), [(float("inf"), None), (float("nan"), None), (None, None), (3, 3), (2.0, 2.0)]
)
def test_totals_that_are_not_known(total, expected):
    assert convert_inf(total) == expected


@pytest.mark.parametrize("name", ["train", "val", "test", "predict"])
def test_a_bar_can_be_replaced(name):
    bar, own = TQDMProgressBar(), object()
    with pytest.raises(TypeError, match=f"{name}_progress_bar"):
        getattr(bar, f"{name}_progress_bar")
    setattr(bar, f"{name}_progress_bar", own)
    assert getattr(bar, f"{name}_progress_bar") is own


def test_a_bar_that_was_replaced_counts_what_follows(tmp_path):
    class Own(TQDMProgressBar):
        def on_validation_start(self, trainer, pl_module):
            super().on_validation_start(trainer, pl_module)
            self.made, self.val_progress_bar = self.val_progress_bar, Tqdm(total=0, file=io.StringIO())

    bar = Own()
    trainer_with(tmp_path, bar).validate(Net(), [loader(2), loader(3)], verbose=False)
    assert (bar.val_progress_bar.n, bar.val_progress_bar.total, bar.made.n) == (3, 3, 0)
    bar.made.close()
