"""Checkpoints written in the background: what is written, in which order, and what becomes of failures."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fulmen
from fulmen.callbacks import ModelCheckpoint
from fulmen.checkpoint.asynchronous import AsyncCheckpointIO, _copy
from fulmen.checkpoint.store import TorchCheckpointIO


class Gate(TorchCheckpointIO):
    """Writes when it is let, and remembers in which order it was asked."""

    def __init__(self):
        self.opened = threading.Event()
        self.calls = []

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        assert self.opened.wait(10)
        self.calls.append(("save", path.name, storage_options, threading.current_thread().name.partition("_")[0]))
        super().save_checkpoint(checkpoint, path)

    def remove_checkpoint(self, path):
        self.calls.append(("remove", path.name))
        super().remove_checkpoint(path)

    def teardown(self):
        self.calls.append("teardown")


class Full(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        raise OSError(f"no space for {path}")


def test_what_is_saved_is_what_there_was(tmp_path):
    gate = Gate()
    io, weight = AsyncCheckpointIO(gate), torch.ones(2)
    state = {"state_dict": {"weight": weight}, "epoch": 3}
    io.save_checkpoint(state, tmp_path / "a.ckpt", storage_options="fast")
    weight.zero_()
    state["epoch"] = 4
    assert not (tmp_path / "a.ckpt").exists()
    gate.opened.set()
    loaded = io.load_checkpoint(tmp_path / "a.ckpt", weights_only=True)  # waits for the file
    assert (loaded["state_dict"]["weight"].tolist(), loaded["epoch"]) == ([1.0, 1.0], 3)
    io.teardown()
    assert gate.calls == [("save", "a.ckpt", "fast", "checkpoint"), "teardown"]


def test_one_after_the_other(tmp_path):
    gate = Gate()
    io = AsyncCheckpointIO(gate)
    io.save_checkpoint({}, tmp_path / "old.ckpt")
    io.save_checkpoint({}, tmp_path / "new.ckpt")
    io.remove_checkpoint(tmp_path / "old.ckpt")
    gate.opened.set()
    io.teardown()
    assert [path.name for path in tmp_path.iterdir()] == ["new.ckpt"]
    assert [call[:2] for call in gate.calls[:3]] == [("save", "old.ckpt"), ("save", "new.ckpt"), ("remove", "old.ckpt")]
    io.save_checkpoint({}, tmp_path / "again.ckpt")  # a second fit
    io.teardown()
    assert (tmp_path / "again.ckpt").exists()


def test_a_failure_is_raised_by_the_next_save(tmp_path):
    io = AsyncCheckpointIO(Full())
    io.save_checkpoint({}, tmp_path / "a.ckpt")
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint(tmp_path / "a.ckpt")  # waits, and keeps the failure
    io.checkpoint_io = TorchCheckpointIO()
    with pytest.raises(OSError, match=r"no space for .*a.ckpt"):
        io.save_checkpoint({}, tmp_path / "b.ckpt")
    io.teardown()
    assert (tmp_path / "b.ckpt").exists()


def test_failures_are_raised_at_the_end(tmp_path):
    io = AsyncCheckpointIO(Full())
    io.save_checkpoint({}, tmp_path / "a.ckpt")
    with pytest.raises(OSError, match=r"a.ckpt"):
        io.teardown()
    io.teardown()  # said once


def test_all_failures_are_told(tmp_path):
    gate = Gate()
    gate.save_checkpoint = lambda checkpoint, path, storage_options=None: gate.opened.wait(10) and 1 / 0
    io = AsyncCheckpointIO(gate)
    for name in ("a", "b"):
        io.save_checkpoint({}, tmp_path / name)
    gate.opened.set()
    with pytest.raises(ZeroDivisionError) as caught:
        io.teardown()
    assert len(caught.value.__notes__) == 1


def test_without_a_strategy_files_are_written(tmp_path):
    io = AsyncCheckpointIO()
    assert io.checkpoint_io is None
    io.save_checkpoint({"a": 1}, tmp_path / "x.ckpt")
    io.teardown()
    assert io.load_checkpoint(tmp_path / "x.ckpt") == {"a": 1}
    assert type(io.checkpoint_io) is TorchCheckpointIO


def test_tied_weights_are_written_once(tmp_path):
    base = torch.arange(1000.0)
    copied = _copy({"a": base, "b": base[:], "part": base[10:20:2], "parameter": nn.Parameter(base), "own": [base + 1]})
    assert copied["a"].data_ptr() == copied["b"].data_ptr() == copied["parameter"].data_ptr() != base.data_ptr()
    base.zero_()
    assert copied["part"].tolist() == [10.0, 12.0, 14.0, 16.0, 18.0]
    AsyncCheckpointIO().save_checkpoint({"x": copied}, tmp_path / "x")
    assert copied["own"][0][0] == 1.0


@given(
    sizes=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bool, torch.bfloat16, torch.complex64, torch.int64]),
    turn=st.booleans(),
)
def test_a_copy_is_the_same_tensor(sizes, dtype, turn):
    original = torch.zeros(sizes).bernoulli_().to(dtype)
    original = original.mT.conj() if turn and len(sizes) > 1 else original
    copied = _copy({"x": original})["x"]
    assert torch.equal(copied, original)
    assert (copied.dtype, copied.shape) == (original.dtype, original.shape)


class Net(fulmen.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, io):
    newest = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, filename="{step}")
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = fulmen.Trainer(max_epochs=1, accelerator="cpu", callbacks=[newest], plugins=[io], **off)
    trainer.fit(Net(), torch.utils.data.DataLoader(torch.randn(4, 2)))
    return trainer


def test_a_fit(tmp_path):
    io = AsyncCheckpointIO()
    trainer = fit(tmp_path, io)
    assert trainer.strategy.checkpoint_io is io
    assert type(io.checkpoint_io) is TorchCheckpointIO
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step=4.ckpt"]
    assert torch.load(tmp_path / "last.ckpt")["global_step"] == 4
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    io.teardown()
    assert Net.load_from_checkpoint(tmp_path / "end.ckpt").layer.weight.equal(trainer.lightning_module.layer.weight)


def test_a_fit_does_not_end_well_without_its_checkpoints(tmp_path):
    with pytest.raises(OSError, match="no space"):
        fit(tmp_path, AsyncCheckpointIO(Full()))
