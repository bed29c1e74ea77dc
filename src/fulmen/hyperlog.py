"""Hyperparameters of module and datamodule, to the loggers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fulmen.checkpoint.hyperparameters import modules_known

if TYPE_CHECKING:
    from fulmen.trainer import Trainer


def log_hyperparameters(trainer: Trainer) -> None:
    """Sends the hyperparameters that module and datamodule saved to the loggers, as they were when they were saved,
    and the module's graph.

    Raises:
        RuntimeError: Both saved a value under one name, and the values differ.
    """
    if not trainer.loggers or not trainer.enable_autolog_hparams:
        return
    saved = [_initial(owner) for owner in (trainer.lightning_module, trainer.data.datamodule)]
    of_module, of_data = (hparams or {} for hparams in saved)
    both = of_module.keys() & of_data.keys() - {"_class_path"}
    clashing = sorted(key for key in both if _differ(of_module[key], of_data[key]))
    if clashing:
        raise RuntimeError(
            f"Module and datamodule both saved the hyperparameters {clashing}, with different values. Rename them"
            " in one of the two, or keep one out of the loggers: `self.save_hyperparameters(logger=False)`."
        )
    merged = {key: value for key, value in {**of_module, **of_data}.items() if key != "_class_path"}
    with modules_known():
        for logger in trainer.loggers:
            if saved != [None, None]:
                logger.log_hyperparams(merged)
            logger.log_graph(trainer.lightning_module)
            logger.save()


def _initial(owner: Any) -> dict[str, Any] | None:
    if owner is None or not getattr(owner, "_log_hyperparams", False):
        return None
    return dict(owner.hparams_initial)


def _differ(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return first is not second
    return type(first) is not type(second) or bool(first != second)
