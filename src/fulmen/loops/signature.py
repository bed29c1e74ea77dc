"""Which arguments a user's step takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def takes_batch_idx(step: Callable[..., Any]) -> bool:
    """Whether a step wants the index of the batch: a parameter of that name, or a second positional one."""
    parameters = inspect.signature(step).parameters
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    return "batch_idx" in parameters or len(positional) >= 2 or variadic


def takes_dataloader_idx(step: Callable[..., Any]) -> bool:
    """Whether a step or hook has a parameter ``dataloader_idx``, or takes any number of positional ones."""
    parameters = inspect.signature(step).parameters
    return "dataloader_idx" in parameters or any(p.kind is p.VAR_POSITIONAL for p in parameters.values())


def requires_dataloader_idx(step: Callable[..., Any]) -> bool:
    """Whether ``dataloader_idx`` is a parameter without a default."""
    parameter = inspect.signature(step).parameters.get("dataloader_idx")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def takes_dataloader_iter(step: Callable[..., Any] | None) -> bool:
    """Whether a step draws its batches itself: a parameter of exactly this name."""
    return step is not None and "dataloader_iter" in inspect.signature(step).parameters


def requires_optimizer_idx(step: Callable[..., Any]) -> bool:
    """Whether a step has the parameter ``optimizer_idx`` of older versions."""
    return "optimizer_idx" in inspect.signature(step).parameters
