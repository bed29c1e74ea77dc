"""Attributes that a setting may live in: on the module, on the datamodule, or among the hyperparameters of either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fulmen.hparams import AttributeDict, clean_namespace, is_picklable, save_hyperparameters

__all__ = [
    "AttributeDict",
    "clean_namespace",
    "get_value",
    "holders_of",
    "is_picklable",
    "lightning_getattr",
    "lightning_hasattr",
    "lightning_setattr",
    "save_hyperparameters",
    "set_value",
]


def lightning_hasattr(model: Any, attribute: str) -> bool:
    """Whether the module, its hyperparameters, or the datamodule of its trainer and its hyperparameters have it."""
    return bool(holders_of(attribute, model, _datamodule_of(model)))


def lightning_getattr(model: Any, attribute: str) -> Any:
    """The value of an attribute, from the last that has it of: module, hyperparameters, datamodule, hyperparameters.

    Raises:
        AttributeError: None of them has it.
    """
    return get_value(_holders(model, attribute)[-1], attribute)


def lightning_setattr(model: Any, attribute: str, value: Any) -> None:
    """Sets an attribute on all that have it of: the module, its hyperparameters, the datamodule, its hyperparameters.

    Raises:
        AttributeError: None of them has it.
    """
    for holder in _holders(model, attribute):
        set_value(holder, attribute, value)


def holders_of(attribute: str, *owners: Any) -> list[Any]:
    """Those of the owners (None is left out) and of their hyperparameters that have the attribute."""
    found = []
    for owner in owners:
        if owner is not None and hasattr(owner, attribute):
            found.append(owner)
        hparams = getattr(owner, "hparams", None)
        if hparams is not None and _has(hparams, attribute):
            found.append(hparams)
    return found


def get_value(holder: Any, attribute: str) -> Any:
    """The value of an attribute of an object, or of an entry of hyperparameters."""
    return holder[attribute] if isinstance(holder, Mapping) else getattr(holder, attribute)


def set_value(holder: Any, attribute: str, value: Any) -> None:
    """Sets an attribute of an object, or an entry of hyperparameters."""
    if isinstance(holder, Mapping):
        holder[attribute] = value  # type: ignore[index]
    else:
        setattr(holder, attribute, value)


def _has(hparams: Any, attribute: str) -> bool:
    return attribute in hparams if isinstance(hparams, Mapping) else hasattr(hparams, attribute)


def _datamodule_of(model: Any) -> Any:
    trainer = getattr(model, "_trainer", None)
    return None if trainer is None else trainer.datamodule


def _holders(model: Any, attribute: str) -> list[Any]:
    holders = holders_of(attribute, model, _datamodule_of(model))
    if not holders:
        raise AttributeError(
            f"{attribute!r} is neither in the module {type(model).__name__}, nor in the datamodule, nor in the"
            f" hyperparameters of either. Set it in `__init__`: `self.{attribute} = ...`."
        )
    return holders
