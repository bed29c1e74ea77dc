"""Checkpoints of sharded runs: as those of one process, from and into any number of processes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fulmen.callbacks import EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from fulmen.checkpoint.sharded import is_sharded
from fulmen.checkpoint.store import TorchCheckpointIO
from fulmen.fabric.strategies.sharding import gather
from fulmen.strategies import FSDPStrategy
from processes import RanksFailed, run_ranks
from sharded_runs import Blocks, Evaluated, data, difference, fit_alone, share, trainer_for

SLOW = [("full", "mean"), ("sharded", "none"), ("sharded", "mean")]
AVERAGES = {
    "none": list,
    "ema": lambda: [EMAWeightAveraging(decay=0.5)],
    "mean": lambda: [WeightAveraging(device="cpu")],
}


def read(path):
    checkpoint = TorchCheckpointIO().load_checkpoint(path, weights_only=False)
    checkpoint.pop("fulmen")  # random states and places in data differ
    return checkpoint


def save_and_go_on(directory, kind, average):
    """A fit of one epoch, saved; and one of a second epoch from each of several checkpoints."""
    settings = {"strategy": FSDPStrategy(state_dict_type=kind), "callbacks": AVERAGES[average]()}
    trainer = trainer_for(**settings)
    trainer.fit(Evaluated(), share(data()), share(data(8)))
    trainer.save_checkpoint(f"{directory}/saved")
    results = []
    for name in ("saved", "alone.ckpt"):
        settings = {"strategy": FSDPStrategy(state_dict_type=kind), "callbacks": AVERAGES[average]()}
        trainer = trainer_for(max_epochs=2, **settings)
        module = Evaluated()
        trainer.fit(module, share(data()), share(data(8)), ckpt_path=f"{directory}/{name}")
        results.append(gather(dict(module.state_dict()), keep=True))
    return results


@pytest.mark.parametrize(
    ("kind", "average"),
    [
        ("full", "none"),
        ("full", "ema"),
        ("sharded", "ema"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW),
    ],
)
def test_checkpoints_are_those_of_one_process(tmp_path, kind, average):
    one = fit_alone(Evaluated, callbacks=AVERAGES[average]())
    one.save_checkpoint(tmp_path / "alone.ckpt")
    two = fit_alone(Evaluated, max_epochs=2, callbacks=AVERAGES[average]())
    expected = dict(two.lightning_module.state_dict())

    resumed = run_ranks(save_and_go_on, 2, str(tmp_path), kind, average)[0]
    assert is_sharded(tmp_path / "saved") == (kind == "sharded")
    saved, alone = read(tmp_path / "saved"), read(tmp_path / "alone.ckpt")
    if kind == "full":
        assert list(saved) == list(alone)
    assert difference(alone, saved) < 1e-5
    for found in resumed:
        assert difference(expected, found) < 1e-5


def test_one_process_goes_on_from_shards(tmp_path):
    run_ranks(save_only, 2, str(tmp_path / "shards"))
    expected = dict(fit_alone(max_epochs=2).lightning_module.state_dict())
    found = fit_alone(max_epochs=2, ckpt_path=tmp_path / "shards").lightning_module.state_dict()
    assert difference(expected, dict(found)) < 1e-5


def save_only(path):
    trainer = trainer_for(FSDPStrategy(state_dict_type="sharded"))
    trainer.fit(Blocks(), share(data()))
    trainer.save_checkpoint(path)


def fit_with_checkpoints(directory, kind):
    callback = ModelCheckpoint(directory, filename="{epoch}", monitor="val_loss", save_top_k=1, save_last=True)
    trainer = trainer_for(
        FSDPStrategy(state_dict_type=kind), max_epochs=3, callbacks=callback, enable_checkpointing=True
    )
    module = Evaluated()
    trainer.fit(module, share(data()), share(data(8)))
    results = trainer.test(module, share(data(8)), ckpt_path="best", verbose=False)
    return str(callback.best_model_path), callback.best_model_score.item(), results


@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_the_checkpoint_callback(tmp_path, kind):
    (best, score, results), other = run_ranks(fit_with_checkpoints, 2, str(tmp_path), kind)
    assert other == (best, score, results)
    assert results == [{"test_loss": pytest.approx(score)}]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([Path(best).name, "last.ckpt"])
    assert is_sharded(best) == (kind == "sharded")


def states_on_ranks():
    trainer = trainer_for()
    module = Blocks()
    trainer.fit(module, share(data()))
    state = trainer.strategy.lightning_module_state_dict()
    optimizer = trainer.strategy.optimizer_state(trainer.optimizers[0])
    kinds = {type(value).__name__ for value in state.values()}
    return len(state), kinds, len(optimizer.get("state", ())), list(optimizer)


def test_only_rank_0_has_the_whole_state():
    first, second = run_ranks(states_on_ranks, 2)
    assert first == (12, {"Tensor"}, 12, ["state", "param_groups"])
    assert second == (0, set(), 0, [])


def load_wrongly(path):
    strategy = FSDPStrategy()
    trainer = trainer_for(strategy, max_steps=1)
    module = Blocks()
    trainer.fit(module, share(data()))
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*last.bias"):
        strategy.load_module_state_dict(module, {"last.weight": torch.zeros(1, 4)})
    with pytest.raises(RuntimeError, match=r"size mismatch for last\.weight"):
        strategy.load_module_state_dict(module, {"last.weight": torch.zeros(1, 5)}, strict=False)
    strategy.load_module_state_dict(module, {"last.weight": torch.full((1, 4), 3.0)}, strict=False)
    sharded = FSDPStrategy(state_dict_type="sharded")
    with pytest.raises(TypeError, match="A sharded checkpoint takes no `storage_options`"):
        sharded.save_checkpoint({}, path, storage_options={"a": 1})
    return gather(module.last.weight.detach(), keep=True)


def test_loading_and_saving_wrongly(tmp_path):
    assert run_ranks(load_wrongly, 2, str(tmp_path))[1].eq(3.0).all()


def save_over_a_directory(path):
    trainer = trainer_for(FSDPStrategy(state_dict_type="sharded"), max_steps=1)
    trainer.fit(Blocks(), share(data()))
    trainer.save_checkpoint(path)


def test_a_directory_with_other_things_is_not_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RanksFailed, match="IsADirectoryError"):
        run_ranks(save_over_a_directory, 1, str(tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "mine"


class Ignoring(Blocks):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.02)


def fit_with_a_part_ignored(path):
    module = Ignoring()
    for parameter in module.last.parameters():
        parameter.requires_grad_(False)
    trainer = trainer_for(FSDPStrategy(ignored_modules=[module.last]), gradient_clip_val=0.5)
    trainer.fit(module, share(data()))
    assert type(module.last.weight) is nn.Parameter
    trainer.save_checkpoint(path)
    dist.barrier()
    return list(torch.load(path)["state_dict"]), type(torch.load(path)["state_dict"]["last.weight"]).__name__


def test_ignored_modules_stay_whole(tmp_path):
    names, kind = run_ranks(fit_with_a_part_ignored, 2, str(tmp_path / "a.ckpt"))[0]
    assert names == list(Blocks().state_dict())
    assert kind == "Tensor"
