"""LambdaCallback: a callback made of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fulmen.callback import Callback

__all__ = ["LambdaCallback"]

Function = Callable[..., Any]


class LambdaCallback(Callback):
    """Calls the given functions on the hooks of their names; a hook that is not given costs nothing.

    Each function gets what the method of that name in ``Callback`` gets, without ``self``: the trainer, the module, and
    the arguments of the hook.

    Raises:
        TypeError: What is given for a hook cannot be called.
    """

    def __init__(
        self,
        setup: Function | None = None,
        teardown: Function | None = None,
        on_fit_start: Function | None = None,
        on_fit_end: Function | None = None,
        on_sanity_check_start: Function | None = None,
        on_sanity_check_end: Function | None = None,
        on_train_batch_start: Function | None = None,
        on_train_batch_end: Function | None = None,
        on_train_epoch_start: Function | None = None,
        on_train_epoch_end: Function | None = None,
        on_validation_epoch_start: Function | None = None,
        on_validation_epoch_end: Function | None = None,
        on_test_epoch_start: Function | None = None,
        on_test_epoch_end: Function | None = None,
        on_validation_batch_start: Function | None = None,
        on_validation_batch_end: Function | None = None,
        on_test_batch_start: Function | None = None,
        on_test_batch_end: Function | None = None,
        on_train_start: Function | None = None,
        on_train_end: Function | None = None,
        on_validation_start: Function | None = None,
        on_validation_end: Function | None = None,
        on_test_start: Function | None = None,
        on_test_end: Function | None = None,
        on_exception: Function | None = None,
        on_save_checkpoint: Function | None = None,
        on_load_checkpoint: Function | None = None,
        on_before_backward: Function | None = None,
        on_after_backward: Function | None = None,
        on_before_optimizer_step: Function | None = None,
        on_before_zero_grad: Function | None = None,
        on_predict_start: Function | None = None,
        on_predict_end: Function | None = None,
        on_predict_batch_start: Function | None = None,
        on_predict_batch_end: Function | None = None,
        on_predict_epoch_start: Function | None = None,
        on_predict_epoch_end: Function | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self._listen(given)

    def _listen(self, given: dict[str, Any]) -> None:
        for hook, function in given.items():
            if function is None:
                continue
            if not callable(function):
                raise TypeError(
                    f"`LambdaCallback({hook}={function!r})`: expected a function, for instance"
                    f" `{hook}=lambda trainer, module, *args: ...`."
                )
            setattr(self, hook, function)
