"""Hyperparameters of module and datamodule, to the loggers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from fulmen.trainer import Trainer


def log_hyperparameters(trainer: Trainer) -> None:
    """Sends the hyperparameters that module and datamodule saved to the loggers, as they were when they were saved.

    Raises:
        RuntimeError: Both saved a value under one name, and the values differ.
    """
    if not trainer.loggers or not trainer.enable_autolog_hparams:
        return
    of_module = _initial(trainer.lightning_module)
    of_data = _initial(trainer.data.datamodule)
    clashing = sorted(key for key in of_module.keys() & of_data.keys() if _differ(of_module[key], of_data[key]))
    if clashing:
        raise RuntimeError(
            f"Module and datamodule both saved the hyperparameters {clashing}, with different values. Rename them"
            " in one of"
            " the two, or keep one out of the loggers: `self.save_hyperparameters(logger=False)`."
        )
    merged = {key: value for key, value in {**of_module, **of_data}.items() if key != "_class_path"}
    if not of_module and not of_data:
        return
    for logger in trainer.loggers:
        logger.log_hyperparams(merged)


def _initial(owner: Any) -> dict[str, Any]:
    if owner is None or not getattr(owner, "_log_hyperparams", False):
        return {}
    return dict(owner.hparams_initial)


def _differ(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return first is not second
    return type(first) is not type(second) or bool(first != second)
