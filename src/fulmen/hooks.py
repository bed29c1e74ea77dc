"""Hooks: the named points of a run, in one table, and who listens on them.

``HOOKS`` is the table. ``compile_hooks`` turns it into a ``HookTable`` once per run: for each hook a flat tuple of
bound
callables in the order in which they are called. A hook that nobody overrides is an empty tuple, so the loop that
walks it
does nothing. The first entry of a non-empty tuple opens the page of the book that belongs to the hook: that is how
``self.log`` knows where it was called.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fulmen.callback import Callback
from fulmen.fabric.strategies.base import overrides as strategy_overrides
from fulmen.loops.draws import with_drawn_batch
from fulmen.loops.signature import takes_dataloader_iter
from fulmen.ranks import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.book import Book
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

Calls = tuple[Callable[..., Any], ...]

#: What ``self.log`` may do in a hook: "step" logs by step unless told otherwise, "evaluation" by epoch unless told
#: otherwise, "epoch" by epoch only, "never" not at all.
LogRule = Literal["step", "evaluation", "epoch", "never"]


@dataclass(frozen=True)
class Hook:
    """One row of the table.

    Attributes:
        name: The method's name.
        arguments: Its arguments; a callback gets ``trainer, pl_module`` before them.
        who: Whose methods are called, in this order: "C" callbacks, "M" module, "S" strategy, "D" datamodule.
        log: What ``self.log`` may do in it.
        when: The point of the run, for ``Trainer.describe()``.
    """

    name: str
    arguments: tuple[str, ...]
    who: str
    log: LogRule
    when: str


def _evaluation(stage: str, log: LogRule, log_batch: LogRule) -> list[Hook]:
    """The hooks of validation, test or prediction."""
    batch = ("batch", "batch_idx", "dataloader_idx")
    end: LogRule = "never"
    return [
        Hook(f"on_{stage}_model_eval", (), "M", "never", f"{stage}: modules to eval mode"),
        Hook(f"on_{stage}_start", (), "CMS", log, f"{stage} begins"),
        Hook(f"on_{stage}_epoch_start", (), "CM", log, f"{stage} begins"),
        Hook(f"on_{stage}_batch_start", batch, "CM", log_batch, f"each {stage} batch"),
        Hook(f"on_{stage}_batch_end", ("outputs", *batch), "CM", log_batch, f"each {stage} batch"),
        Hook(f"on_{stage}_epoch_end", (), "CM", log, f"{stage} ends"),
        Hook(f"on_{stage}_end", (), "CMS", end, f"{stage} ends, metrics known"),
        Hook(f"on_{stage}_model_train", (), "M", "never", f"{stage}: modules back to their mode"),
    ]


#: Every hook, in the order of a run. Held against ``Callback``, ``LightningModule`` and the documentation by tests.
HOOKS: tuple[Hook, ...] = (
    Hook("setup", ("stage",), "DCM", "never", "a run begins"),
    Hook("on_fit_start", (), "CM", "never", "fit begins, optimizers exist"),
    Hook("on_sanity_check_start", (), "C", "never", "before the sanity check"),
    Hook("on_sanity_check_end", (), "C", "never", "after the sanity check"),
    Hook("on_train_start", (), "CMS", "epoch", "training begins"),
    Hook("on_train_epoch_start", (), "CM", "epoch", "each training epoch begins"),
    Hook("on_train_batch_start", ("batch", "batch_idx"), "CMS", "step", "each training batch"),
    Hook("on_before_zero_grad", ("optimizer",), "CM", "step", "after the forward pass"),
    Hook("on_before_backward", ("loss",), "CM", "step", "before the backward pass"),
    Hook("on_after_backward", (), "CM", "step", "after the backward pass"),
    Hook("on_before_optimizer_step", ("optimizer",), "CM", "step", "before clipping and the optimizer's step"),
    Hook("on_train_batch_end", ("outputs", "batch", "batch_idx"), "CM", "step", "each training batch is done"),
    Hook("on_validation_model_zero_grad", (), "M", "never", "before a validation inside fit"),
    *_evaluation("validation", "epoch", "evaluation"),
    Hook("on_train_epoch_end", (), "CM", "epoch", "each training epoch has ended"),
    Hook("on_train_end", (), "CMS", "never", "training has ended"),
    *_evaluation("test", "epoch", "evaluation"),
    *[hook for hook in _evaluation("predict", "never", "never") if hook.name != "on_predict_model_train"],
    Hook("on_fit_end", (), "CM", "never", "fit has ended"),
    Hook("on_exception", ("exception",), "CDS", "never", "an exception ends the run"),
    Hook("teardown", ("stage",), "DCM", "never", "a run has ended"),
    Hook("on_save_checkpoint", ("checkpoint",), "CM", "never", "a checkpoint is about to be written"),
    Hook("on_load_checkpoint", ("checkpoint",), "CM", "never", "a checkpoint is being restored"),
)

#: Methods of the module (no hooks of callbacks) in which ``self.log`` works.
STEPS: dict[str, LogRule] = {
    "training_step": "step",
    "backward": "step",
    "optimizer_step": "step",
    "optimizer_zero_grad": "step",
    "configure_gradient_clipping": "step",
    "clip_gradients": "step",
    "validation_step": "evaluation",
    "test_step": "evaluation",
}

LOG_RULES: dict[str, LogRule] = {**{hook.name: hook.log for hook in HOOKS}, **STEPS}

_BY_NAME = {hook.name: hook for hook in HOOKS}
_MODULE_OVERRIDABLE = {"on_after_batch_transfer", "on_before_batch_transfer", "on_gpu", *_BY_NAME}


def overrides(instance: object, name: str, base: type) -> bool:
    """Whether ``instance`` has a method ``name`` of its own: on itself, or in a class below ``base``.

    An object that is not of class ``base`` (a duck type) overrides whatever it has.
    """
    if name in getattr(instance, "__dict__", ()):
        return True
    own = getattr(type(instance), name, None)
    return own is not None and own is not getattr(base, name, None)


class HookTable:
    """For each hook a tuple of callables, in the order in which they are called.

    Attributes are named like the hooks: ``for call in table.on_train_batch_start: call(batch, batch_idx)``.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Calls: ...

    skipper: int = -1
    """Place of the module among ``on_train_batch_start``: only its -1 skips the rest of the epoch."""

    def __init__(self) -> None:
        for hook in HOOKS:
            setattr(self, hook.name, ())

    def call(self, name: str, *arguments: Any) -> None:
        """Calls everyone who listens on ``name``. For the hooks outside the batch loop."""
        for listener in getattr(self, name):
            listener(*arguments)

    def may_skip(self, listener: Callable[..., Any]) -> bool:
        """Whether the epoch ends when this listener on ``on_train_batch_start`` returns -1."""
        return self.on_train_batch_start.index(listener) == self.skipper


def compile_hooks(trainer: Trainer, module: LightningModule) -> HookTable:
    """Asks each callback, the module and the strategy once which hooks they override."""
    table = HookTable()
    for hook in HOOKS:
        listeners = [bound for _, bound in _listeners(hook, trainer, module)]
        if listeners:
            setattr(table, hook.name, (trainer.book.opener(hook.name), *listeners))
    own = module.on_train_batch_start
    if own in table.on_train_batch_start:
        table.skipper = table.on_train_batch_start.index(own)
    _give_drawn_batches(table, module)
    return table


def _give_drawn_batches(table: HookTable, module: LightningModule) -> None:
    """Where a step draws its batches itself, the hooks around it get the one drawn last."""
    for step in ("training_step", "validation_step", "test_step", "predict_step"):
        if takes_dataloader_iter(getattr(module, step)):
            stage = step.removesuffix("ing_step").removesuffix("_step")
            for name in (f"on_{stage}_batch_start", f"on_{stage}_batch_end"):
                setattr(table, name, tuple(partial(with_drawn_batch, call) for call in getattr(table, name)))


def describe_hooks(trainer: Trainer, module: LightningModule) -> list[tuple[Hook, list[str]]]:
    """For each hook that somebody listens on, the names of the listeners in the order in which they are called."""
    rows = [(hook, [name for name, _ in _listeners(hook, trainer, module)]) for hook in HOOKS]
    return [(hook, names) for hook, names in rows if names]


def _listeners(hook: Hook, trainer: Trainer, module: LightningModule) -> Iterable[tuple[str, Callable[..., Any]]]:
    late = []
    for who in hook.who:
        if who == "C":
            for callback in trainer.callbacks:
                if not _callback_listens(callback, hook.name, trainer):
                    continue
                entry = (type(callback).__name__, partial(getattr(callback, hook.name), trainer, module))
                if hook.name in getattr(callback, "after_module", ()):
                    late.append(entry)
                else:
                    yield entry
        elif _listens(who, hook.name, trainer, module):
            owner = {"M": module, "S": trainer.strategy, "D": trainer.data.datamodule}[who]
            yield type(owner).__name__, getattr(owner, hook.name)
        if who == "M":
            yield from late


def _callback_listens(callback: Callback, name: str, trainer: Trainer) -> bool:
    if not overrides(callback, name, Callback):
        return False
    # What a class says about its hooks does not bind the hooks of its subclasses.
    asked, owner = _definer(type(callback), "listens"), _definer(type(callback), name)
    if asked is None or owner is None or (owner is not asked and issubclass(owner, asked)):
        return True
    return callback.listens(name, trainer)


def _definer(cls: type, name: str) -> Any:
    return next((part for part in cls.__mro__ if name in vars(part)), None)


def _listens(who: str, name: str, trainer: Trainer, module: LightningModule) -> bool:
    if who == "M":
        return _module_listens(module, name)
    if who == "S":
        return strategy_overrides(trainer.strategy, name)
    from fulmen.datamodule import LightningDataModule

    datamodule = trainer.data.datamodule
    return datamodule is not None and overrides(datamodule, name, LightningDataModule)


def _module_listens(module: LightningModule, name: str) -> bool:
    # The mode switches of evaluation do something by default; on_*_model_train only when the user says how.
    if name.endswith(("_model_eval", "_model_zero_grad")):
        return True
    return overrides(module, name, _module_base())


def _module_base() -> type:
    from fulmen.module import LightningModule

    return LightningModule


def opened(book: Book, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with the book opened at the page ``name`` while it runs. For calls outside the batch loop."""
    turn = book.opener(name)

    def call(*arguments: Any, **keywords: Any) -> Any:
        before = book.page
        turn()
        try:
            return function(*arguments, **keywords)
        finally:
            book.page = before

    return call


def warn_misspelt(callbacks: Iterable[object], module: LightningModule) -> None:
    """Warns about methods that look like a hook and are none."""
    for owner, base in [*((callback, Callback) for callback in callbacks), (module, _module_base())]:
        known = [hook.name for hook in HOOKS] if base is Callback else sorted(_MODULE_OVERRIDABLE)
        for name in _methods_below(type(owner), base):
            if name in known or not name.startswith("on_"):
                continue
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if close:
                rank_zero_warn(
                    f"`{type(owner).__name__}.{name}` looks like a hook but is never called. Did you mean"
                    f" `{close[0]}`? If it is a method of your own, rename it."
                )


def _methods_below(cls: type, base: type) -> set[str]:
    own = {name for part in cls.__mro__ if part not in base.__mro__ for name in vars(part)}
    return own - set(dir(base))
