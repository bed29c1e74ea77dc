from __future__ import annotations

import inspect
from typing import Any

import pytest

from fulmen import Callback
from fulmen.callbacks import LambdaCallback
from fulmen.hooks import HOOKS, describe_hooks


def test_every_hook_of_a_callback_can_be_given() -> None:
    names = set(inspect.signature(LambdaCallback).parameters)
    assert names == {hook.name for hook in HOOKS if hasattr(Callback, hook.name)}


def test_functions_get_what_the_methods_get(fit, scripted) -> None:
    seen: list[Any] = []
    listener = LambdaCallback(
        setup=lambda trainer, pl_module, stage: seen.append(("setup", str(stage))),
        on_train_start=lambda trainer, module: seen.append((trainer.current_epoch, module)),
        on_train_batch_end=lambda trainer, module, outputs, batch, batch_idx: seen.append((sorted(outputs), batch_idx)),
        on_save_checkpoint=lambda trainer, module, checkpoint: seen.append("epoch" in checkpoint),
    )
    module = scripted()
    trainer = fit(module, listener, limit_train_batches=1, max_epochs=1)
    trainer.save_checkpoint(f"{trainer.default_root_dir}/a.ckpt")
    assert seen == [("setup", "fit"), (0, module), (["loss"], 0), True]


def test_what_is_not_given_is_not_listened_to(fit, scripted) -> None:
    trainer = fit(scripted(), LambdaCallback(on_train_start=lambda trainer, module: None), max_epochs=1)
    rows = describe_hooks(trainer, trainer.lightning_module)
    assert [hook.name for hook, names in rows if "LambdaCallback" in names] == ["on_train_start"]


def test_what_cannot_be_given() -> None:
    with pytest.raises(TypeError, match="on_train_strat"):
        LambdaCallback(on_train_strat=print)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"LambdaCallback\(on_fit_start=3\)`: expected a function"):
        LambdaCallback(on_fit_start=3)  # type: ignore[arg-type]
