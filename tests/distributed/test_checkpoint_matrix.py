"""Checkpoints saved by one strategy at one number of processes, loaded by another at another.

Every process sees the same batches, so that all runs compute what one process alone computes. A checkpoint is right if
the losses of the run that goes on from it are those of the run that was not interrupted.
"""

import os
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Fabric, LightningModule, Trainer
from fulmen.callbacks import EMAWeightAveraging, ModelCheckpoint
from fulmen.checkpoint import shards
from fulmen.checkpoint.asynchronous import AsyncCheckpointIO
from fulmen.checkpoint.consolidate import consolidate
from fulmen.checkpoint.sharded import is_sharded, load_sharded, read_sharded, save_sharded
from fulmen.checkpoint.store import read
from fulmen.strategies import FSDPStrategy, ModelParallelStrategy
from nested import same
from processes import RanksFailed, run_ranks

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}

STRATEGIES = {
    "ddp": lambda: "ddp",
    "fsdp": lambda: FSDPStrategy(state_dict_type="sharded"),
    "fsdp-full": lambda: FSDPStrategy(state_dict_type="full"),
    "mesh": lambda: ModelParallelStrategy(*mesh_of(dist.get_world_size())),
    "mesh-full": lambda: ModelParallelStrategy(*mesh_of(dist.get_world_size()), save_distributed_checkpoint=False),
}
PLAN = {"first": ColwiseParallel(), "last": RowwiseParallel()}


def mesh_of(size):
    """Sizes of the data and of the tensor dimension."""
    return (2, 2) if size == 4 else (1, size)


class Net(LightningModule):
    def __init__(self, on_mesh=False):
        super().__init__()
        torch.manual_seed(0)
        self.on_mesh = on_mesh
        self.first, self.last = nn.Linear(4, 12), nn.Linear(12, 2)
        self.unused = nn.Linear(2, 2)
        self.unused.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))
        self.losses = []

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))

    def configure_model(self):
        if self.on_mesh:
            parallelize_module(self, self.device_mesh["tensor_parallel"], PLAN)
            fully_shard(self, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.seen += 1
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        groups = [{"params": self.first.parameters()}, {"params": self.last.parameters(), "lr": 0.05}]
        optimizer = torch.optim.Adam(groups, 0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def batches():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 4, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :2].sin()), 8)


def train(strategy, devices, epochs, folder, ckpt_path=None, **settings):
    """The losses of a run, and where it left its checkpoint; one that goes on leaves none."""
    callback = ModelCheckpoint(folder, filename="saved", save_top_k=1 if ckpt_path is None else 0)
    trainer = Trainer(
        strategy=STRATEGIES[strategy](),
        devices=devices,
        max_epochs=epochs,
        callbacks=callback,
        use_distributed_sampler=False,
        **QUIET,
        **settings,
    )
    module = Net(on_mesh=strategy.startswith("mesh"))
    trainer.fit(module, batches(), ckpt_path=ckpt_path)
    return module.losses, callback.best_model_path


def save_in_rank(strategy, folder):
    return train(strategy, dist.get_world_size(), 1, folder)[1]


def go_on_in_rank(strategy, paths):
    size = dist.get_world_size()
    return {name: train(strategy, size, 2, Path(path).parent, path)[0] for name, path in paths.items()}


class Saved:
    """Checkpoints after one epoch, made when they are asked for."""

    def __init__(self, root):
        self.root, self.paths = root, {}
        whole, _ = train("ddp", 1, 2, root / "whole")  # without other processes
        self.expected = whole[3:]
        self.single = torch.load(train("ddp", 1, 1, root / "single")[1], weights_only=True)

    def by(self, strategy, size):
        if (strategy, size) not in self.paths:
            folder = self.root / f"{strategy}-{size}"
            self.paths[strategy, size] = run_ranks(save_in_rank, size, strategy, folder)[0]
        return self.paths[strategy, size]

    def check(self, strategy, size, *savers):
        paths = {saver: self.by(*saver) for saver in savers}
        for losses in run_ranks(go_on_in_rank, size, strategy, paths):
            for saver, found in losses.items():
                assert found == pytest.approx(self.expected, rel=1e-5), saver


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return Saved(tmp_path_factory.mktemp("saved"))


def layout(checkpoint):
    """The shapes of all but what only fulmen knows: that depends on how many have loaded the data."""
    assert list(checkpoint)[-1] == "fulmen"
    return shapes({key: value for key, value in checkpoint.items() if key != "fulmen"})


def shapes(tree):
    """The keys of nested dicts, in their order, with the shapes and types of what is there."""
    if isinstance(tree, dict):
        return [(key, shapes(value)) for key, value in tree.items()]
    if isinstance(tree, (list, tuple)):
        return [shapes(value) for value in tree]
    return (tree.dtype, tree.shape) if isinstance(tree, torch.Tensor) else type(tree)


SAVERS = [(strategy, size) for strategy in STRATEGIES for size in (1, 2, 4)]
SOME = [("fsdp", 2), ("fsdp-full", 2), ("mesh", 2), ("ddp", 2)]


def assert_is_that_of_one_process(saved, saver):
    path = saved.by(*saver)
    assert is_sharded(path) == (not saver[0].endswith(("ddp", "full")))
    found, expected = read(path), saved.single
    assert layout(found) == layout(expected)
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)
    for key in ("epoch", "global_step", "loops", "lr_schedulers"):
        assert same(found[key], expected[key])


@pytest.mark.parametrize("saver", SOME)
def test_a_checkpoint_is_that_of_one_process(saved, saver):
    assert_is_that_of_one_process(saved, saver)


@pytest.mark.slow
@pytest.mark.parametrize("saver", SAVERS)
def test_every_checkpoint_is_that_of_one_process(saved, saver):
    assert_is_that_of_one_process(saved, saver)


def test_the_consolidated_file_is_that_of_one_process(saved, tmp_path):
    path = saved.by("fsdp", 2)
    found = torch.load(consolidate(path, tmp_path / "whole.ckpt"), weights_only=True)
    assert layout(found) == layout(saved.single)
    assert same(found, read(path))


@pytest.mark.parametrize(("strategy", "size"), [("ddp", 1), ("fsdp", 2), ("mesh", 2)])
def test_a_run_goes_on(saved, strategy, size):
    saved.check(strategy, size, *SOME)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_run_goes_on(saved, strategy, size):
    saved.check(strategy, size, *SAVERS)


def test_weights_are_loaded_without_processes(saved):
    module = Net.load_from_checkpoint(saved.by("fsdp", 2))
    torch.testing.assert_close(dict(module.state_dict()), dict(saved.single["state_dict"]), rtol=1e-5, atol=1e-6)


def average_in_rank(folder, epochs, ckpt_path=None):
    size = dist.get_world_size()
    module, callback = Net(), ModelCheckpoint(folder, filename="saved", save_top_k=1 if ckpt_path is None else 0)
    trainer = Trainer(
        strategy=STRATEGIES["fsdp"](),
        devices=size,
        max_epochs=epochs,
        callbacks=[EMAWeightAveraging(decay=0.5), callback],
        use_distributed_sampler=False,
        **QUIET,
    )
    trainer.fit(module, batches(), ckpt_path=ckpt_path)
    weight = module.first.weight.full_tensor()
    return module.losses, weight.detach(), callback.best_model_path


@pytest.mark.slow
def test_averages_are_sharded_too(tmp_path):
    path = run_ranks(average_in_rank, 2, tmp_path, 1)[0][2]
    checkpoint = read_sharded(path)
    assert not torch.equal(*(checkpoint[key]["first.weight"] for key in ("state_dict", "current_model_state")))
    losses, weight, _ = run_ranks(average_in_rank, 1, tmp_path, 2, path)[0]
    uninterrupted, expected, _ = run_ranks(average_in_rank, 3, tmp_path / "whole", 2)[0]
    assert losses == pytest.approx(uninterrupted[3:], rel=1e-5)
    torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ a loop of one's own


def loop(strategy, devices, path, load):
    """Two steps, of which the first is saved or loaded; gives the loss of the second."""
    fabric = Fabric(accelerator="cpu", strategy=strategy, devices=devices)
    fabric.launch()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9 if path.suffix else 0))
    state = {"model": model, "optimizer": optimizer, "step": 0}
    for step in range(2):
        if step == 1 and load:
            assert fabric.load(path, state) == {}
            assert state["step"] == 1
        loss = model(torch.ones(2, 4) * (step + 1)).square().mean()
        if step == 0 and load:
            continue
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            fabric.save(path, state | {"step": 1})
    return loss.item()


def loop_in_rank(path, load):
    return loop(STRATEGIES["fsdp"](), dist.get_world_size(), path, load)


@pytest.mark.parametrize("name", ["with.momentum", "without"])
def test_fabric_saves_and_loads_shards(tmp_path, name):
    expected = loop("auto", 1, tmp_path / f"single-{name}", load=False)
    assert run_ranks(loop_in_rank, 2, tmp_path / name, False) == pytest.approx([expected] * 2, rel=1e-5)
    assert is_sharded(tmp_path / name)
    assert loop("auto", 1, tmp_path / name, load=True) == pytest.approx(expected, rel=1e-5)
    assert run_ranks(loop_in_rank, 3, tmp_path / name, True) == pytest.approx([expected] * 3, rel=1e-5)


# ------------------------------------------------------------------------------------------------ what goes wrong


def save_something(folder, meta):
    save_sharded(folder / "a.ckpt", {"state_dict": {"weight": a_shard()}}, meta)


def a_shard(size=6):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return distribute_tensor(torch.arange(float(size * 2)).reshape(size, 2), mesh, [Shard(0)])


def test_rows_that_no_number_of_processes_divides(tmp_path):
    run_ranks(save_rows, 3, tmp_path)
    assert read_sharded(tmp_path / "a")["weight"].tolist() == torch.arange(14.0).reshape(7, 2).tolist()
    assert run_ranks(load_rows, 2, tmp_path) == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13]]


def save_rows(folder):
    save_sharded(folder / "a", {"weight": a_shard(7)}, {})


def load_rows(folder):
    weight = torch.zeros_like(a_shard(7))
    load_sharded(folder / "a", {"weight": weight})
    like = read_sharded(folder / "a", like={"weight": weight})["weight"]
    assert isinstance(like, DTensor)
    assert torch.equal(like.to_local(), weight.to_local())
    return weight.to_local().flatten().tolist()


def failing_on_rank_1(folder):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    save_something(folder, {"number": 1})
    if dist.get_rank() == 1:
        shards.FileSystemWriter = type("Full", (shards.FileSystemWriter,), {"write_data": fail})
    try:
        save_something(folder, {"number": 2})
    except OSError as error:
        return type(error), error.errno, getattr(error, "__notes__", [])
    return None


def test_what_fails_on_one_process_is_raised_on_all(tmp_path):
    first, second = run_ranks(failing_on_rank_1, 2, tmp_path)
    assert first == (OSError, 28, ["This happened on rank 1."])
    assert second == (OSError, 28, [])
    assert os.listdir(tmp_path) == ["a.ckpt"]
    assert read_sharded(tmp_path / "a.ckpt")["number"] == 1


def refused(folder, meta):
    try:
        save_something(folder, meta)
    except Exception as error:
        return type(error).__name__
    return None


def test_what_rank_0_refuses_is_raised_on_all(tmp_path):
    (tmp_path / "a.ckpt").mkdir()
    (tmp_path / "a.ckpt" / "other").touch()
    assert run_ranks(refused, 2, tmp_path, {}) == ["IsADirectoryError"] * 2
    assert os.listdir(tmp_path / "a.ckpt") == ["other"]


def die_while_writing(folder):
    save_something(folder, {"number": 1})
    if dist.get_rank() == 1:
        shards.FileSystemWriter = type(
            "Dying", (shards.FileSystemWriter,), {"write_data": lambda *arguments: os._exit(9)}
        )
    save_something(folder, {"number": 2})


def test_a_process_that_dies_leaves_the_earlier_checkpoint(tmp_path):
    with pytest.raises(RanksFailed):
        run_ranks(die_while_writing, 2, tmp_path)
    assert read_sharded(tmp_path / "a.ckpt")["number"] == 1


# ------------------------------------------------------------------------------------------------ in the background


def save_while_training(folder):
    """Collectives of the training go on while the checkpoint is written."""
    io, weight, held = AsyncCheckpointIO(), a_shard(), threading.Event()

    def write(writer, *arguments):
        assert held.wait(20)
        return original(writer, *arguments)

    original, shards.FileSystemWriter.write_data = shards.FileSystemWriter.write_data, write
    io.save_sharded(folder / "a", {"weight": weight}, {})
    weight.zero_()
    for _ in range(3):
        dist.all_reduce(torch.ones(2))
    assert not is_sharded(folder / "a")
    held.set()
    io.save_sharded(folder / "b", {"weight": weight}, {"bad": (lambda: 0) if dist.get_rank() == 0 else 0})
    assert is_sharded(folder / "a")
    try:
        io.teardown()
    except Exception as error:
        return type(error).__name__
    return None


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path):
    assert run_ranks(save_while_training, 2, tmp_path) == ["CheckpointError"] * 2
    assert os.listdir(tmp_path) == ["a"]
    assert read_sharded(tmp_path / "a")["weight"].sum() == 66


def fit_in_the_background(folder):
    return train("fsdp", dist.get_world_size(), 1, folder, plugins=AsyncCheckpointIO())[1]


def test_a_run_saves_shards_in_the_background(tmp_path):
    paths = run_ranks(fit_in_the_background, 2, tmp_path)
    assert is_sharded(paths[0])
    assert [Path(path).name for path in paths] == ["saved.ckpt"] * 2
    assert os.listdir(tmp_path) == ["saved.ckpt"]


def test_modules_sharded_by_hand(tmp_path):
    run_ranks(save_by_hand, 2, tmp_path)
    model, optimizer = nn.Linear(4, 3), None
    loaded = read_sharded(tmp_path / "a")
    model.load_state_dict(loaded["model"])
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.load_state_dict(loaded["optimizer"])
    assert optimizer.state[model.weight]["exp_avg"].shape == (3, 4)


def save_by_hand(folder):
    model = nn.Linear(4, 3)
    fully_shard(model)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    save_sharded(folder / "a", {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, {})
