from __future__ import annotations

from functools import partial

import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.callbacks import ModelSummary, RichModelSummary, rich_model_summary


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1))
        self.example_input_array = torch.zeros(2, 4)

    def forward(self, x):
        return self.body(x)

    def training_step(self, batch, batch_idx):
        return self(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(tmp_path, callback, module=None, **kwargs):
    settings = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[callback], **(settings | kwargs))
    trainer.fit(module or Net(), DataLoader(torch.zeros(2, 4)))
    return trainer


@pytest.mark.parametrize("kind", [ModelSummary, RichModelSummary])
def test_the_summary_is_printed(tmp_path, capsys, kind):
    fit(tmp_path, kind(max_depth=2))
    out = capsys.readouterr().out
    for part in ("body.1", "Linear", "[2, 4]", "Total params", "Total FLOPs", "Modules in train mode"):
        assert part in out, part
    assert "\x1b" not in out


@pytest.mark.parametrize("kind", [ModelSummary, RichModelSummary])
def test_operations_that_were_not_measured_are_not_printed(tmp_path, capsys, kind):
    module = Net()
    module.example_input_array = None
    fit(tmp_path, kind(), module=module)
    out = capsys.readouterr().out
    assert "Total params" in out
    assert "FLOPs" not in out


def test_the_header_of_a_rich_summary_has_a_style(monkeypatch, capsys):
    terminal = partial(Console, force_terminal=True, color_system="standard")
    monkeypatch.setattr(rich_model_summary, "make_console", terminal)
    arguments = ([("Name", ["x"])], 1, 1, 0.1, {"train": 1, "eval": 0}, 0)
    RichModelSummary.summarize(*arguments, header_style="underline")
    assert "\x1b[4m" in capsys.readouterr().out
    RichModelSummary.summarize(*arguments)
    assert "\x1b[4m" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", [ModelSummary, RichModelSummary])
def test_depth_zero_prints_nothing(tmp_path, capsys, kind):
    trainer = fit(tmp_path, kind(max_depth=0))
    assert capsys.readouterr().out == ""
    assert not trainer.callbacks[0].listens("on_fit_start", trainer)


def test_summarize_can_be_overridden(tmp_path, capsys):
    class Mine(ModelSummary):
        @staticmethod
        def summarize(summary_data, total_parameters, trainable_parameters, model_size, modes, flops, **kwargs):
            print(dict(summary_data)["Name"], total_parameters, trainable_parameters, modes, flops, kwargs)

    fit(tmp_path, Mine(color="red"))
    expected = "['body'] 19 19 {'train': 3, 'eval': 0} 60 {'color': 'red'}\n"
    assert capsys.readouterr().out == expected


def test_a_wrong_depth_is_refused_at_once():
    with pytest.raises(ValueError, match="max_depth"):
        ModelSummary(max_depth=-2)
    with pytest.raises(ValueError, match="max_depth"):
        RichModelSummary(max_depth=1.5)


def test_markup_in_names_is_text(capsys):
    RichModelSummary.summarize([("Name", ["[red]x"]), ("Params", ["1  "])], 1, 1, 0.1, {"train": 1, "eval": 0}, 0)
    assert "[red]x" in capsys.readouterr().out
