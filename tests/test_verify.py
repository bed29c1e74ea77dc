from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fulmen
from fulmen.errors import MisconfigurationException, PossibleUserWarning

DATA = [torch.ones(1, 2)]


class Empty(fulmen.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)


class Trains(Empty):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Evaluates(Trains):
    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    test_step = validation_step


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    def make(**arguments: Any) -> fulmen.Trainer:
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        return fulmen.Trainer(
            accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **dict.fromkeys(off, False), **arguments
        )

    return make


def batches() -> Any:
    return torch.utils.data.DataLoader(torch.ones(2, 2), batch_size=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "module", "missing"),
    [
        ("fit", Empty, "training_step"),
        ("fit", type("Half", (Trains,), {"configure_optimizers": Empty.configure_optimizers}), "configure_optimizers"),
        ("validate", Trains, "validation_step"),
        ("test", Trains, "test_step"),
    ],
)
def test_what_a_run_needs(trainer: Any, call: str, module: Any, missing: str) -> None:
    module = module()
    with pytest.raises(
        MisconfigurationException, match=f"`Trainer.{call}` needs `{missing}`.*does not define"
    ) as caught:
        getattr(trainer(), call)(module, batches())
    assert caught.value.subject is module


def test_methods_given_by_the_instance_count(trainer: Any) -> None:
    module = Empty()
    module.training_step = lambda batch, batch_idx: module.layer(batch).mean()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
    run = trainer()
    run.fit(module, batches())
    assert run.global_step == 2


@pytest.mark.parametrize(
    ("call", "stage"),
    [("fit", "training"), ("fit", "validation"), ("fit", "test"), ("validate", "validation"), ("test", "test")],
)
def test_hooks_of_an_older_api_are_refused(trainer: Any, call: str, stage: str) -> None:
    hook = f"on_{'train' if stage == 'training' else stage}_epoch_end"
    module = type("Old", (Evaluates,), {f"{stage}_epoch_end": lambda self, outputs: None})()
    with pytest.raises(NotImplementedError, match=rf"`Old.{stage}_epoch_end`.*use `{hook}\(self\)`"):
        getattr(trainer(), call)(module, batches())


@pytest.mark.parametrize(
    ("call", "stage"), [("validate", "training"), ("validate", "test"), ("test", "validation"), ("predict", "training")]
)
def test_hooks_of_an_older_api_do_not_matter_elsewhere(trainer: Any, call: str, stage: str) -> None:
    hooks = {f"{stage}_epoch_end": lambda self, outputs: None, "predict_step": lambda self, batch: batch}
    getattr(trainer(), call)(type("Old", (Evaluates,), hooks)(), batches())


def test_validation_needs_both_step_and_data(trainer: Any) -> None:
    with pytest.warns(UserWarning, match="val dataloader but no `validation_step`"):
        trainer().fit(Trains(), batches(), batches())
    with pytest.warns(PossibleUserWarning, match="a `validation_step` but no val dataloader"):
        trainer().fit(Evaluates(), batches())


def test_optimizer_idx_is_gone(trainer: Any) -> None:
    class Old(Trains):
        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any: ...

    with pytest.raises(RuntimeError, match="takes `optimizer_idx`"):
        trainer().fit(Old(), batches())


@pytest.mark.parametrize(
    "arguments",
    [{"gradient_clip_val": 0.5}, {"accumulate_grad_batches": 2}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_has_no_effect_in_manual_optimisation(trainer: Any, arguments: dict[str, Any]) -> None:
    module = Trains()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match=f"{next(iter(arguments))}=.*no effect in manual optimisation"):
        trainer(**arguments).fit(module, batches())


def test_neutral_settings_are_fine_in_manual_optimisation(trainer: Any) -> None:
    module = Trains()
    module.automatic_optimization = False
    trainer(gradient_clip_val=0, accumulate_grad_batches=1).fit(module, batches())


@pytest.mark.parametrize("call", ["fit", "validate", "test", "predict"])
def test_no_data(trainer: Any, call: str) -> None:
    class Predicts(Evaluates):
        def predict_step(self, batch: Any, batch_idx: int) -> None: ...

    names = {"fit": "train", "validate": "val"}
    name = names.get(call, call)
    warned = pytest.warns(PossibleUserWarning, match="no val dataloader") if call == "fit" else None
    error = pytest.raises(MisconfigurationException, match=f"`Trainer.{call}` has no {name} data.*`{name}_dataloader`")
    if warned is None:
        with error:
            getattr(trainer(), call)(Predicts())
    else:
        with warned, error:
            getattr(trainer(), call)(Predicts())
