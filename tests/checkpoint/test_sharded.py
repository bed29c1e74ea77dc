"""Sharded checkpoints in one process: what is written, what is read, and that nothing is lost or run."""

import os
import pickle
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fulmen import Fabric, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.checkpoint import shards
from fulmen.checkpoint.asynchronous import AsyncCheckpointIO
from fulmen.checkpoint.sharded import (
    is_sharded,
    load_sharded,
    numbered,
    read_meta,
    read_sharded,
    save_sharded,
    split,
)
from fulmen.checkpoint.store import TorchCheckpointIO, read
from fulmen.demos.boring_classes import BoringModel
from fulmen.errors import CheckpointError
from nested import same

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
}


class Adam(BoringModel):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Directories(TorchCheckpointIO):
    """What a strategy of several processes does, in one."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.save_sharded(path, *split(checkpoint))


def a_state():
    return {
        "state_dict": {"layer.weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)},
        "optimizer_0": {
            "state": {"layer.weight": {"exp_avg": torch.ones(2, 3), "step": torch.tensor(4.0), "other": None}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": ["layer.weight"]}],
        },
    }


# ------------------------------------------------------------------------------------------------ what is written


def test_a_directory_has_shards_and_a_file_for_the_rest(tmp_path):
    path = tmp_path / "runs" / "a.ckpt"
    save_sharded(path, a_state(), {"epoch": 2})
    assert sorted(os.listdir(path)) == [".metadata", "__0_0.distcp", "meta.pt"]
    assert os.listdir(path.parent) == ["a.ckpt"]
    assert is_sharded(path)
    assert torch.load(path / "meta.pt", weights_only=True) == read_meta(path) == {"epoch": 2}


def test_an_earlier_checkpoint_is_replaced(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({}, path)
    for epoch in range(2):
        save_sharded(path, a_state(), {"epoch": epoch})
        assert read_meta(path) == {"epoch": epoch}
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_a_file_replaces_a_directory(tmp_path):
    path = tmp_path / "a.ckpt"
    save_sharded(path, a_state(), {})
    TorchCheckpointIO().save_checkpoint({"epoch": 1}, path)
    assert torch.load(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_a_directory_with_something_else_in_it_is_not_replaced(tmp_path):
    (tmp_path / "a.ckpt").mkdir()
    save_sharded(tmp_path / "a.ckpt", a_state(), {})  # over an empty one
    other = tmp_path / "b.ckpt"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for save in (lambda: save_sharded(other, {}, {}), lambda: TorchCheckpointIO().save_checkpoint({}, other)):
        with pytest.raises(IsADirectoryError, match=r"b\.ckpt"):
            save()
    assert os.listdir(other) == ["thesis.tex"]
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "b.ckpt"]


def test_what_fails_leaves_the_earlier_checkpoint(tmp_path):
    path = tmp_path / "a.ckpt"
    save_sharded(path, a_state(), {"epoch": 1})
    with pytest.raises(CheckpointError, match="its entry 'bad' cannot be pickled"):
        save_sharded(path, a_state(), {"bad": lambda: None})
    assert os.listdir(tmp_path) == ["a.ckpt"]
    assert read_meta(path) == {"epoch": 1}


def test_what_fails_in_the_last_moment_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    path, rename = tmp_path / "a.ckpt", os.rename
    save_sharded(path, a_state(), {"epoch": 1})

    def fail(source, target):
        if Path(source, "meta.pt").exists() and Path(target) == path and not list(tmp_path.glob("failed")):
            (tmp_path / "failed").touch()
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="could not be written: No space left") as caught:
        save_sharded(path, a_state(), {"epoch": 2})
    assert caught.value.errno == 28
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "failed"]
    assert read_meta(path) == {"epoch": 1}


def test_parts_that_rank_0_does_not_see_are_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "names_in", lambda folder: [])  # as of a process on another machine
    with pytest.raises(CheckpointError, match=r"does not see __0_0\.distcp.*all machines share"):
        save_sharded(tmp_path / "a.ckpt", a_state(), {})
    assert os.listdir(tmp_path) == []


def test_the_checkpoint_of_a_run_is_divided_by_its_keys():
    run = {"pytorch-lightning_version": "2.6.6", "state_dict": {}, "callbacks": {"a": {"best": torch.ones(1)}}}
    state, meta = split({**run, "optimizer_states": ["first", "second"]})
    assert state == {"state_dict": {}, "optimizer_0": "first", "optimizer_1": "second"}
    assert list(meta) == ["pytorch-lightning_version", "callbacks"]


def test_any_other_dict_is_divided_by_what_is_in_it():
    entries = {"model": {"weight": torch.ones(1)}, "optimizer": {"state": {0: [torch.ones(1)]}}}
    state, meta = split({**entries, "epoch": 3, "best": torch.ones(1), "settings": {"width": 4}})
    assert list(state) == ["model", "optimizer"]
    assert list(meta) == ["epoch", "best", "settings"]


# ------------------------------------------------------------------------------------------------ what is read


def test_all_that_was_saved_comes_back(tmp_path):
    save_sharded(tmp_path / "a", a_state(), {"epoch": 2})
    loaded = read_sharded(tmp_path / "a")
    state, optimizer = a_state()["state_dict"], a_state()["optimizer_0"]
    assert same(loaded["state_dict"], state)
    assert same(loaded["optimizer_0"]["state"][0], optimizer["state"]["layer.weight"])
    assert loaded["optimizer_0"]["param_groups"] == [{**optimizer["param_groups"][0], "params": [0]}]
    assert loaded["epoch"] == 2


def test_tensors_become_like_others_of_their_name_and_shape(tmp_path):
    save_sharded(tmp_path / "a", a_state(), {})
    like = {"layer.weight": torch.empty(2, 3, dtype=torch.float64).t().contiguous().t(), "count": torch.empty(7)}
    loaded = read_sharded(tmp_path / "a", like)
    weight, average = loaded["state_dict"]["layer.weight"], loaded["optimizer_0"]["state"][0]["exp_avg"]
    assert weight.stride() == average.stride() == (1, 2)
    assert weight.dtype == torch.float32
    assert loaded["state_dict"]["count"] == 3


def test_given_tensors_are_filled_in_place(tmp_path):
    save_sharded(tmp_path / "a", a_state(), {"epoch": 2})
    weight, groups = torch.zeros(2, 3), [{"lr": 5.0, "betas": (0, 0), "params": ["layer.weight"], "new": 1}]
    state = {"state_dict": {"layer.weight": weight, "count": torch.tensor(0)}}
    assert load_sharded(tmp_path / "a", state) == {"epoch": 2}
    assert state["state_dict"]["layer.weight"] is weight
    assert same(state["state_dict"], a_state()["state_dict"])
    load_sharded(tmp_path / "a", {"optimizer_0": {"param_groups": groups}}, strict=False)
    assert groups == [{"lr": 0.1, "betas": (0.9, 0.99), "params": ["layer.weight"], "new": 1}]


def test_what_does_not_fit_is_named(tmp_path):
    save_sharded(tmp_path / "a", a_state(), {})
    state = {"state_dict": {"layer.weight": torch.zeros(3, 2), "layer.bias": torch.zeros(2)}}
    with pytest.raises(CheckpointError) as caught:
        load_sharded(tmp_path / "a", state)
    assert str(caught.value).splitlines()[1:-1] == [
        "  missing in the checkpoint:",
        "    state_dict.layer.bias (2,)",
        "  not wanted:",
        "    state_dict.count ()",
        "  of another shape:",
        "    state_dict.layer.weight ((2, 3) in the checkpoint, (3, 2) wanted)",
    ]
    assert caught.value.path == tmp_path / "a"
    with pytest.raises(CheckpointError, match="of another shape"):
        load_sharded(tmp_path / "a", state, strict=False)


def test_what_is_missing_may_be_left_out(tmp_path):
    save_sharded(tmp_path / "a", a_state(), {})
    state = {"state_dict": {"layer.weight": torch.zeros(2, 3), "layer.bias": torch.full((2,), 7.0)}}
    load_sharded(tmp_path / "a", state, strict=False)
    assert same(state["state_dict"]["layer.weight"], a_state()["state_dict"]["layer.weight"])
    assert state["state_dict"]["layer.bias"].tolist() == [7, 7]


def test_what_is_no_sharded_checkpoint_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for read_it in (read_sharded, lambda path: load_sharded(path, {})):
        with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*nowhere"):
            read_it(tmp_path / "nowhere")
        with pytest.raises(CheckpointError, match=r"there is no meta\.pt and no \.metadata in it"):
            read_it(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="directory without a complete sharded checkpoint"):
        read(tmp_path / "empty")
    assert not is_sharded(tmp_path / "empty")


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "meta.pt"])
def test_a_torn_checkpoint_is_an_error(tmp_path, name):
    save_sharded(tmp_path / "a", a_state(), {"epoch": 1})
    file = tmp_path / "a" / name
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="complete"):
        read_sharded(tmp_path / "a")


def test_a_missing_part_is_an_error(tmp_path):
    save_sharded(tmp_path / "a", a_state(), {})
    (tmp_path / "a" / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match="not complete any more"):
        read_sharded(tmp_path / "a")


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=3), min_size=1, max_size=3))
def test_states_by_name_are_those_by_number(groups):
    """Each group is a list of parameters, of which some have a state."""
    parameters = [
        torch.nn.Parameter(torch.full((2,), float(place))) for group in groups for place, _ in enumerate(group)
    ]
    have_state = [flag for group in groups for flag in group]
    waiting = iter(parameters)
    optimizer = torch.optim.Adam([{"params": [next(waiting) for _ in group], "lr": len(group)} for group in groups])
    for parameter, flag in zip(parameters, have_state, strict=True):
        parameter.grad = torch.ones(2) if flag else None
    optimizer.step()
    state = optimizer.state_dict()
    names = [f"p{number * 7 % 31}" for number in range(len(parameters))]
    by_name = {
        "state": {names[number]: value for number, value in reversed(state["state"].items())},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]
        ],
    }
    assert same(numbered(by_name), state)
    assert same(numbered(state), state)
    optimizer.load_state_dict(numbered(by_name))


# ------------------------------------------------------------------------------------------------ what is not run


class Evil:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def poisoned(tmp_path, place):
    save_sharded(tmp_path / "a", {"state_dict": {"extra": Evil(tmp_path / "ran")} if place == "shards" else {}}, {})
    if place == "metadata":
        (tmp_path / "a" / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    if place == "meta":
        torch.save({"entry": Evil(tmp_path / "ran")}, tmp_path / "a" / "meta.pt")
    return tmp_path / "a"


@pytest.mark.parametrize("place", ["shards", "metadata", "meta"])
@pytest.mark.parametrize("weights_only", [None, True])
def test_nothing_is_run_unless_it_is_trusted(tmp_path, place, weights_only):
    path = poisoned(tmp_path, place)
    with pytest.raises(CheckpointError, match="weights_only=False"):
        read_sharded(path, weights_only=weights_only)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["shards", "meta"])
def test_what_is_trusted_is_unpickled(tmp_path, place):
    read_sharded(poisoned(tmp_path, place), weights_only=False)
    assert (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------ in runs


def fit(folder, io=None, epochs=2, ckpt_path=None, **settings):
    torch.manual_seed(0)
    callback = ModelCheckpoint(folder, **settings)
    trainer = Trainer(max_epochs=epochs, callbacks=callback, plugins=[io] if io else None, **QUIET)
    module = Adam()
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer, module, callback


def test_a_run_goes_on_from_a_directory_as_from_a_file(tmp_path):
    _, _, callback = fit(tmp_path, save_top_k=-1)
    checkpoint = torch.load(callback.best_model_path, weights_only=True)
    directory = tmp_path / "directory.ckpt"
    save_sharded(directory, *split(checkpoint))
    assert same(read_sharded(directory), checkpoint)
    _, from_file, _ = fit(tmp_path, epochs=4, ckpt_path=callback.best_model_path, save_top_k=-1)
    _, from_directory, _ = fit(tmp_path, epochs=4, ckpt_path=directory, save_top_k=-1)
    assert same(dict(from_file.state_dict()), dict(from_directory.state_dict()))


def test_evaluation_and_loading_take_a_directory(tmp_path):
    trainer, module, callback = fit(tmp_path, Directories())
    assert is_sharded(callback.best_model_path)
    trained = {name: value.clone() for name, value in module.state_dict().items()}
    assert same(dict(BoringModel.load_from_checkpoint(callback.best_model_path).state_dict()), trained)
    with torch.no_grad():
        module.layer.weight.zero_()
    trainer.validate(module, ckpt_path=callback.best_model_path, verbose=False)
    assert same(dict(module.state_dict()), trained)
    trainer.predict(BoringModel(), DataLoader(torch.ones(2, 32)), ckpt_path="best")


def test_map_location_counts_for_a_directory(tmp_path):
    save_sharded(tmp_path / "a", {"state_dict": {"weight": torch.ones(2)}}, {})
    assert read(tmp_path / "a", "meta")["state_dict"]["weight"].is_meta
    assert read(tmp_path / "a")["state_dict"]["weight"].tolist() == [1, 1]


def test_model_checkpoint_keeps_the_best_directories(tmp_path):
    _, _, callback = fit(tmp_path, Directories(), epochs=4, monitor="step", mode="max", save_top_k=2, save_last="link")
    names = ["epoch=2-step=6.ckpt", "epoch=3-step=8.ckpt"]
    assert sorted(os.listdir(tmp_path)) == [*names, "last.ckpt"]
    assert all(is_sharded(tmp_path / name) for name in (*names, "last.ckpt"))
    assert os.readlink(tmp_path / "last.ckpt") == os.path.basename(callback.best_model_path) == names[1]
    assert read_meta(tmp_path / "last.ckpt")["epoch"] == 3


def test_the_last_directory_is_found(tmp_path):
    fit(tmp_path, Directories(), save_last=True)
    trainer, _, _ = fit(tmp_path, Directories(), epochs=3, save_last=True, ckpt_path="last")
    assert trainer.global_step == 6
    assert sorted(os.listdir(tmp_path)) == ["epoch=2-step=6.ckpt", "last.ckpt"]


def test_fabric_reads_a_directory(tmp_path):
    module = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(2)).backward()
    optimizer.step()
    save_sharded(tmp_path / "a", *split({"model": module.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}))
    other = torch.nn.Linear(2, 1)
    state = {"model": other, "optimizer": torch.optim.Adam(other.parameters()), "step": 0}
    assert Fabric(accelerator="cpu", devices=1).load(tmp_path / "a", state) == {}
    assert state["step"] == 3
    assert same(dict(other.state_dict()), dict(module.state_dict()))
    assert same(state["optimizer"].state_dict(), optimizer.state_dict())


# ------------------------------------------------------------------------------------------------ in the background


class Held(shards.FileSystemWriter):
    """Writes when it is let."""

    let = threading.Event()

    def write_data(self, plan, planner):
        assert self.let.wait(10)
        return super().write_data(plan, planner)


@pytest.fixture
def held(monkeypatch):
    monkeypatch.setattr(shards, "FileSystemWriter", Held)
    Held.let.clear()
    yield Held.let
    Held.let.set()


def test_what_is_saved_in_the_background_is_what_there_was(tmp_path, held):
    io, weight = AsyncCheckpointIO(), torch.ones(2)
    io.save_sharded(tmp_path / "a", {"state_dict": {"weight": weight}}, {"epoch": 1})
    weight.zero_()
    assert not is_sharded(tmp_path / "a")
    held.set()
    assert io.read_sharded(tmp_path / "a")["state_dict"]["weight"].tolist() == [1, 1]  # waits for it
    io.remove_checkpoint(tmp_path / "a")
    io.teardown()
    assert os.listdir(tmp_path) == []


def test_failures_in_the_background_are_raised_by_the_next_save_and_at_the_end(tmp_path):
    io = AsyncCheckpointIO()
    io.save_sharded(tmp_path / "a", {}, {"bad": lambda: None})
    with pytest.raises(CheckpointError, match="'bad' cannot be pickled"):
        io.save_sharded(tmp_path / "b", {}, {})
    io.save_sharded(tmp_path / "c", {}, {"worse": lambda: None})
    with pytest.raises(CheckpointError, match="'worse' cannot be pickled"):
        io.teardown()
    assert os.listdir(tmp_path) == ["b"]


def test_a_run_saves_directories_in_the_background(tmp_path):
    class Background(AsyncCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            self.save_sharded(path, *split(checkpoint))

    _, module, callback = fit(tmp_path, Background(), monitor="step", mode="max", save_top_k=1)
    assert os.listdir(tmp_path) == ["epoch=1-step=4.ckpt"]
    assert same(read_sharded(callback.best_model_path)["state_dict"], dict(module.state_dict()))


# ------------------------------------------------------------------------------------------------ URLs


def test_a_url(tmp_path):
    pytest.importorskip("fsspec")
    url = "memory://sharded/a.ckpt"
    for epoch in range(2):
        save_sharded(url, a_state(), {"epoch": epoch})
    assert is_sharded(url)
    assert read_meta(url) == {"epoch": 1}
    assert same(read(url)["state_dict"], a_state()["state_dict"])
    with pytest.raises(CheckpointError, match="cannot be pickled"):
        save_sharded("memory://sharded/b.ckpt", a_state(), {"bad": lambda: None})
    assert not is_sharded("memory://sharded/b.ckpt")
    TorchCheckpointIO().remove_checkpoint(url)
    with pytest.raises(FileNotFoundError):
        read(url)
