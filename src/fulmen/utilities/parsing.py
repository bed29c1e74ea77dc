"""Attributes that a setting may live in: on the module, on the datamodule, or among the hyperparameters of either.

And the arguments of `__init__`, from which hyperparameters are made.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import FrameType
from typing import Any

from fulmen.hparams import AttributeDict, arguments_in, clean_namespace, is_picklable, save_hyperparameters

__all__ = [
    "AttributeDict",
    "clean_namespace",
    "collect_init_args",
    "get_init_args",
    "get_value",
    "holders_of",
    "is_picklable",
    "lightning_getattr",
    "lightning_hasattr",
    "lightning_setattr",
    "parse_class_init_keys",
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


def get_init_args(frame: FrameType) -> dict[str, Any]:
    """The arguments of the method that runs in ``frame``, without ``self``; nothing if it does not call ``super()``."""
    return arguments_in(frame) if "__class__" in frame.f_locals else {}


def collect_init_args(
    frame: FrameType | None,
    path_args: list[dict[str, Any]],
    inside: bool = False,
    classes: type | tuple[type, ...] = (),
) -> list[dict[str, Any]]:
    """The arguments of ``frame`` and of the methods around it that call ``super()``, from the inside out.

    Args:
        frame: Where to begin.
        path_args: What was found before; it is added to.
        inside: Whether such a method was found before, so that the first other one ends the search.
        classes: Only methods of these classes count; default all.
    """
    while frame is not None:
        cls = frame.f_locals.get("__class__")
        if isinstance(cls, type) and (not classes or issubclass(cls, classes)):
            path_args.append(get_init_args(frame))
            inside = True
        elif inside:
            break
        frame = frame.f_back
    return path_args


def parse_class_init_keys(cls: type) -> tuple[str, str | None, str | None]:
    """How ``cls.__init__`` calls the object, ``*args`` and ``**kwargs``; None for what it does not take."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())  # type: ignore[misc]
    args = next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), None)
    kwargs = next((each.name for each in parameters if each.kind is each.VAR_KEYWORD), None)
    return parameters[0].name, args, kwargs
