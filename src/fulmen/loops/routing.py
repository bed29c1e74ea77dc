"""Which way a step takes: straight to the user's method, or through a strategy that overrides it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fulmen.fabric.precision import Precision
from fulmen.fabric.strategies.base import Strategy, overrides


def route(strategy: Strategy, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """``work`` itself, or the strategy's own method ``name``, whose ``super()`` call does the work."""
    if not overrides(strategy, name):
        return work
    strategy.bind(name, work)
    method: Callable[..., Any] = getattr(strategy, name)
    return method


def route_backward(strategy: Strategy, backward: Callable[..., Any], optimizer: Any) -> Callable[..., Any]:
    """The backward pass with what a strategy does before, after or instead of it."""
    run = backward
    if overrides(strategy, "pre_backward") or overrides(strategy, "post_backward"):

        def between(loss: Any, *args: Any, **kwargs: Any) -> None:
            strategy.pre_backward(loss)
            backward(loss, *args, **kwargs)
            strategy.post_backward(loss)

        run = between
    if not overrides(strategy, "backward"):
        return run
    strategy.bind("backward", lambda loss, optimizer, *args, **kwargs: run(loss, *args, **kwargs))
    return lambda loss, *args, **kwargs: strategy.backward(loss, optimizer, *args, **kwargs)


def route_loss(precision: Precision, module: Any, backward: Callable[..., Any]) -> Callable[..., Any]:
    """The backward pass, of the loss that a precision's own ``pre_backward`` makes of the given one."""
    if not overrides(precision, "pre_backward"):
        return backward

    def run(loss: Any, *args: Any, **kwargs: Any) -> None:
        changed = precision.pre_backward(loss, module)
        backward(loss if changed is None else changed, *args, **kwargs)

    return run


def route_gradients(
    precision: Precision, module: Any, optimizer: Any, gradients: Callable[..., Any]
) -> Callable[..., Any]:
    """What computes the gradients: ``gradients`` itself, or a precision's own ``backward``, and ``post_backward``."""
    run = gradients
    if overrides(precision, "backward"):

        def run(loss: Any, *args: Any, **kwargs: Any) -> None:
            precision.backward(loss, module, optimizer, *args, **kwargs)

    if not overrides(precision, "post_backward"):
        return run

    def run_and_tell(loss: Any, *args: Any, **kwargs: Any) -> None:
        run(loss, *args, **kwargs)
        precision.post_backward(loss, module)

    return run_and_tell
