from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

import fulmen
from fulmen.callbacks import ModelCheckpoint, ModelPruning
from fulmen.errors import MisconfigurationException

DATA = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Net(fulmen.LightningModule):
    """50 weights in two layers, 5 biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2, bias=False))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.body(batch).pow(2).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    @property
    def weights(self) -> Tensor:
        return torch.cat([self.body[0].weight.flatten(), self.body[2].weight.flatten()]).detach()


class Validated(Net):
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass


def loader() -> DataLoader[Tensor]:
    return DataLoader(DATA, batch_size=2)


def trainer(path: Path, *callbacks: Any, **arguments: Any) -> fulmen.Trainer:
    chosen: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "default_root_dir": path,
    }
    return fulmen.Trainer(callbacks=list(callbacks), **{**chosen, **arguments})


def pruning(pruning_fn: Any = "l1_unstructured", **arguments: Any) -> ModelPruning:
    return ModelPruning(pruning_fn, **{"parameter_names": ["weight"], **arguments})


def zeros(tensor: Tensor) -> int:
    return int((tensor == 0).sum())


def test_each_epoch_prunes_its_share_of_what_is_left(tmp_path):
    model = Net()
    trainer(tmp_path, pruning(amount=0.4)).fit(model, loader())
    assert zeros(model.weights) == 20 + 12
    assert set(model.state_dict()) == set(Net().state_dict())
    assert zeros(model.body[0].bias) == 0


@pytest.mark.parametrize(
    ("arguments", "first", "second"),
    [
        ({"use_global_unstructured": False, "amount": 0.5}, 20, 5),
        ({"use_global_unstructured": False, "amount": 3}, 3, 3),
        (
            {"pruning_fn": "ln_structured", "pruning_dim": 0, "pruning_norm": 1, "use_global_unstructured": False},
            2 * 8,
            1 * 5,
        ),
        ({"pruning_fn": "random_structured", "pruning_dim": 1, "use_global_unstructured": False}, 4 * 5, 2 * 2),
        ({"pruning_fn": "random_unstructured", "use_global_unstructured": False}, 20, 5),
    ],
)
def test_each_parameter_on_its_own(tmp_path, arguments, first, second):
    model = Net()
    trainer(tmp_path, pruning(**arguments), max_epochs=1).fit(model, loader())
    assert (zeros(model.body[0].weight), zeros(model.body[2].weight)) == (first, second)


def test_the_smallest_weights_of_all_layers_are_pruned(tmp_path):
    plain, model = Net(), Net()
    trainer(tmp_path, max_epochs=1).fit(plain, loader())
    trainer(tmp_path, pruning(amount=10, use_lottery_ticket_hypothesis=False), max_epochs=1).fit(model, loader())
    smallest = plain.weights.abs().argsort()[:10]
    assert sorted(smallest.tolist()) == (model.weights == 0).nonzero().flatten().tolist()


def test_a_method_of_torch_as_a_class(tmp_path):
    model = Net()
    trainer(tmp_path, pruning(prune.RandomUnstructured, amount=7), max_epochs=1).fit(model, loader())
    assert zeros(model.weights) == 7


def test_chosen_parameters(tmp_path):
    model = Net()
    chosen = [(model.body[0], "bias"), (model.body[2], "weight")]
    trainer(tmp_path, ModelPruning("l1_unstructured", chosen, amount=0.2), max_epochs=1).fit(model, loader())
    assert zeros(model.body[0].weight) == 0
    assert zeros(model.body[0].bias) + zeros(model.body[2].weight) == 3


def test_filtered_parameters(tmp_path):
    class Last(ModelPruning):
        def filter_parameters_to_prune(self, parameters_to_prune=()):
            return parameters_to_prune[-1:]

    model = Net()
    trainer(tmp_path, Last("l1_unstructured", amount=0.2), max_epochs=1).fit(model, loader())
    assert (zeros(model.weights), zeros(model.body[2].weight)) == (2, 2)


def test_functions_of_the_epoch(tmp_path):
    model = Net()
    callback = pruning(amount=lambda epoch: 10 + epoch, apply_pruning=lambda epoch: epoch != 1)
    trainer(tmp_path, callback, max_epochs=3).fit(model, loader())
    assert zeros(model.weights) == 10 + 12


def test_what_is_left_goes_back_to_its_first_values(tmp_path):
    first, model = Net(), Net()
    trainer(tmp_path, pruning(amount=0.4)).fit(model, loader())
    left = model.weights != 0
    assert torch.equal(model.weights[left], first.weights[left])
    assert not torch.equal(model.body[0].bias, first.body[0].bias)


def test_what_is_left_gets_new_values(tmp_path):
    first, model = Net(), Net()
    trainer(tmp_path, pruning(amount=0.4, resample_parameters=True), max_epochs=1).fit(model, loader())
    left = model.weights != 0
    assert not torch.isin(model.weights[left], first.weights).any()


def test_what_is_left_keeps_its_values(tmp_path):
    plain, model = Net(), Net()
    trainer(tmp_path, max_epochs=1).fit(plain, loader())
    callback = pruning(amount=0.4, use_lottery_ticket_hypothesis=lambda epoch: False)
    trainer(tmp_path, callback, max_epochs=1).fit(model, loader())
    left = model.weights != 0
    assert torch.equal(model.weights[left], plain.weights[left])


def test_pruned_weights_stay_zero_while_training_goes_on(tmp_path):
    model = Net()
    callback = pruning(apply_pruning=lambda epoch: epoch == 0, use_lottery_ticket_hypothesis=False)
    trainer(tmp_path, callback, max_epochs=4).fit(model, loader())
    assert zeros(model.weights) == 25


def test_pruning_after_validations(tmp_path):
    model = Validated()
    run = trainer(tmp_path, pruning(amount=5, prune_on_train_epoch_end=False), val_check_interval=1)
    run.fit(model, loader(), loader())
    assert zeros(model.weights) == 4 * 5
    run.validate(model, loader(), verbose=False)
    assert zeros(model.weights) == 4 * 5


@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoints_have_no_masks(tmp_path, weights_only):
    saves = ModelCheckpoint(dirpath=tmp_path / "saved", save_top_k=-1, save_weights_only=weights_only)
    trainer(tmp_path, pruning(amount=0.4), saves).fit(Net(), loader())
    saved = torch.load(tmp_path / "saved" / "epoch=0-step=2.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == set(Net().state_dict())
    model = Net()
    model.load_state_dict(saved["state_dict"])
    assert zeros(model.weights) == 20


@pytest.mark.parametrize("lottery", [True, False])
@pytest.mark.parametrize("permanent", [True, False])
def test_a_resumed_run_is_exact(tmp_path, permanent, lottery):
    def run(epochs):
        callback = pruning(
            amount=0.4,
            make_pruning_permanent=permanent,
            use_lottery_ticket_hypothesis=lottery,
            apply_pruning=lambda epoch: epoch != 1,
        )
        return trainer(tmp_path, callback, max_epochs=epochs)

    class Saves(Net):
        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 0:
                self.trainer.save_checkpoint(tmp_path / "first.ckpt")

    whole, resumed = Saves(), Net()
    run(3).fit(whole, loader())
    nn.init.normal_(resumed.body[0].weight)
    run(3).fit(resumed, loader(), ckpt_path=tmp_path / "first.ckpt")
    assert zeros(whole.weights) == 32
    assert torch.equal(whole.weights, resumed.weights)


def test_masks_may_stay(tmp_path):
    model = Net()
    trainer(tmp_path, pruning(amount=0.4, make_pruning_permanent=False)).fit(model, loader())
    assert zeros(model.body[0].weight_mask) + zeros(model.body[2].weight_mask) == 32
    ModelPruning("l1_unstructured").make_pruning_permanent(model)
    assert set(model.state_dict()) == set(Net().state_dict())
    assert zeros(model.weights) == 32


def test_a_state_with_masks_is_loaded_into_a_plain_module(tmp_path):
    callback, model = pruning(amount=0.4, make_pruning_permanent=False), Net()
    run = trainer(tmp_path, callback)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "masked.ckpt")
    assert "body.0.weight_mask" in torch.load(tmp_path / "masked.ckpt", weights_only=True)["state_dict"]
    plain = Validated()
    again = trainer(tmp_path, callback)
    again.validate(plain, loader(), ckpt_path=tmp_path / "masked.ckpt", verbose=False)
    assert torch.equal(plain.weights, model.weights)
    assert not plain._load_state_dict_pre_hooks


def test_what_was_pruned_is_reported(tmp_path, caplog):
    caplog.set_level("INFO", logger="fulmen")
    trainer(tmp_path, pruning(amount=0.4, verbose=2, use_global_unstructured=False), max_epochs=1).fit(Net(), loader())
    lines = [line.strip() for line in caplog.messages if "zero" in line]
    assert lines == [
        "Pruned by 0.4: 20/50 (40.00%) are zero.",
        "body.0.weight: 16/40 (40.00%) are zero.",
        "body.2.weight: 4/10 (40.00%) are zero.",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pruning_fn": "l3_unstructured"}, "pruning_fn='l3_unstructured'.*'l1_unstructured'"),
        ({"pruning_fn": nn.Linear}, "pruning_fn"),
        ({"pruning_fn": "random_structured"}, "pruning_dim=None"),
        ({"pruning_fn": "ln_structured", "pruning_dim": 0}, "pruning_norm=None"),
        ({"pruning_fn": "random_structured", "pruning_dim": 0}, "use_global_unstructured=True.*RandomStructured"),
        ({"pruning_fn": prune.LnStructured}, "use_global_unstructured=True.*LnStructured"),
        ({"pruning_fn": prune.L1Unstructured, "use_global_unstructured": False}, "use_global_unstructured=True"),
        ({"amount": "much"}, "amount='much'"),
        ({"verbose": 3}, "verbose=3"),
    ],
    ids=str,
)
def test_arguments_that_cannot_work(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        ModelPruning(**{"pruning_fn": "l1_unstructured", **arguments})


def test_parameters_that_cannot_be_pruned():
    model, stranger = Net(), nn.Linear(2, 2)
    for given in ("weight", ["weight"], [(model.body[0],)], [(stranger, "weight")], [(model.body[2], "bias")]):
        with pytest.raises(MisconfigurationException, match="parameters_to_prune"):
            ModelPruning.sanitize_parameters_to_prune(model, given)
    with pytest.raises(MisconfigurationException, match="'gamma'"):
        ModelPruning.sanitize_parameters_to_prune(model, parameter_names=["gamma"])


def test_resampling_needs_layers_that_can(tmp_path):
    class Odd(Net):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

    with pytest.raises(MisconfigurationException, match="Odd has no `reset_parameters"):
        trainer(tmp_path, pruning(resample_parameters=True)).fit(Odd(), loader())
