"""What an entry point was given: a module and data, in one of several forms."""

from __future__ import annotations

from typing import Any

from fulmen.compiled import from_compiled, is_optimized
from fulmen.datamodule import LightningDataModule
from fulmen.errors import MisconfigurationException
from fulmen.module import LightningModule


def lightning_module(model: Any, asked: str, former: Any = None) -> LightningModule:
    """The module that an entry point was given, or the one of the last run.

    Raises:
        TypeError: It is something else, or there is none.
    """
    if model is None:
        if former is None:
            raise TypeError(
                f"`Trainer.{asked}()` without a model, and none from an earlier run. Pass one:"
                f" `trainer.{asked}(model)`."
            )
        model = former
    if is_optimized(model):
        return from_compiled(model)
    if isinstance(model, LightningModule):
        return model
    if isinstance(model, type):
        raise TypeError(
            f"`Trainer.{asked}` was given the class {model.__name__}; pass an object: `{model.__name__}(...)`."
        )
    where = type(model).__module__
    if where.startswith(("lightning.", "pytorch_lightning.")) or any(
        cls.__module__.startswith(("lightning.", "pytorch_lightning.")) for cls in type(model).__mro__
    ):
        raise TypeError(
            f"`Trainer.{asked}` was given a `{type(model).__name__}` that inherits from another package's"
            " LightningModule. Import it from fulmen: `from fulmen import LightningModule`."
        )
    raise TypeError(
        f"`Trainer.{asked}` was given {type(model).__name__}, expected a `fulmen.LightningModule`. Wrap a plain"
        " module:\n"
        "    class Task(fulmen.LightningModule):\n"
        "        def __init__(self, model): super().__init__(); self.model = model\n"
        "        def training_step(self, batch, batch_idx): ..."
    )


def datamodule_and_loaders(asked: str, datamodule: Any, **loaders: Any) -> tuple[Any, dict[str, Any]]:
    """The datamodule and the loaders by stage; a datamodule in the place of loaders counts as one.

    Raises:
        MisconfigurationException: Both were given.
    """
    place, first = next(iter(loaders.items()))
    if isinstance(first, LightningDataModule):
        datamodule, loaders = first, {**loaders, place: None}
    given = [name for name, value in loaders.items() if value is not None]
    if datamodule is not None and given:
        raise MisconfigurationException(f"`Trainer.{asked}` was given dataloaders and a datamodule. Pass one of them.")
    if datamodule is not None and not isinstance(datamodule, LightningDataModule):
        raise TypeError(
            f"`Trainer.{asked}(datamodule=...)` was given {type(datamodule).__name__}, expected a"
            " `LightningDataModule`."
        )
    return datamodule, loaders
