"""Optimizers and schedulers: from what ``configure_optimizers`` returns to what the loop steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from fulmen.errors import MisconfigurationException
from fulmen.ranks import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

_ACCEPTED = """Return one of
    optimizer
    [optimizer, ...]
    [optimizer, ...], [scheduler, ...]
    {"optimizer": optimizer, "lr_scheduler": scheduler}
    {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "monitor": "val_loss"}}
or a list of such dictionaries."""


@dataclass
class LRSchedulerConfig:
    """When and how a learning-rate scheduler steps.

    Attributes:
        scheduler: The scheduler.
        name: Name under which ``LearningRateMonitor`` logs it.
        interval: ``"epoch"`` or ``"step"``.
        frequency: It steps every so many epochs or batches.
        reduce_on_plateau: Whether ``step`` takes the monitored value.
        monitor: Name of the monitored metric.
        strict: Whether a missing monitor is an error (else a warning).
    """

    scheduler: Any
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True


class NoOptimizer(Optimizer):
    """Stands in when ``configure_optimizers`` returns None: runs the closure and changes nothing."""

    def __init__(self) -> None:
        super().__init__([torch.zeros(1)], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Runs the closure."""
        return closure() if closure is not None else None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing to do."""

    def __repr__(self) -> str:
        return "NoOptimizer()"


class LightningOptimizer:
    """The optimizer as a module sees it in a run: ``step`` goes through the strategy and counts as a step.

    An instance is also an instance of the wrapped optimizer's class; every other attribute is the wrapped one's.

    Args:
        optimizer: The optimizer to wrap.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        # Loading a state replaces these two on the wrapped optimizer: a copy would go on showing the former ones.
        hidden = {"step", "state_dict", "state", "param_groups"}
        self.__dict__.update({name: value for name, value in vars(optimizer).items() if name not in hidden})
        self.__class__ = type(f"Lightning{type(optimizer).__name__}", (type(self), type(optimizer)), {})
        self._optimizer = optimizer
        self._run_step: Callable[..., Any] | None = None
        self._on_step: Callable[[], None] | None = None

    @property
    def optimizer(self) -> Optimizer:
        """The wrapped optimizer."""
        return self._optimizer

    def connect(self, run_step: Callable[..., Any], on_step: Callable[[], None] | None = None) -> None:
        """Says how a step is run (``run_step(optimizer, closure, **kwargs)``) and who counts it."""
        self._run_step, self._on_step = run_step, on_step

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Does one optimizer step.

        Args:
            closure: Computes the loss and the gradients; None if they are there.
            **kwargs: Passed on to the strategy and the optimizer.

        Raises:
            MisconfigurationException: ``closure`` is not callable.
        """
        if closure is None:
            closure = do_nothing_closure
        elif not callable(closure):
            raise MisconfigurationException(
                f"`optimizer.step(closure={closure!r})`: expected a function that computes the loss. Leave it out if"
                " the gradients are there already."
            )
        if self._run_step is None:
            return self._optimizer.step(closure, **kwargs)  # type: ignore[arg-type]
        result = self._run_step(self._optimizer, closure, **kwargs)
        if self._on_step is not None:
            self._on_step()
        return result

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Inside, only this optimizer's parameters require gradients (see ``LightningModule.toggle_optimizer``).

        Args:
            sync_grad: False blocks the synchronisation of gradients between processes meanwhile.
        """
        module = self._strategy_module()
        module.toggle_optimizer(self)
        try:
            with module.trainer.strategy.no_backward_sync(module, enabled=not sync_grad):
                yield
        finally:
            module.untoggle_optimizer(self)

    def _strategy_module(self) -> LightningModule:
        module = getattr(self, "_module", None)
        if module is None:
            raise RuntimeError("`toggle_model` needs a running Trainer: get the optimizer from `self.optimizers()`.")
        return module  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state into the wrapped optimizer."""
        self._optimizer.load_state_dict(state_dict)

    def __getattr__(self, name: str) -> Any:
        if name == "_optimizer":
            raise AttributeError(name)
        return getattr(self._optimizer, name)


def wrapped(optimizers: list[Optimizer], module: LightningModule) -> list[LightningOptimizer]:
    """The optimizers as ``module`` sees them in a run."""
    found = [LightningOptimizer(optimizer) for optimizer in optimizers]
    for optimizer in found:
        optimizer.__dict__["_module"] = module
    return found


def do_nothing_closure() -> None:
    """The closure of a step that is given none."""


def configure(trainer: Trainer, module: LightningModule) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    """Calls ``configure_optimizers`` and reads what it returns.

    Returns:
        The optimizers, and the configurations of their schedulers.
    """
    returned = trainer._call_module("configure_optimizers")
    if returned is None:
        rank_zero_warn(
            "`configure_optimizers` returned None: this fit runs with no optimizer. If that is not meant, return one."
        )
        returned = NoOptimizer()
    optimizers, schedulers, monitor = read(returned)
    automatic = module.automatic_optimization
    configs = [scheduler_config(entry, monitor, automatic) for entry in schedulers]
    if not optimizers:
        raise MisconfigurationException(
            f"`configure_optimizers` returned {returned!r}: no optimizer in it. {_ACCEPTED}"
        )
    if automatic and len(optimizers) > 1:
        raise RuntimeError(
            f"Automatic optimisation takes one optimizer; `configure_optimizers` returned {len(optimizers)}."
            " For several, set `self.automatic_optimization = False` in `__init__` and step them in `training_step`:"
            " `opt = self.optimizers()[0]; opt.zero_grad(); self.manual_backward(loss); opt.step()`."
        )
    for config in configs:
        _check_scheduler(config, optimizers, trainer, module)
    return optimizers, configs


def read(returned: Any) -> tuple[list[Optimizer], list[Any], str | None]:
    """Optimizers, schedulers (or their dictionaries) and top-level monitor in a return of ``configure_optimizers``."""
    if is_optimizer(returned):
        return [returned], [], None
    if isinstance(returned, Mapping):
        optimizer, scheduler = _read_dict(returned)
        return [optimizer], scheduler, returned.get("monitor")
    if isinstance(returned, (list, tuple)):
        if len(returned) == 2 and isinstance(returned[0], list) and all(is_optimizer(item) for item in returned[0]):
            second = returned[1]
            return returned[0], list(second) if isinstance(second, (list, tuple)) else [second], None
        if all(is_optimizer(item) for item in returned):
            return list(returned), [], None
        if all(isinstance(item, Mapping) for item in returned):
            pairs = [_read_dict(item) for item in returned]
            return [optimizer for optimizer, _ in pairs], [entry for _, found in pairs for entry in found], None
    raise MisconfigurationException(f"`configure_optimizers` returned {_shape(returned)}. {_ACCEPTED}")


def is_optimizer(value: Any) -> bool:
    """Whether ``value`` can be stepped as an optimizer: one of torch's, or of its shape."""
    return isinstance(value, Optimizer) or (
        not isinstance(value, (Mapping, list, tuple))
        and all(
            hasattr(value, name)
            for name in ("param_groups", "defaults", "state", "state_dict", "load_state_dict", "step")
        )
    )


def _read_dict(entry: Mapping[str, Any]) -> tuple[Optimizer, list[Any]]:
    unknown = set(entry) - {"optimizer", "lr_scheduler", "monitor"}
    if unknown:
        rank_zero_warn(
            f"`configure_optimizers` returned a dictionary with unknown keys {sorted(unknown)}; they are ignored."
            " Known: 'optimizer', 'lr_scheduler', 'monitor'.",
            category=RuntimeWarning,
        )
    if "optimizer" not in entry:
        raise KeyError(
            f"`configure_optimizers` returned a dictionary without 'optimizer' (keys: {sorted(entry)}). {_ACCEPTED}"
        )
    scheduler = entry.get("lr_scheduler")
    if scheduler is None:
        return entry["optimizer"], []
    return entry["optimizer"], list(scheduler) if isinstance(scheduler, (list, tuple)) else [scheduler]


def scheduler_config(entry: Any, monitor: str | None, automatic: bool) -> LRSchedulerConfig:
    """The configuration in one entry: a scheduler, or a dictionary around it."""
    if not isinstance(entry, Mapping):
        plateau = isinstance(entry, ReduceLROnPlateau)
        if plateau and automatic and monitor is None:
            raise MisconfigurationException(
                "`ReduceLROnPlateau` needs a metric to monitor. Return"
                ' {"optimizer": ..., "lr_scheduler": {"scheduler": ..., "monitor": "val_loss"}}.'
            )
        return LRSchedulerConfig(entry, reduce_on_plateau=plateau, monitor=monitor if plateau else None)
    known = {field.name for field in fields(LRSchedulerConfig)}
    ignored = set(entry) - known
    if not automatic:
        ignored |= set(entry) & {"reduce_on_plateau", "monitor", "strict"}
    if ignored:
        rank_zero_warn(
            f"The dictionary of a scheduler has keys that are not used{'' if automatic else ' in manual optimisation'}:"
            f" {sorted(ignored)}. Known: {sorted(known)}.",
            category=RuntimeWarning,
        )
    given = {name: value for name, value in entry.items() if name not in ignored}
    if given.get("scheduler") is None:
        raise MisconfigurationException(
            'The dictionary of a scheduler must have the key "scheduler" with the scheduler.'
        )
    plateau = isinstance(given["scheduler"], ReduceLROnPlateau)
    config = LRSchedulerConfig(**{"reduce_on_plateau": plateau, **given})
    _check_config(config, automatic)
    return config


def _check_config(config: LRSchedulerConfig, automatic: bool) -> None:
    if config.interval not in ("epoch", "step"):
        raise MisconfigurationException(
            f'The "interval" of a scheduler is {config.interval!r}; expected "epoch" or "step".'
        )
    if not isinstance(config.frequency, int) or config.frequency < 1:
        raise MisconfigurationException(
            f'The "frequency" of a scheduler is {config.frequency!r}; expected a whole number of at least 1.'
        )
    if config.reduce_on_plateau and automatic and config.monitor is None:
        raise MisconfigurationException(
            'A scheduler that reduces on a plateau needs a metric: add "monitor": "val_loss" to its dictionary.'
        )
    if isinstance(config.scheduler, OneCycleLR) and config.interval == "epoch" and automatic:
        rank_zero_warn(
            'A `OneCycleLR` steps by epoch here, though its length is usually given in steps. Add "interval": "step".',
            category=RuntimeWarning,
        )


def _check_scheduler(
    config: LRSchedulerConfig, optimizers: list[Optimizer], trainer: Trainer, module: LightningModule
) -> None:
    from fulmen.hooks import overrides
    from fulmen.module import LightningModule as Base

    scheduler = config.scheduler
    if not hasattr(scheduler, "state_dict") or not hasattr(scheduler, "load_state_dict"):
        raise TypeError(
            f"`configure_optimizers` returned {type(scheduler).__name__} as a scheduler; a scheduler must have"
            " `state_dict` and `load_state_dict`, so that training can be resumed."
        )
    own_step = overrides(module, "lr_scheduler_step", Base)
    if module.automatic_optimization and not own_step and not isinstance(scheduler, (LRScheduler, ReduceLROnPlateau)):
        raise MisconfigurationException(
            f"`{type(scheduler).__name__}` is not a torch scheduler, so its `step` cannot be called without knowing"
            " how. Override `lr_scheduler_step(self, scheduler, metric)` in the module."
        )
    if getattr(scheduler, "optimizer", None) is not None and scheduler.optimizer not in optimizers:
        raise MisconfigurationException(
            f"`configure_optimizers` returned a {type(scheduler).__name__} whose optimizer it did not return."
            " Return that optimizer too."
        )


def _shape(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        inner = ", ".join(type(item).__name__ for item in value)
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    return type(value).__name__


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether ``optimizer.step`` may have to evaluate the loss itself.

    torch's own optimizers only call a closure once, before anything else, so the loop may do that for them; LBFGS calls
    it several times, and what others do is not known.
    """
    cls = type(optimizer)
    return isinstance(optimizer, torch.optim.LBFGS) or not cls.__module__.startswith("torch.optim.")
