"""What is checked before anything runs: does the module have what this run needs?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.errors import MisconfigurationException, PossibleUserWarning
from fulmen.fabric.errors import PluginTypeError
from fulmen.hooks import overrides, warn_misspelt
from fulmen.loops.signature import requires_optimizer_idx, takes_dataloader_iter
from fulmen.module import LightningModule
from fulmen.ranks import rank_zero_deprecation, rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

_EXAMPLES = {
    "training_step": "def training_step(self, batch, batch_idx): ...; return loss",
    "configure_optimizers": "def configure_optimizers(self): return torch.optim.AdamW(self.parameters())",
    "validation_step": 'def validation_step(self, batch, batch_idx): self.log("val_loss", ...)',
    "test_step": 'def test_step(self, batch, batch_idx): self.log("test_loss", ...)',
}
#: Hooks of Lightning 1.x by the run that would have called them; fit refuses all, before it is too late for the test.
_REMOVED = {
    "fit": ("training_epoch_end", "validation_epoch_end", "test_epoch_end"),
    "validate": ("validation_epoch_end",),
    "test": ("test_epoch_end",),
}


def verify(trainer: Trainer, module: LightningModule) -> None:
    """Checks module and settings against the run that was asked for.

    Raises:
        MisconfigurationException: The module misses a method, or the settings contradict each other.
        NotImplementedError: The module has a hook of an older API.
        TypeError: The strategy needs `configure_model`, which the module does not define.
    """
    warn_misspelt(trainer.callbacks, module)
    _check_configure_model(module)
    if trainer.strategy.needs_configure_model:
        _require_configure_model(trainer, module)
    _warn_drawing_steps(module)
    asked = str(trainer.state.fn)
    _check_removed(module, _REMOVED.get(asked, ()))
    if asked == "fit":
        _require(module, "training_step", asked)
        _require(module, "configure_optimizers", asked)
        _check_fit(trainer, module)
    elif asked == "predict":
        own = overrides(module, "predict_step", LightningModule)
        if module.predict_step is None or not (own or overrides(module, "forward", LightningModule)):
            raise MisconfigurationException(
                f"`Trainer.predict` needs `predict_step` or `forward` in `{type(module).__name__}`; it has neither."
            )
    else:
        _require(module, "validation_step" if asked == "validate" else "test_step", asked)


def returns_predictions(trainer: Trainer, asked: bool | None) -> bool:
    """Whether the outputs of a prediction are returned: by default if they come about in this process.

    Raises:
        MisconfigurationException: They are asked for, and come about in others.
    """
    launcher = trainer.strategy.launcher
    if launcher is None or launcher.runs_here:
        return asked is not False
    if asked:
        raise MisconfigurationException(
            "`return_predictions=True`: the outputs stay in processes that are spawned or forked. Write them with a"
            " `BasePredictionWriter`, or type: strategy='ddp'"
        )
    return False


def _require(module: LightningModule, name: str, asked: str) -> None:
    if not overrides(module, name, LightningModule):
        raise MisconfigurationException(
            f"`Trainer.{asked}` needs `{name}`, which `{type(module).__name__}` does not define. Add\n   "
            f" {_EXAMPLES[name]}",
            subject=module,
        )


def _check_removed(module: LightningModule, names: tuple[str, ...]) -> None:
    for name in names:
        if callable(getattr(module, name, None)):
            phase = name.split("_")[0]
            hook = "on_train_epoch_end" if phase == "training" else f"on_{phase}_epoch_end"
            raise NotImplementedError(
                f"`{type(module).__name__}.{name}` is a hook of Lightning 1.x and is no longer called. Collect the"
                f" outputs of the step in an attribute and use `{hook}(self)`."
            )


def _check_configure_model(module: LightningModule) -> None:
    if not overrides(module, "configure_sharded_model", LightningModule):
        return
    name = type(module).__name__
    if overrides(module, "configure_model", LightningModule):
        raise RuntimeError(
            f"`{name}` overrides both `configure_model` and `configure_sharded_model`, its former name. Keep"
            " `configure_model`."
        )
    rank_zero_deprecation(f"`{name}.configure_sharded_model` is deprecated. Rename it: `configure_model`.")


def _require_configure_model(trainer: Trainer, module: LightningModule) -> None:
    if not overrides(module, "configure_model", LightningModule):
        raise PluginTypeError(
            f"`{type(trainer.strategy).__name__}` leaves it to the module how it is spread over processes, and"
            f" `{type(module).__name__}` does not say it. Add\n    def configure_model(self):"
            ' parallelize_module(self.network, self.device_mesh["tensor_parallel"], plan)',
            subject=module,
        )


def _warn_drawing_steps(module: LightningModule) -> None:
    for step in ("training_step", "validation_step", "test_step", "predict_step"):
        if takes_dataloader_iter(getattr(module, step)):
            rank_zero_warn(
                f"`{type(module).__name__}.{step}` draws its batches itself (`dataloader_iter`), which is experimental."
                " The transfer hooks are not called, and if a step draws several batches, `batch_idx` in the hooks"
                " counts steps.",
                category=PossibleUserWarning,
            )


def _check_fit(trainer: Trainer, module: LightningModule) -> None:
    has_step = overrides(module, "validation_step", LightningModule)
    has_data = trainer.data.owner("validate") is not None
    if has_data and not has_step:
        rank_zero_warn("There is a val dataloader but no `validation_step`: no validation is run.")
    elif has_step and not has_data:
        rank_zero_warn(
            "There is a `validation_step` but no val dataloader: no validation is run.", category=PossibleUserWarning
        )
    if requires_optimizer_idx(module.training_step):
        raise RuntimeError(
            f"`{type(module).__name__}.training_step` takes `optimizer_idx`, which Lightning 2 dropped. Set"
            " `self.automatic_optimization = False` and step the optimizers yourself (`self.optimizers()`)."
        )
    if module.automatic_optimization:
        return
    for name, neutral in (("gradient_clip_val", (None, 0)), ("accumulate_grad_batches", (1,))):
        value = getattr(trainer, name)
        if value not in neutral:
            raise MisconfigurationException(
                f"`Trainer({name}={value!r})` has no effect in manual optimisation: leave it out, and do it in"
                " `training_step`"
                + (" with `self.clip_gradients(optimizer, ...)`." if name == "gradient_clip_val" else ".")
            )
