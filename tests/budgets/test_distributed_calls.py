"""What a step costs under DDP, counted on two processes; nothing here is timed."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.callbacks import Timer
from processes import run_ranks

MAX_FRAMES = 13
MAX_CALLS_PER_BATCH = 20
BATCHES = 50

HERE = str(Path(fulmen.__file__).parent)
QUIET = {
    "devices": 2,
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Net(fulmen.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.frames = []

    def training_step(self, batch, batch_idx):
        frame = sys._getframe(1)
        self.frames = []
        while frame.f_code.co_name != "fit":
            self.frames.append(frame.f_code.co_qualname)
            frame = frame.f_back
        return self.layer(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def frames_on_a_rank():
    module = Net()
    fulmen.Trainer(**{**QUIET, "fast_dev_run": True}).fit(module, DataLoader(TensorDataset(torch.ones(4, 2))))
    return module.frames


def test_frames_between_fit_and_the_users_step():
    for frames in run_ranks(frames_on_a_rank, 2):
        assert "DistributedDataParallel.forward" in frames
        assert len(frames) <= MAX_FRAMES, frames


def own_calls(batches, **settings):
    """How often each function of fulmen is called in a fit, by name."""
    calls = Counter()

    def count(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(HERE):
            calls[f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_qualname}"] += 1

    trainer = fulmen.Trainer(limit_train_batches=batches, **{**QUIET, **settings})
    data = DataLoader(TensorDataset(torch.ones(4 * BATCHES, 2)))
    sys.setprofile(count)
    try:
        trainer.fit(Net(), data)
    finally:
        sys.setprofile(None)
    return calls


def calls_of_further_batches(settings):
    own_calls(1)  # what is made once, such as the process group
    return own_calls(2 * BATCHES, **settings) - own_calls(BATCHES, **settings)


def test_calls_of_a_batch():
    for calls in run_ranks(calls_of_further_batches, 2, {}):
        assert calls.total() / BATCHES <= MAX_CALLS_PER_BATCH, calls


@pytest.mark.parametrize("settings", [{}, {"callbacks": Timer({"hours": 1})}])
def test_fast_batches_exchange_nothing_but_gradients(settings):
    for calls in run_ranks(calls_of_further_batches, 2, settings):
        exchanges = [name for name in calls if name.startswith("distributed.py")]
        assert sum(calls[name] for name in exchanges) < BATCHES / 2, calls
        assert settings or not exchanges
