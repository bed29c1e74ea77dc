"""Checkpoints of model parallel runs: the file of one device, or directories that any other mesh goes on from."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from fulmen.checkpoint.sharded import is_sharded
from fulmen.strategies import ModelParallelStrategy
from meshes import Classifier, assert_same, fit, weights
from processes import RanksFailed, run_ranks

ADAM = {"optimizer": torch.optim.AdamW}


def save(spread, sizes, path, distributed):
    module = Classifier(spread, **ADAM)
    strategy = ModelParallelStrategy(*sizes, save_distributed_checkpoint=distributed)
    trainer = fit(module, strategy, epochs=1)
    trainer.save_checkpoint(path)
    return weights(module)


def go_on(spread, sizes, path, save_to=None):
    """Train a second epoch from a checkpoint."""
    module = Classifier(spread, seed=5, **ADAM)
    trainer = fit(module, ModelParallelStrategy(*sizes), ckpt_path=path)
    return weights(module), trainer.global_step, module.losses


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """A run on one device: its file after the first epoch, weights and losses at the end."""
    path = tmp_path_factory.mktemp("alone") / "alone.ckpt"
    module = Classifier(**ADAM)
    fit(module, epochs=1).save_checkpoint(path)
    resumed = Classifier(seed=5, **ADAM)
    fit(resumed, ckpt_path=path)
    return path, weights(resumed)


@pytest.mark.parametrize(
    ("spread", "sizes", "ranks"),
    [
        ("tensor", (1, 2), 2),
        ("head", (2, 1), 2),
        pytest.param("sharded", (2, 2), 4, marks=pytest.mark.slow),
    ],
)
def test_a_full_file_equals_that_of_one_device(spread, sizes, ranks, expected, tmp_path):
    run_ranks(save, ranks, spread, sizes, str(tmp_path / "full.ckpt"), False)
    one, full = (torch.load(path, weights_only=True) for path in (expected[0], tmp_path / "full.ckpt"))
    assert list(full) == list(one)
    assert_same(full["state_dict"], one["state_dict"])
    assert all(type(value) is torch.Tensor for value in full["state_dict"].values())
    (theirs,), (ours,) = one["optimizer_states"], full["optimizer_states"]
    assert ours["param_groups"] == theirs["param_groups"]
    assert list(ours["state"]) == list(theirs["state"])
    for number, state in theirs["state"].items():
        assert_same(ours["state"][number], state)
    assert (full["epoch"], full["global_step"]) == (one["epoch"], one["global_step"])


@pytest.mark.parametrize("distributed", [True, False])
@pytest.mark.parametrize(
    ("spread", "sizes", "ranks", "then"),
    [
        ("tensor", (1, 2), 2, [("head", (2, 1), 2), ("tensor", (1, 1), 1)]),
        pytest.param("sharded", (2, 2), 4, [("tensor", (1, 2), 2)], marks=pytest.mark.slow),
        pytest.param("tensor", (1, 2), 2, [("sharded", (2, 2), 4)], marks=pytest.mark.slow),
    ],
)
def test_any_mesh_goes_on_from_a_checkpoint(distributed, spread, sizes, ranks, then, expected, tmp_path):
    path = tmp_path / "saved.ckpt"
    run_ranks(save, ranks, spread, sizes, str(path), distributed)
    assert is_sharded(path) is distributed
    for other, other_sizes, other_ranks in then:
        for result, steps, _ in run_ranks(go_on, other_ranks, other, other_sizes, str(path)):
            assert steps == 8
            assert_same(result, expected[1])


def test_one_device_goes_on_from_a_directory(expected, tmp_path):
    run_ranks(save, 2, "tensor", (1, 2), str(tmp_path / "saved.ckpt"), True)
    module = Classifier(seed=5, **ADAM)
    fit(module, ckpt_path=tmp_path / "saved.ckpt")
    assert_same(weights(module), expected[1])
    loaded = Classifier.load_from_checkpoint(tmp_path / "saved.ckpt")
    assert not any(isinstance(value, DTensor) for value in loaded.state_dict().values())


def test_a_mesh_goes_on_from_the_file_of_one_device(expected):
    for result, steps, _ in run_ranks(go_on, 2, "tensor", (1, 2), str(expected[0])):
        assert steps == 8
        assert_same(result, expected[1])


def save_with_options(path):
    module = Classifier("tensor")
    trainer = fit(module, ModelParallelStrategy(1, 2), epochs=1)
    trainer.save_checkpoint(path, storage_options={"anything": 1})


def test_a_directory_takes_no_storage_options(tmp_path):
    with pytest.raises(RanksFailed, match="takes no `storage_options`"):
        run_ranks(save_with_options, 2, str(tmp_path / "saved.ckpt"))


def what_is_kept():
    module = Classifier("tensor")
    strategy = ModelParallelStrategy(1, 2, save_distributed_checkpoint=False)
    fit(module, strategy, epochs=1)
    return len(strategy.lightning_module_state_dict()), dist.get_rank()


def test_whole_weights_are_on_rank_0_only():
    assert run_ranks(what_is_kept, 2) == [(8, 0), (0, 1)]
