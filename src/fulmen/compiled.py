"""Compiled modules: what ``torch.compile`` makes of a LightningModule, made a LightningModule again, and back."""

from __future__ import annotations

import sys
from typing import Any

import torch

from fulmen.hooks import overrides
from fulmen.module import COMPILED, LightningModule

STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")
# They change the book or the parameters, of which a graph knows nothing.
OUTSIDE_OF_GRAPHS = ("log", "log_dict", "toggle_optimizer", "untoggle_optimizer", "manual_backward")


def is_optimized(model: Any) -> bool:
    """Whether ``torch.compile`` made this object. torch's compiler is not imported for the question."""
    compiler = sys.modules.get("torch._dynamo")
    return compiler is not None and isinstance(model, compiler.OptimizedModule)


def from_compiled(model: Any) -> LightningModule:
    """The LightningModule inside what ``torch.compile`` returned, its ``forward`` and its steps compiled.

    Args:
        model: The result of ``torch.compile(module)``.

    Raises:
        ValueError: It is not that, or ``module`` is not a LightningModule.
    """
    if not is_optimized(model):
        raise ValueError(
            f"`from_compiled` was given {type(model).__name__}; expected what `torch.compile(module)` returns."
        )
    module = model._orig_mod
    if not isinstance(module, LightningModule):
        raise ValueError(
            f"`from_compiled` was given a compiled {type(module).__name__}; expected a compiled LightningModule."
        )
    for name in STEPS:
        if name not in module.__dict__.get(COMPILED, ()) and overrides(module, name, LightningModule):
            _replace(module, name, model.dynamo_ctx(getattr(module, name)))
    keep_logging_out(module)
    return module


def to_uncompiled(model: Any) -> LightningModule:
    """Undoes ``from_compiled``.

    Args:
        model: What ``torch.compile`` or ``from_compiled`` returned.

    Returns:
        The module, with its own ``forward`` and steps.

    Raises:
        ValueError: It is not compiled.
        TypeError: It is no LightningModule.
    """
    module = model._orig_mod if is_optimized(model) else model
    if not isinstance(module, LightningModule):
        raise TypeError(f"`to_uncompiled` was given {type(module).__name__}; expected a compiled LightningModule.")
    if module is model and COMPILED not in module.__dict__:
        raise ValueError(
            f"`to_uncompiled` was given a {type(module).__name__} that is not compiled:"
            " `from_compiled(torch.compile(module))` makes such a one."
        )
    for name, before in module.__dict__.pop(COMPILED, {}).items():
        if before is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = before
    return module


def keep_logging_out(module: LightningModule) -> None:
    """Keeps ``self.log`` and its like out of the graphs, if a LightningModule in ``module`` is compiled.

    Only then, since it makes each call slower.
    """
    parts = list(module.modules())
    modules = [part for part in parts if isinstance(part, LightningModule)]
    if not any(map(_is_compiled, modules)) and not any(_holds_module(part) for part in parts):
        return
    for part in modules:
        for name in OUTSIDE_OF_GRAPHS:
            if name not in part.__dict__.get(COMPILED, ()):
                _replace(part, name, torch.compiler.disable(getattr(part, name)))  # type: ignore[no-untyped-call]


def _holds_module(part: Any) -> bool:
    return is_optimized(part) and isinstance(part._orig_mod, LightningModule)


def _is_compiled(module: LightningModule) -> bool:
    functions = [module._compiled_call_impl, *(getattr(module, name, None) for name in STEPS)]
    return any(hasattr(function, "_torchdynamo_orig_callable") for function in functions)


def _replace(module: LightningModule, name: str, function: Any) -> None:
    """Puts a function in the place of a method, and remembers what was there: None if it was the class's."""
    module.__dict__.setdefault(COMPILED, {}).setdefault(name, module.__dict__.get(name))
    module.__dict__[name] = function
