"""Questions about modules, datamodules and callbacks."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from fulmen.callback import Callback
from fulmen.datamodule import LightningDataModule
from fulmen.extras import need
from fulmen.module import LightningModule

__all__ = ["get_torchvision_model", "is_overridden"]


def is_overridden(method_name: str, instance: object | None = None, parent: type[object] | None = None) -> bool:
    """Whether an object has another implementation of a method than its parent class.

    Args:
        method_name: The method.
        instance: The object; None has none. What was assigned to it counts, also through `functools.partial`,
            `functools.wraps` or a mock that wraps the method.
        parent: The class to compare with; default LightningModule, LightningDataModule or Callback, as fits.

    Raises:
        ValueError: There is no class to compare with, or it lacks the method.
    """
    if instance is None:
        return False
    if parent is None:
        parent = next((k for k in (LightningModule, LightningDataModule, Callback) if isinstance(instance, k)), None)
    if parent is None:
        raise ValueError(
            f"`is_overridden({method_name!r}, ...)` was given a {type(instance).__name__} and no class to compare with."
            " Give it: `parent=...`."
        )
    own = getattr(instance, method_name, None)
    if own is None:
        return False
    base = getattr(parent, method_name, None)
    if base is None:
        raise ValueError(f"`is_overridden({method_name!r}, ...)`: `{parent.__name__}` has no such method.")
    return bool(_code_of(own) != _code_of(base))


def _code_of(method: Any) -> Any:
    """The code that runs in the end; an object without code stands for itself."""
    while True:
        if isinstance(method, functools.partial):
            method = method.func
        elif (wrapped := getattr(method, "_mock_wraps", None) or getattr(method, "__wrapped__", None)) is not None:
            method = wrapped
        else:
            return getattr(method, "__code__", method)


def get_torchvision_model(model_name: str, **kwargs: Any) -> nn.Module:
    """A model of torchvision.

    Args:
        model_name: Its name there, for instance "resnet18".
        **kwargs: Passed on to it, for instance `weights`.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    model: nn.Module = need("torchvision.models").get_model(model_name, **kwargs)
    return model
