"""One training step: what happens with a batch between its start and its end hooks.

Which class does it is decided once per run (``choose_step``): ``AutomaticStep`` is the plain sequence;
``ClosureStep`` wraps
the same parts into a closure, for optimizers that evaluate the loss themselves and modules that override
``optimizer_step``; ``ManualStep`` leaves everything to the user's ``training_step``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fulmen.errors import LossError
from fulmen.fabric.overriding import overrides as plugin_overrides
from fulmen.hooks import opened, overrides
from fulmen.loops.draws import drawing
from fulmen.loops.optimization.automatic import Closure, ClosureResult, split_output
from fulmen.loops.optimization.manual import ManualResult
from fulmen.loops.routing import route, route_backward, route_gradients, route_loss
from fulmen.loops.signature import takes_batch_idx, takes_dataloader_iter
from fulmen.loss import Loss, WeightedWindow
from fulmen.module import LightningModule
from fulmen.optim import needs_closure
from fulmen.ranks import WarningCache

if TYPE_CHECKING:
    from fulmen.loops.fit import FitLoop
    from fulmen.trainer import Trainer


class Step:
    """The parts of a training step, bound once: each is the user's or the strategy's method if there is one."""

    def __init__(self, trainer: Trainer, module: LightningModule, fit: FitLoop) -> None:
        self.trainer, self.module, self.fit = trainer, module, fit
        self.hooks, self.book = trainer.hooks, trainer.book
        self.strategy, self.precision = trainer.strategy, trainer.precision_plugin
        self.page = self.book.page_of("training_step")
        self.training_step = self._bind_training_step()
        self.optimizer = self.strategy.optimizers[0] if self.strategy.optimizers else None
        self.gradients = self._bind_backward()
        self.scales = self.precision.scales_loss
        self.extras: dict[str, Any] = {}
        self.window = WeightedWindow(self.strategy.reduce if self.strategy.world_size > 1 else None)
        self._warned = WarningCache()

    def train(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Trains on one batch.

        Returns:
            What ``on_train_batch_end`` gets as ``outputs``.
        """
        raise NotImplementedError

    def _bind_training_step(self) -> Callable[..., Any]:
        module = self.module
        step = self.precision.wrap_forward(
            self.strategy.wrap_step(module.training_step, training=True), "train_step_context"
        )
        step = route(self.strategy, "training_step", step)
        if takes_dataloader_iter(module.training_step):
            return drawing(step)
        if takes_batch_idx(module.training_step):
            return step
        return lambda batch, batch_idx: step(batch)

    def _bind_backward(self) -> Callable[..., Any]:
        optimizer = self.optimizer if self.module.automatic_optimization else None
        own = overrides(self.module, "backward", LightningModule)
        compute = self.module.backward if own else Tensor.backward
        run = route_gradients(self.precision, self.module, optimizer, compute)
        return run if run is Tensor.backward else opened(self.book, "backward", run)

    # ------------------------------------------------------------------------------------------------ parts

    def weigh(self, output: Any, opens_window: bool) -> Tensor | None:
        """The tensor to call backward on, for an output that is not a tensor."""
        loss = self.unpack(output)
        accumulate = self.trainer.accumulate_grad_batches
        if isinstance(loss, Loss):
            if accumulate > 1 and self.strategy.handles_gradient_accumulation:
                raise LossError(
                    f"`training_step` returned a `Loss`, and {type(self.strategy).__name__} accumulates by itself, with"
                    f" equal weights for {accumulate} batches. Type: accumulate_grad_batches=1, or return a tensor.",
                    subject=loss,
                )
            if opens_window:
                self.window.clear()
            return self.window.take(loss)
        return loss if loss is None or accumulate == 1 else loss / accumulate

    def unpack(self, output: Any) -> Tensor | Loss | None:
        """The loss in an output that is not a tensor; what else it holds is kept for ``outputs``."""
        self.extras = {}
        if output is None:
            if self.trainer.world_size > 1:
                raise LossError(
                    "`training_step` returned None, which skips the batch on this process only: the others would wait"
                    " for its gradients. Return `loss * 0` instead."
                )
            self._warned.warn(
                "`training_step` returned None: the batch is skipped. If that is not meant, return the loss."
            )
            return None
        loss, self.extras = split_output(output, f"{type(self.module).__name__}.training_step")
        return loss

    def bind_zero_grad(self) -> Callable[[], None]:
        """``optimizer.zero_grad``, or the module's ``optimizer_zero_grad`` if it is overridden."""
        optimizer = self.optimizer
        assert optimizer is not None
        if not overrides(self.module, "optimizer_zero_grad", LightningModule):
            return optimizer.zero_grad
        own = opened(self.book, "optimizer_zero_grad", self.module.optimizer_zero_grad)
        return lambda: own(self.trainer.current_epoch, self.fit.batch_idx, optimizer)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass with its hooks."""
        if self.scales:
            loss = self.precision.scale_loss(loss)
        for call in self.hooks.on_before_backward:
            call(loss)
        self.gradients(loss, *args, **kwargs)
        for call in self.hooks.on_after_backward:
            call()

    def before_update(self, loss: Tensor | None) -> None:
        """Everything between the gradients and the optimizer's step: unscaling, hooks, clipping."""
        if self.scales and loss is not None:
            self.precision.unscale_gradients(self.optimizer)
        if self.window:
            self.window.correct(self.precision.main_params(self.optimizer))
        for call in self.hooks.on_before_optimizer_step:
            call(self.optimizer)
        for call in self.clip:
            call(self.optimizer)

    def bind_clipping(self) -> tuple[Callable[[Any], None], ...]:
        """Who clips: nobody if there is no limit and nothing is overridden."""
        trainer, module = self.trainer, self.module
        own = overrides(module, "configure_gradient_clipping", LightningModule)
        own = own or overrides(module, "clip_gradients", LightningModule)
        if not (own or trainer.gradient_clip_val or plugin_overrides(self.precision, "clip_gradients")):
            return ()
        clip = opened(self.book, "configure_gradient_clipping", module.configure_gradient_clipping)

        def call(optimizer: Any) -> None:
            clip(
                optimizer,
                gradient_clip_val=trainer.gradient_clip_val,
                gradient_clip_algorithm=trainer.gradient_clip_algorithm,
            )

        return (call,)

    def outputs(self, loss: Tensor | None) -> dict[str, Any]:
        """What ``on_train_batch_end`` gets."""
        extras, self.extras = self.extras, {}
        return {} if loss is None else {"loss": loss.detach().clone(), **extras}

    clear_gradients: Callable[[], None]
    clip: tuple[Callable[[Any], None], ...] = ()


class AutomaticStep(Step):
    """training_step; zero_grad; backward; clip; step."""

    def __init__(self, trainer: Trainer, module: LightningModule, fit: FitLoop) -> None:
        super().__init__(trainer, module, fit)
        self.clear_gradients = self.bind_zero_grad()
        self.clip = self.bind_clipping()
        optimizer = self.optimizer
        assert optimizer is not None
        self.update = partial(self.precision.optimizer_step, optimizer) if self.scales else optimizer.step
        # What has nothing to do is left out here, once, so that the step below need not ask.
        hooks = self.hooks
        plain = not (self.scales or hooks.on_before_backward or hooks.on_after_backward)
        backward = route_loss(self.precision, module, self.gradients if plain else self.backward)
        self.run_backward = route_backward(self.strategy, backward, optimizer)
        self.prepares_update = bool(self.scales or hooks.on_before_optimizer_step or self.clip)
        self.reports = bool(hooks.on_train_batch_end)
        self.always_syncs = self.strategy.world_size == 1

    def train(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Trains on one batch, and steps the optimizer if the window of accumulated batches closes with it."""
        if self.fit.closes:
            loss = self.gradient(batch, batch_idx)
            if self.prepares_update or self.window:
                self.before_update(loss)
            if loss is not None or not self.scales:
                self.update()
            self.fit.global_step += 1
        elif self.always_syncs:
            loss = self.gradient(batch, batch_idx)
        else:
            with self.strategy.no_backward_sync(self.module, enabled=True):
                loss = self.gradient(batch, batch_idx)
        return self.outputs(loss) if self.reports else {}

    def gradient(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Forward and backward of one batch; the window's first batch sets the gradients to zero in between."""
        accumulate = self.trainer.accumulate_grad_batches
        self.book.page = self.page
        output = self.training_step(batch, batch_idx)
        if isinstance(output, Tensor):
            loss: Tensor | None = output if accumulate == 1 else output / accumulate
        else:
            loss = self.weigh(output, batch_idx % accumulate == 0)
        if loss is not None and not loss.requires_grad:
            raise no_gradient(self.module, loss, batch_idx)
        if batch_idx % accumulate == 0:
            for call in self.hooks.on_before_zero_grad:
                call(self.optimizer)
            self.clear_gradients()
        if loss is not None:
            self.run_backward(loss)
        return loss


class ClosureStep(AutomaticStep):
    """The same parts as a closure, called by the optimizer or by the module's ``optimizer_step``."""

    def __init__(self, trainer: Trainer, module: LightningModule, fit: FitLoop) -> None:
        super().__init__(trainer, module, fit)
        self.lightning_optimizer = trainer.lightning_optimizers[0]
        run_step = route(self.strategy, "optimizer_step", self.run_step)
        self.lightning_optimizer.connect(run_step)
        self.user_step = opened(self.book, "optimizer_step", module.optimizer_step)

    def train(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Trains on one batch; the optimizer calls back for the loss if the window closes with it."""
        if not self.fit.closes:
            return super().train(batch, batch_idx)
        closure = Closure(partial(self.evaluate, batch, batch_idx))
        self.user_step(self.trainer.current_epoch, batch_idx, self.lightning_optimizer, closure)
        result = closure.consume_result()
        self.fit.global_step += 1
        return result.asdict()

    def evaluate(self, batch: Any, batch_idx: int) -> ClosureResult:
        """Forward and backward; logging goes on afterwards on the page of who called for it."""
        page = self.book.page
        loss = self.gradient(batch, batch_idx)
        self.book.page = page
        extras, self.extras = self.extras, {}
        return ClosureResult(loss, extras)

    def run_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """The real step, with hooks and clipping between the closure and the update."""

        def evaluate() -> Any:
            loss = closure()
            page = self.book.page
            self.before_update(loss if isinstance(loss, Tensor) else None)
            self.book.page = page
            return loss

        if plugin_overrides(self.precision, "optimizer_step"):
            return self.precision.optimizer_step(optimizer, model=self.module, closure=evaluate, **kwargs)
        if not self.scales:
            return optimizer.step(evaluate, **kwargs)
        loss = evaluate()
        return self.precision.optimizer_step(optimizer, **kwargs) if loss is not None else None


class ManualStep(Step):
    """Calls ``training_step``; optimizers, gradients and schedulers are the user's."""

    def __init__(self, trainer: Trainer, module: LightningModule, fit: FitLoop) -> None:
        super().__init__(trainer, module, fit)
        run_step = route(self.strategy, "optimizer_step", self.run_step)
        for optimizer in trainer.lightning_optimizers:
            optimizer.connect(run_step, self.count)
        self.run_backward = route_backward(self.strategy, route_loss(self.precision, module, super().backward), None)

    def train(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Calls ``training_step``; what it returns is only passed on to the hooks."""
        self.book.page = self.page
        return ManualResult.from_training_step_output(self.training_step(batch, batch_idx)).asdict()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass with its hooks, called through ``manual_backward`` in the middle of ``training_step``."""
        if isinstance(loss, Loss):
            raise LossError(
                "`manual_backward` was given a `Loss`, whose windows are those of automatic optimisation. Type:"
                " self.manual_backward(loss.mean)",
                subject=loss,
            )
        page = self.book.page
        self.run_backward(loss, *args, **kwargs)
        self.book.page = page

    def run_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """One optimizer's step, with its hooks."""

        def evaluate() -> Any:
            loss = closure()
            page = self.book.page
            if self.scales:
                self.precision.unscale_gradients(optimizer)
            for call in self.hooks.on_before_optimizer_step:
                call(optimizer)
            self.book.page = page
            return loss

        if plugin_overrides(self.precision, "optimizer_step"):
            return self.precision.optimizer_step(optimizer, model=self.module, closure=evaluate, **kwargs)
        if not self.scales:
            return optimizer.step(evaluate, **kwargs)
        evaluate()
        return self.precision.optimizer_step(optimizer, **kwargs)

    def count(self) -> None:
        """An optimizer has stepped."""
        self.fit.global_step += 1


class ForwardStep(Step):
    """Ends after ``training_step``: no backward pass, no update, whoever asks for one."""

    def __init__(self, trainer: Trainer, module: LightningModule, fit: FitLoop) -> None:
        super().__init__(trainer, module, fit)
        for optimizer in trainer.lightning_optimizers:
            optimizer.connect(_evaluate)

    def train(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Calls ``training_step``; returns its loss for the hooks."""
        self.book.page = self.page
        with self.strategy.no_backward_sync(self.module, enabled=True):
            output = self.training_step(batch, batch_idx)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        return {"loss": loss.detach()} if isinstance(loss, Tensor) else {}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """What ``manual_backward`` calls."""


def _evaluate(optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
    return closure()


def choose_step(trainer: Trainer, module: LightningModule, fit: FitLoop) -> Step:
    """The kind of step this run needs."""
    if not fit.updates:
        return ForwardStep(trainer, module, fit)
    if not module.automatic_optimization:
        return ManualStep(trainer, module, fit)
    plugins = (trainer.strategy, trainer.precision_plugin)
    own_step = overrides(module, "optimizer_step", LightningModule) or any(
        plugin_overrides(plugin, "optimizer_step") for plugin in plugins
    )
    if own_step or any(needs_closure(optimizer) for optimizer in trainer.strategy.optimizers):
        return ClosureStep(trainer, module, fit)
    return AutomaticStep(trainer, module, fit)


def no_gradient(module: LightningModule, loss: Tensor, batch_idx: int) -> LossError:
    """The error for a loss that autograd cannot follow back to the parameters."""
    trainable = sum(parameter.requires_grad for parameter in module.parameters())
    reason = (
        "Every parameter is frozen (`requires_grad=False`): unfreeze some, e.g. `self.unfreeze()`."
        if not trainable
        else "It was probably cut off by `.detach()`, `.item()`, `torch.no_grad()` or `torch.tensor(loss)`."
    )
    return LossError(
        f"The loss that `{type(module).__name__}.training_step` returned for batch {batch_idx} does not require grad"
        f" (shape {tuple(loss.shape)}, {loss.dtype}), so nothing can be learned from it. {reason}",
        subject=loss,
    )
