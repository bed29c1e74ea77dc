from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.callbacks import BackboneFinetuning, BaseFinetuning
from fulmen.callbacks.finetuning import multiplicative
from fulmen.errors import MisconfigurationException
from fulmen.strategies import SingleDeviceStrategy

LINEAR, NORM, HEAD = [False, False], [True, True], [True, True]


class Net(fulmen.LightningModule):
    """A backbone of a linear layer and a batch norm, and a head."""

    takes_all = False

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.head = nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.head(self.backbone(batch[0])).sigmoid().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.parameters() if p.requires_grad or self.takes_all]
        return torch.optim.SGD(parameters, lr=1.0, momentum=0.5)


class Looks(fulmen.Callback):
    """Notes, at the start of each epoch, the groups of the optimizer, and what has gradients."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.trained: list[list[bool]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        self.rates.append([round(group["lr"], 6) for group in groups])
        self.trained.append([parameter.requires_grad for parameter in pl_module.parameters()])


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(12.0).view(6, 2) / 10), batch_size=2)


@pytest.fixture
def trainer_of(tmp_path: Path) -> Callable[..., fulmen.Trainer]:
    def make(*callbacks: Any, **arguments: Any) -> fulmen.Trainer:
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        chosen = {"accelerator": "cpu", "default_root_dir": tmp_path, "limit_val_batches": 0}
        return fulmen.Trainer(callbacks=list(callbacks), **{**dict.fromkeys(off, False), **chosen, **arguments})

    return make


@pytest.fixture
def run(trainer_of: Any) -> Callable[..., Looks]:
    """Fits with a callback, and says what was seen."""

    def fit(callback: Any, epochs: int = 5, module: Any = None, **arguments: Any) -> Looks:
        ckpt_path = arguments.pop("ckpt_path", None)
        looks = Looks()
        trainer_of(callback, looks, max_epochs=epochs, **arguments).fit(
            module or Net(), loader(), loader(), ckpt_path=ckpt_path
        )
        return looks

    return fit


# ---------------------------------------------------------------------------------------------------- the backbone


def test_the_backbone_is_trained_later(run: Any) -> None:
    looks = run(BackboneFinetuning(unfreeze_backbone_at_epoch=2))
    assert looks.rates == [[1.0], [1.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.4]]
    assert looks.trained == [LINEAR + NORM + HEAD] * 2 + [[True] * 6] * 3


@pytest.mark.parametrize(
    ("arguments", "rates"),
    [
        ({"unfreeze_backbone_at_epoch": 0}, [0.1, 0.2, 0.4, 0.8, 1.0]),
        ({"unfreeze_backbone_at_epoch": 0, "should_align": False}, [0.1, 0.2, 0.4, 0.8, 1.6]),
        ({"unfreeze_backbone_at_epoch": 0, "backbone_initial_ratio_lr": 0.5}, [0.5, 1.0, 1.0, 1.0, 1.0]),
        ({"unfreeze_backbone_at_epoch": 0, "backbone_initial_lr": 0.0}, [0.0] * 5),
        (
            {"backbone_initial_lr": 0.3, "should_align": False, "lambda_func": lambda epoch: epoch},
            [None, 0.3, 0.9, 3.6, 18.0],
        ),
    ],
    ids=["grows", "not aligned", "ratio", "rate", "function"],
)
def test_the_rates_of_the_backbone(run: Any, arguments: Any, rates: list[float | None]) -> None:
    looks = run(BackboneFinetuning(**{"unfreeze_backbone_at_epoch": 1, **arguments}))
    assert looks.rates == [[1.0] if rate is None else [1.0, rate] for rate in rates]


def test_the_default_doubles() -> None:
    assert [multiplicative(epoch) for epoch in (0, 7)] == [2.0, 2.0]
    assert BackboneFinetuning().lambda_func is multiplicative


def test_it_can_report_the_rates(run: Any, info: Any) -> None:
    run(BackboneFinetuning(1, lambda_func=lambda epoch: 1.23456, verbose=True, rounding=3), epochs=3)
    lines = [line for line in info() if "lr:" in line]
    assert lines == ["Current lr: 1.0, Backbone lr: 0.1", "Current lr: 1.0, Backbone lr: 0.123"]


def test_an_optimizer_that_has_everything_keeps_its_rate(run: Any) -> None:
    class Takes(Net):
        takes_all = True

    with pytest.warns(UserWarning, match=r"2 of the parameters .* SGD are in one of its groups already"):
        looks = run(BackboneFinetuning(1), epochs=3, module=Takes())
    assert looks.rates == [[1.0]] * 3
    assert looks.trained[1:] == [[True] * 6] * 2


def test_the_norms_can_be_left_out_when_the_rest_is_added(run: Any) -> None:
    class Frozen(BackboneFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.backbone, train_bn=False)

    module = Net()
    run(Frozen(1, train_bn=False), epochs=2, module=module)
    assert [len(group["params"]) for group in module.optimizers().param_groups] == [2, 2]


def test_there_must_be_a_backbone(run: Any) -> None:
    module = Net()
    module.trunk = module.backbone
    del module.backbone
    module.backbone = None
    with pytest.raises(MisconfigurationException, match=r"`Net` has no such module.*self\.backbone = "):
        run(BackboneFinetuning(), module=module)


def test_other_runs_freeze_nothing(trainer_of: Any) -> None:
    module = Net()
    trainer_of(BackboneFinetuning(), limit_val_batches=1).validate(module, loader(), verbose=False)
    assert all(parameter.requires_grad for parameter in module.parameters())


# ---------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("takes_all", [False, True])
@pytest.mark.filterwarnings("ignore:.*in one of its groups already")
def test_a_resumed_run_is_the_run_that_was_not_interrupted(run: Any, tmp_path: Path, takes_all: bool) -> None:
    class Chosen(Net):
        pass

    Chosen.takes_all = takes_all

    class Saves(fulmen.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}-{batch_idx}.ckpt")

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}-end.ckpt")

    torch.manual_seed(3)
    whole = Chosen()
    looks = Looks()
    trainer = fulmen.Trainer(
        accelerator="cpu", callbacks=[BackboneFinetuning(1), looks, Saves()], max_epochs=4, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(whole, loader(), loader())
    for path in sorted(tmp_path.glob("*.ckpt")):
        resumed = Chosen()
        again = run(BackboneFinetuning(1), 4, resumed, ckpt_path=path)
        left = len(again.rates)
        assert again.rates == looks.rates[len(looks.rates) - left :], path.name
        assert again.trained == looks.trained[len(looks.trained) - left :], path.name
        assert [p.requires_grad for p in resumed.parameters()] == [True] * 6
        assert all(map(torch.equal, resumed.state_dict().values(), whole.state_dict().values())), path.name


def test_a_file_of_lightning_has_the_groups_but_not_what_is_frozen(run: Any, tmp_path: Path, trainer_of: Any) -> None:
    trainer = trainer_of(BackboneFinetuning(1), max_epochs=3)
    trainer.fit(Net(), loader(), loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt")
    assert set(checkpoint["callbacks"]) == {"BackboneFinetuning"}
    state = checkpoint["callbacks"]["BackboneFinetuning"]
    groups = state["internal_optimizer_metadata"][0]
    assert [group["params"] for group in groups] == [
        ["backbone.1.weight", "backbone.1.bias", "head.weight", "head.bias"], ["backbone.0.weight", "backbone.0.bias"],
    ]  # fmt: skip
    assert [group["lr"] for group in groups] == [1.0, 0.1]
    assert state["previous_backbone_lr"] == 0.2
    del state["frozen"]
    torch.save(checkpoint, tmp_path / "a.ckpt")
    assert run(BackboneFinetuning(1), ckpt_path=tmp_path / "a.ckpt").rates == [[1.0, 0.4], [1.0, 0.8]]


def test_a_further_fit_goes_on(trainer_of: Any) -> None:
    looks = Looks()
    trainer = trainer_of(BackboneFinetuning(1), looks, max_epochs=2)
    module = Net()
    trainer.fit(module, loader(), loader())
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, loader(), loader())
    assert looks.rates == [[1.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.4]]
    assert looks.trained[1:] == [[True] * 6] * 3


def test_a_fit_of_another_trainer_begins_anew(run: Any) -> None:
    callback = BackboneFinetuning(1)
    assert run(callback, 3).rates == run(callback, 3).rates == [[1.0], [1.0, 0.1], [1.0, 0.2]]


# ---------------------------------------------------------------------------------------------------- the base class


def test_when_the_two_methods_are_called(run: Any) -> None:
    called: list[Any] = []

    class Watches(BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            called.append(("freeze", pl_module.trainer.optimizers))
            self.freeze(pl_module.backbone)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            called.append((epoch, type(optimizer).__name__))
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.backbone[0], optimizer)

    looks = run(Watches(), epochs=2)
    assert called == [("freeze", []), (0, "SGD"), (1, "SGD")]
    assert looks.rates == [[1.0], [1.0, 0.1]]


@pytest.mark.parametrize("missing", ["freeze_before_training", "finetune_function"])
def test_both_methods_must_be_there(run: Any, missing: str) -> None:
    class Half(BaseFinetuning):
        pass

    for name in {"freeze_before_training", "finetune_function"} - {missing}:
        setattr(Half, name, lambda *args: None)
    with pytest.raises(NotImplementedError, match=f"`Half` needs `{missing}`"):
        run(Half())


def test_not_with_deepspeed(run: Any) -> None:
    class DeepSpeedStrategy(SingleDeviceStrategy):
        pass

    with pytest.raises(NotImplementedError, match="DeepSpeed does not allow"):
        run(BackboneFinetuning(), accelerator="auto", strategy=DeepSpeedStrategy("cpu"))


class Scaled(nn.Module):
    """Has a parameter of its own, and a part."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.part = nn.Linear(1, 1)


def parts() -> nn.ModuleDict:
    deep = nn.ModuleList([nn.Conv1d(1, 1, 1)])
    return nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), deep)})


def trained(module: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in module.parameters()]


def test_modules_are_taken_apart() -> None:
    flatten = BaseFinetuning.flatten_modules
    module = parts()
    leaves = [module["a"], module["b"][0], module["b"][1], module["b"][2][0]]
    for spelling in (module, [module["a"], [module["b"]]], (part for part in module.values()), module.values()):
        assert flatten(spelling) == leaves
    scaled = Scaled()
    assert flatten(nn.Sequential(scaled)) == [scaled, scaled.part]
    for wrong in ({"a": scaled}, "a", 3, [None]):
        with pytest.raises(TypeError, match="Expected a module"):
            flatten(wrong)  # type: ignore[arg-type]


def test_freezing_and_back() -> None:
    module = parts()
    norm = module["b"][1]
    BaseFinetuning.freeze(module)
    assert trained(module) == [False, False, False, False, True, True, False, False]
    assert norm.track_running_stats
    BaseFinetuning.freeze(module, train_bn=False)
    assert not any(trained(module))
    assert not norm.track_running_stats
    BaseFinetuning.freeze([module])
    assert trained(norm) == [True, True]
    BaseFinetuning.make_trainable(module)
    assert all(trained(module))
    assert norm.track_running_stats


def test_one_module_without_its_parts() -> None:
    scaled = Scaled()
    BaseFinetuning.freeze_module(scaled)
    assert trained(scaled) == [False, True, True]


def test_parameters_by_what_they_are() -> None:
    module, chosen = parts(), BaseFinetuning.filter_params
    BaseFinetuning.freeze(module["a"])
    norm = list(module["b"][1].parameters())
    assert list(chosen(module, requires_grad=False)) == list(module["a"].parameters())
    assert set(chosen(module)) == set(module["b"].parameters())
    assert set(chosen(module, train_bn=False)) == set(module["b"].parameters()) - set(norm)


def test_a_group_for_what_is_unfrozen() -> None:
    first, second, third = nn.Linear(1, 1), parts(), parts()
    optimizer = torch.optim.SGD(first.parameters(), lr=1.0)
    add = BaseFinetuning.unfreeze_and_add_param_group
    BaseFinetuning.freeze([second, third], train_bn=False)
    add(second, optimizer)
    add([third], optimizer, lr=0.5, initial_denom_lr=2, train_bn=False)
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [(1.0, 2), (0.1, 8), (0.5, 6)]
    assert all(trained(third))
    add(second, optimizer)
    BaseFinetuning.freeze(second)
    with pytest.warns(UserWarning, match="6 of the parameters"):
        add(second, optimizer)
    assert len(optimizer.param_groups) == 3


def test_what_an_optimizer_does_not_have() -> None:
    there, new = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(there.parameters(), lr=1.0)
    assert BaseFinetuning.filter_on_optimizer(optimizer, new.parameters()) == list(new.parameters())
    with pytest.warns(UserWarning, match=r"2 of the parameters .*configure_optimizers"):
        found = BaseFinetuning.filter_on_optimizer(optimizer, [*there.parameters(), *new.parameters()])
    assert [id(parameter) for parameter in found] == [id(parameter) for parameter in new.parameters()]
