from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

import fulmen
from fulmen.errors import MisconfigurationException
from fulmen.optim import LightningOptimizer, LRSchedulerConfig, needs_closure, read, scheduler_config

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
DATA = torch.ones(2, 1, 2)


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(1))


OPT, OTHER = SGD([parameter()], lr=0.1), AdamW([parameter()], lr=0.1)
STEP, PLATEAU = StepLR(OPT, 1), ReduceLROnPlateau(OPT)
CONFIG = {"scheduler": STEP, "interval": "step"}


class Net(fulmen.LightningModule):
    """Configures what it is told to: a function of the module."""

    def __init__(self, configure: Any = None, automatic: bool = True) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.automatic_optimization = automatic
        self.configure = configure or (lambda module: SGD(module.parameters(), lr=0.1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).pow(2).mean()

    def configure_optimizers(self) -> Any:
        return self.configure(self)


def fit(module: Net, path: Path, **arguments: Any) -> fulmen.Trainer:
    trainer = fulmen.Trainer(default_root_dir=path, **{**QUIET, **arguments})
    trainer.fit(module, torch.utils.data.DataLoader(DATA, batch_size=None))  # type: ignore[arg-type]
    return trainer


# ---------------------------------------------------------------------------------------------------- returns


@pytest.mark.parametrize(
    ("returned", "optimizers", "schedulers", "monitor"),
    [
        (OPT, [OPT], [], None),
        ([OPT], [OPT], [], None),
        ((OPT, OTHER), [OPT, OTHER], [], None),
        (([OPT], [STEP]), [OPT], [STEP], None),
        ([[OPT], [STEP]], [OPT], [STEP], None),
        (([OPT], STEP), [OPT], [STEP], None),
        (([OPT], CONFIG), [OPT], [CONFIG], None),
        (([OPT, OTHER], [CONFIG, STEP]), [OPT, OTHER], [CONFIG, STEP], None),
        (([OPT], []), [OPT], [], None),
        ({"optimizer": OPT}, [OPT], [], None),
        ({"optimizer": OPT, "lr_scheduler": STEP}, [OPT], [STEP], None),
        ({"optimizer": OPT, "lr_scheduler": CONFIG}, [OPT], [CONFIG], None),
        ({"optimizer": OPT, "lr_scheduler": None}, [OPT], [], None),
        ({"optimizer": OPT, "lr_scheduler": [STEP, CONFIG]}, [OPT], [STEP, CONFIG], None),
        ({"optimizer": OPT, "lr_scheduler": PLATEAU, "monitor": "loss"}, [OPT], [PLATEAU], "loss"),
        ([{"optimizer": OPT, "lr_scheduler": STEP}, {"optimizer": OTHER}], [OPT, OTHER], [STEP], None),
        (({"optimizer": OPT, "monitor": "ignored"},), [OPT], [], None),
        ([], [], [], None),
    ],
)
def test_what_configure_optimizers_may_return(
    returned: Any, optimizers: list[Any], schedulers: list[Any], monitor: str | None
) -> None:
    assert read(returned) == (optimizers, schedulers, monitor)


@pytest.mark.parametrize(
    ("returned", "shape"),
    [
        ((OPT, STEP), r"\(SGD, StepLR\)"),
        (([OPT], [STEP], 3), r"\(list, list, int\)"),
        ([OPT, {"optimizer": OTHER}], r"\[SGD, dict\]"),
        (3, "int"),
        ("adam", "str"),
        (SGD, "type"),
    ],
)
def test_what_it_may_not_return(returned: Any, shape: str) -> None:
    with pytest.raises(MisconfigurationException, match=rf"returned {shape}\. Return one of"):
        read(returned)


def test_a_dictionary_needs_an_optimizer() -> None:
    with pytest.raises(KeyError, match="returned a dictionary without"):
        read({"lr_scheduler": STEP})


def test_unknown_keys_of_a_dictionary_are_ignored() -> None:
    with pytest.warns(RuntimeWarning, match=r"unknown keys \['lr_schedulers'\]"):
        assert read({"optimizer": OPT, "lr_schedulers": STEP}) == ([OPT], [], None)


class Shaped:
    """Not an optimizer of torch's, but one by its shape."""

    param_groups: list[Any] = []  # noqa: RUF012
    defaults: dict[str, Any] = {}  # noqa: RUF012
    state: dict[str, Any] = {}  # noqa: RUF012

    def step(self, closure: Any = None) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def test_an_optimizer_is_known_by_its_shape() -> None:
    shaped = Shaped()
    assert read(shaped) == ([shaped], [], None)


# ---------------------------------------------------------------------------------------------------- schedulers


@pytest.mark.parametrize(
    ("entry", "monitor", "config"),
    [
        (STEP, None, LRSchedulerConfig(STEP)),
        (STEP, "loss", LRSchedulerConfig(STEP)),
        (PLATEAU, "loss", LRSchedulerConfig(PLATEAU, reduce_on_plateau=True, monitor="loss")),
        (CONFIG, None, LRSchedulerConfig(STEP, interval="step")),
        (
            {"scheduler": PLATEAU, "monitor": "a", "strict": False, "name": "n", "frequency": 3},
            "b",
            LRSchedulerConfig(PLATEAU, "n", "epoch", 3, True, "a", False),
        ),
        (
            {"scheduler": STEP, "reduce_on_plateau": True, "monitor": "a"},
            None,
            LRSchedulerConfig(STEP, None, "epoch", 1, True, "a"),
        ),
    ],
)
def test_scheduler_config(entry: Any, monitor: str | None, config: LRSchedulerConfig) -> None:
    assert scheduler_config(entry, monitor, automatic=True) == config


def test_defaults_of_the_config() -> None:
    config = LRSchedulerConfig(STEP)
    assert (config.name, config.interval, config.frequency) == (None, "epoch", 1)
    assert (config.reduce_on_plateau, config.monitor, config.strict) == (False, None, True)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"interval": "step"}, 'must have the key "scheduler"'),
        ({"scheduler": None}, 'must have the key "scheduler"'),
        ({"scheduler": STEP, "interval": "batch"}, '\'batch\'; expected "epoch" or "step"'),
        ({"scheduler": STEP, "frequency": 0}, "0; expected a whole number"),
        ({"scheduler": STEP, "frequency": 1.5}, "1.5; expected a whole number"),
        ({"scheduler": PLATEAU}, 'add "monitor"'),
        (PLATEAU, "needs a metric to monitor"),
    ],
)
def test_what_a_config_may_not_be(entry: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        scheduler_config(entry, None, automatic=True)


def test_keys_of_a_config_that_are_not_used() -> None:
    with pytest.warns(RuntimeWarning, match=r"not used: \['intervall'\]"):
        assert scheduler_config({"scheduler": STEP, "intervall": "step"}, None, True) == LRSchedulerConfig(STEP)
    with pytest.warns(RuntimeWarning, match=r"in manual optimisation: \['monitor', 'strict'\]"):
        config = scheduler_config({"scheduler": PLATEAU, "monitor": "a", "strict": True}, None, automatic=False)
    assert config == LRSchedulerConfig(PLATEAU, reduce_on_plateau=True)


def test_one_cycle_by_epoch_is_probably_a_mistake() -> None:
    scheduler = OneCycleLR(SGD([parameter()], lr=0.1), max_lr=0.1, total_steps=10)
    with pytest.warns(RuntimeWarning, match="OneCycleLR.*steps by epoch"):
        scheduler_config({"scheduler": scheduler}, None, True)
    scheduler_config({"scheduler": scheduler, "interval": "step"}, None, True)
    scheduler_config({"scheduler": scheduler}, None, automatic=False)


# ---------------------------------------------------------------------------------------------------- in a run


def test_no_optimizer_runs_the_rest(tmp_path: Path) -> None:
    module = Net(lambda module: None)
    before = module.layer.weight.detach().clone()
    with pytest.warns(UserWarning, match="returned None: this fit runs with no optimizer"):
        trainer = fit(module, tmp_path)
    assert torch.equal(before, module.layer.weight)
    assert module.layer.weight.grad is not None
    assert trainer.global_step == 2


@pytest.mark.parametrize(
    ("configure", "error", "message"),
    [
        (lambda module: [], MisconfigurationException, "no optimizer in it"),
        (lambda module: [SGD(module.parameters(), lr=0.1)] * 2, RuntimeError, "Automatic optimisation takes one"),
        (
            lambda module: ([SGD(module.parameters(), lr=0.1)], [StepLR(OPT, 1)]),
            MisconfigurationException,
            "StepLR whose optimizer it did not return",
        ),
        (lambda module: ([SGD(module.parameters(), lr=0.1)], [object()]), TypeError, "a scheduler must have"),
        (lambda module: ([SGD(module.parameters(), lr=0.1)], None), TypeError, "NoneType as a scheduler"),
    ],
)
def test_what_fit_refuses(tmp_path: Path, configure: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(Net(configure), tmp_path)


def test_one_or_several_are_given_to_the_module(tmp_path: Path) -> None:
    module = Net()
    fit(module, tmp_path)
    assert type(module.optimizers()).__name__ == "LightningSGD"
    assert type(module.optimizers(use_pl_optimizer=False)) is SGD
    assert module.lr_schedulers() is None

    def several(module: Net) -> Any:
        first, second = (SGD([p], lr=0.1) for p in module.parameters())
        return [first, second], [StepLR(first, 1)]

    module = Net(several, automatic=False)
    fit(module, tmp_path)
    assert [type(optimizer) for optimizer in module.optimizers(False)] == [SGD, SGD]
    assert isinstance(module.lr_schedulers(), StepLR)


# ---------------------------------------------------------------------------------------------------- wrapped


def test_a_wrapped_optimizer_is_one_of_its_class() -> None:
    inner = AdamW([parameter()], lr=0.5)
    wrapped: Any = LightningOptimizer(inner)
    assert isinstance(wrapped, AdamW)
    assert isinstance(wrapped, LightningOptimizer)
    assert type(wrapped).__name__ == "LightningAdamW"
    assert wrapped.optimizer is inner
    assert wrapped.param_groups is inner.param_groups
    assert wrapped.defaults["lr"] == 0.5
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = wrapped.nothing_like_this


def test_a_wrapped_optimizer_steps_without_a_trainer() -> None:
    weight = parameter()
    wrapped = LightningOptimizer(SGD([weight], lr=0.5))

    def closure() -> torch.Tensor:
        loss = (3 * weight).sum()
        loss.backward()
        return loss

    assert wrapped.step(closure).item() == 3.0
    assert weight.item() == -0.5
    wrapped.step()
    assert weight.item() == -2.0


def test_how_a_wrapped_step_is_run_and_counted() -> None:
    inner, calls = SGD([parameter()], lr=0.5), []
    wrapped = LightningOptimizer(inner)
    wrapped.connect(
        lambda *arguments, **keywords: calls.append((arguments[0], keywords)), lambda: calls.append("count")
    )
    wrapped.step(lambda: None, extra=1)
    assert calls == [(inner, {"extra": 1}), "count"]


def test_a_closure_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="closure=tensor"):
        LightningOptimizer(SGD([parameter()], lr=0.5)).step(torch.ones(()))  # type: ignore[arg-type]


def test_toggling_needs_a_run() -> None:
    with pytest.raises(RuntimeError, match="needs a running Trainer"), LightningOptimizer(OPT).toggle_model():
        pass


@pytest.mark.parametrize("into_wrapped", [False, True])
def test_a_wrapped_optimizer_shows_the_state_that_was_loaded(into_wrapped: bool) -> None:
    inner = AdamW([parameter()], lr=0.5)
    wrapped: Any = LightningOptimizer(inner)
    state = inner.state_dict()
    state["param_groups"][0]["lr"] = 0.25
    (wrapped if into_wrapped else inner).load_state_dict(state)
    assert wrapped.param_groups is inner.param_groups
    assert wrapped.state is inner.state
    wrapped.param_groups[0]["lr"] = 0.125
    assert inner.param_groups[0]["lr"] == 0.125


def test_the_learning_rate_can_be_set_after_a_run_was_restored(tmp_path: Path) -> None:
    class Sets(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.optimizers().param_groups[0]["lr"] = 0.01 * (self.trainer.global_step + 1)
            return super().training_step(batch, batch_idx)

    first = fit(Sets(), tmp_path)
    first.save_checkpoint(tmp_path / "a.ckpt")
    second = fulmen.Trainer(default_root_dir=tmp_path, **{**QUIET, "max_epochs": 2})
    loader: Any = torch.utils.data.DataLoader(DATA, batch_size=None)  # type: ignore[arg-type]
    second.fit(Sets(), loader, ckpt_path=tmp_path / "a.ckpt")
    assert second.optimizers[0].param_groups[0]["lr"] == 0.04


@pytest.mark.parametrize(
    ("kind", "needed"), [(SGD, False), (AdamW, False), (torch.optim.LBFGS, True), (type("Own", (SGD,), {}), True)]
)
def test_who_needs_a_closure(kind: Any, needed: bool) -> None:
    assert needs_closure(kind([parameter()], lr=0.1)) is needed
