"""What a strategy is: how a module is spread over devices, for a Trainer and for `Fabric` alike."""

# ruff: noqa: B027 - most hooks of a strategy are empty, and none has to be overridden

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from fulmen.fabric.precision import Precision
from fulmen.tree import move

if TYPE_CHECKING:
    from fulmen.checkpoint.store import CheckpointIO
    from fulmen.fabric.accelerators import Accelerator

__all__ = ["Strategy", "overrides", "plain"]

F = TypeVar("F", bound=Callable[..., Any])

_NOTHING: AbstractContextManager[None] = nullcontext()


def plain(method: F) -> F:
    """Mark a method of a strategy as one that does nothing beyond the regular work, so that a loop may pass it by."""
    method._plain = method  # type: ignore[attr-defined]  # itself, as `functools.wraps` copies attributes
    return method


def overrides(strategy: Strategy, name: str) -> bool:
    """Whether the strategy does something of its own in `name`, so that a loop has to go through it.

    Args:
        strategy: The strategy.
        name: A method that is `plain` in `Strategy`: "training_step", "backward", "on_train_start", ...
    """
    method = getattr(type(strategy), name)
    return name in vars(strategy) or getattr(method, "_plain", None) is not method


class _EmptyInit(TorchFunctionMode):
    """New parameters keep what their memory held, wherever a layer of torch would fill them with random numbers.

    Of `torch.nn.init`, the functions `uniform_`, `normal_`, `constant_` and `kaiming_uniform_` ask modes like this one.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


class Strategy(ABC):
    """How a module is spread over devices: moves and wraps it, and owns the collectives and what is saved.

    A loop gives the regular work of a step to `bind`; `super().training_step(...)` in a subclass then does that work.
    What a subclass does not override is not called at all in a loop (see `overrides`).

    Args:
        accelerator: Kind of the devices; None is filled in when the plan is made.
        checkpoint_io: Writes and reads checkpoints; None for files written by `torch.save`.
        precision_plugin: In which precision the module computes; None for 32 bit.
    """

    strategy_name: ClassVar[str] = ""

    global_rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    world_size: int = 1

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._checkpoint_io = checkpoint_io
        self._precision_plugin = precision_plugin
        self._lightning_module: Any = None
        self._model: nn.Module | None = None
        self._optimizers: list[Optimizer] = []
        self.lr_scheduler_configs: list[Any] = []
        self._bound: dict[str, Callable[..., Any]] = {}

    # Parts

    @property
    def accelerator(self) -> Accelerator | None:
        """Kind of the devices."""
        return self._accelerator

    @accelerator.setter
    def accelerator(self, accelerator: Accelerator | None) -> None:
        self._accelerator = accelerator

    @property
    def precision_plugin(self) -> Precision:
        """In which precision the module computes."""
        if self._precision_plugin is None:
            self._precision_plugin = Precision()
        return self._precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        self._precision_plugin = precision_plugin

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """Writes and reads checkpoints."""
        if self._checkpoint_io is None:
            from fulmen.checkpoint.store import TorchCheckpointIO

            self._checkpoint_io = TorchCheckpointIO()
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, checkpoint_io: CheckpointIO | None) -> None:
        self._checkpoint_io = checkpoint_io

    @property
    def lightning_module(self) -> Any:
        """The user's module, as it was connected; None before."""
        return self._lightning_module

    @property
    def model(self) -> Any:
        """The module as it runs: the user's, or what wraps it."""
        return self._model

    @model.setter
    def model(self, model: nn.Module | None) -> None:
        self._model = model

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers of the run."""
        return self._optimizers

    @optimizers.setter
    def optimizers(self, optimizers: Iterable[Optimizer]) -> None:
        self._optimizers = list(optimizers)

    @property
    @abstractmethod
    def root_device(self) -> torch.device:
        """The device of this process."""

    @property
    @abstractmethod
    def is_global_zero(self) -> bool:
        """Whether this is the process that speaks and writes for all."""

    @property
    def launcher(self) -> Any:
        """Starts the processes; None where none have to be started."""
        return None

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Whether a checkpoint is loaded into the wrapped rather than the bare module."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether the loop loads the optimizers' states, rather than `load_checkpoint`."""
        return True

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Whether the strategy counts the micro-batches of a window by itself."""
        return False

    # Collectives

    @abstractmethod
    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """The mean, sum or other reduction of a tensor over all processes."""

    @abstractmethod
    def barrier(self, name: str | None = None) -> None:
        """Wait until all processes are here."""

    @abstractmethod
    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """The object of the process of rank `src`."""

    @abstractmethod
    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """The tensors of all processes, stacked along a new first dimension where there are several."""

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all (or any) of the processes decided for it."""
        return decision

    # Devices, modules, optimizers

    def setup_environment(self) -> None:
        """Make this process ready: its device is made the current one."""
        if self.accelerator is not None:
            self.accelerator.setup_device(self.root_device)

    def model_to_device(self) -> None:
        """Move the connected module to the device of this process."""
        self.model.to(self.root_device)

    @plain
    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Move a batch: with the work bound by a loop (the user's transfer hooks), else plainly.

        Args:
            batch: Any nesting of tensors and objects with `.to(device)`.
            device: Where to; None for the device of this process.
            dataloader_idx: Which of several loaders it came from.
        """
        device = self.root_device if device is None else device
        if (transfer := self._bound.get("batch_to_device")) is not None:
            return transfer(batch, device, dataloader_idx)
        return move(batch, device)

    def setup_module(self, module: nn.Module, move_to_device: bool = True) -> nn.Module:
        """Bring a module into the precision and to the device, and wrap it where the strategy needs that.

        Args:
            module: Any module.
            move_to_device: False if it is where it should be.

        Returns:
            The module to call; the very same on one device.
        """
        module = self.precision_plugin.convert_module(module)
        return module.to(self.root_device) if move_to_device else module

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Wrap an optimizer where the strategy needs that; its module is set up already.

        Raises:
            MisconfigurationException: It cannot work in this precision.
        """
        self.precision_plugin.check_optimizer(optimizer)
        return optimizer

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Context in which backward passes do not exchange gradients between processes."""
        return _NOTHING

    def wrap_step(self, fn: F) -> F:
        """A step method of the user's, led through the wrapper of the module; itself where there is none."""
        return fn

    def process_dataloader(self, dataloader: Any) -> Any:
        """The loader as this strategy needs it."""
        return dataloader

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int] | None:
        """Arguments of the sampler that divides the data; None where nothing is divided."""
        return None

    def tensor_init_context(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Context in which new tensors are on the device and in the precision.

        Args:
            empty_init: Whether the time to fill new parameters with random numbers is saved.
        """
        return self._init_context(self.precision_plugin.tensor_init_context(), empty_init)

    def module_init_context(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Context in which new modules are on the device and in the precision; arguments as `tensor_init_context`."""
        return self._init_context(self.precision_plugin.module_init_context(), empty_init)

    @contextmanager
    def _init_context(self, precision: AbstractContextManager[Any], empty_init: bool | None) -> Iterator[None]:
        with self.root_device, precision, _EmptyInit() if empty_init else _NOTHING:
            yield

    def model_sharded_context(self) -> AbstractContextManager[Any]:
        """Context in which `configure_model` runs."""
        return _NOTHING

    # State

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The state of the connected module, as it is saved."""
        state: dict[str, Any] = self.lightning_module.state_dict()
        return state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load "state_dict" of a checkpoint into the connected module."""
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def get_module_state_dict(self, module: nn.Module) -> dict[str, Any]:
        """The state of a module that `setup_module` gave, as it is saved."""
        return module.state_dict()

    def load_module_state_dict(self, module: nn.Module, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Load a state into a module that `setup_module` gave."""
        module.load_state_dict(state_dict, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer, as it is saved."""
        return optimizer.state_dict()

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load "optimizer_states" of a checkpoint; each tensor goes to the device of its parameter."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, on the process that writes for all.

        Args:
            checkpoint: What is written.
            filepath: Where to.
            storage_options: Passed on to the `checkpoint_io`.
        """
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            checkpoint_path: Where it is.
            weights_only: As in `torch.load`; None for its default.
        """
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def remove_checkpoint(self, filepath: Any) -> None:
        """Delete a checkpoint, on the process that writes for all."""
        if self.is_global_zero:
            self.checkpoint_io.remove_checkpoint(filepath)

    # Clipping, for loops of the user's own

    def clip_gradients_norm(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        max_norm: float | int,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        """Scale the gradients of the optimizer's parameters down to a total norm; returns the norm before.

        A norm that is not finite is no error where the loss is scaled: the step will be skipped and the scale lowered.
        """
        self.precision_plugin.check_clipping(optimizer)
        self.precision_plugin.unscale_gradients(optimizer)
        parameters = self.precision_plugin.main_params(optimizer)
        is_error = error_if_nonfinite and self.precision_plugin.scaler is None
        return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, is_error)

    def clip_gradients_value(self, module: nn.Module, optimizer: Optimizer, clip_val: float | int) -> None:
        """Clip each element of the gradients of the optimizer's parameters to [-clip_val, clip_val]."""
        self.precision_plugin.check_clipping(optimizer)
        self.precision_plugin.unscale_gradients(optimizer)
        nn.utils.clip_grad_value_(self.precision_plugin.main_params(optimizer), clip_val)

    # The run of a Trainer

    def bind(self, name: str, function: Callable[..., Any]) -> None:
        """Give the work that the method `name` does unless a subclass does something else.

        Args:
            name: "training_step", "backward", "optimizer_step", "batch_to_device", ...
            function: Takes the arguments of that method.
        """
        self._bound[name] = function

    def _work(self, name: str) -> Callable[..., Any]:
        if name not in self._bound:
            raise RuntimeError(
                f"`{type(self).__name__}.{name}` was called outside of a run: no loop has given its work."
            )
        return self._bound[name]

    def connect(self, model: Any) -> None:
        """Take over the user's module."""
        self._lightning_module = model
        self._model = model

    def setup(self, trainer: Any) -> None:
        """Bring the connected module into the precision and to its device; in a fit make the optimizers, too."""
        if self.accelerator is not None:
            self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        if trainer.state.fn == "fit":
            self.setup_optimizers(trainer)

    def setup_optimizers(self, trainer: Any) -> None:
        """Make the optimizers and schedulers: the trainer sets `optimizers` and `lr_scheduler_configs`."""
        trainer._configure_optimizers()
        for optimizer in self.optimizers:
            self.precision_plugin.check_optimizer(optimizer)

    def teardown(self) -> None:
        """Bring module and optimizers back to the CPU and give the devices back."""
        if self.root_device.type != "cpu":
            for optimizer in self.optimizers:
                for state in optimizer.state.values():
                    state.update(move(state, torch.device("cpu")))
            if self.lightning_module is not None:
                self.lightning_module.cpu()
        self.precision_plugin.teardown()
        if self.accelerator is not None:
            self.accelerator.teardown()

    @plain
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The user's `training_step`, in the precision."""
        return self._work("training_step")(*args, **kwargs)

    @plain
    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """The user's `validation_step`, in the precision."""
        return self._work("validation_step")(*args, **kwargs)

    @plain
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """The user's `test_step`, in the precision."""
        return self._work("test_step")(*args, **kwargs)

    @plain
    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """The user's `predict_step`, in the precision."""
        return self._work("predict_step")(*args, **kwargs)

    @plain
    def pre_backward(self, closure_loss: Tensor) -> None:
        """Called before the gradients are computed."""

    @plain
    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Any:
        """Compute the gradients: with the work bound by a loop, else plainly, of the scaled loss.

        Args:
            closure_loss: The loss.
            optimizer: The optimizer they are for; None in a loop of the user's own.
            *args: Positional arguments of `Tensor.backward`.
            **kwargs: Keyword arguments of `Tensor.backward`.
        """
        if (work := self._bound.get("backward")) is not None:
            return work(closure_loss, optimizer, *args, **kwargs)
        self.pre_backward(closure_loss)
        self.precision_plugin.scale_loss(closure_loss).backward(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.post_backward(closure_loss)
        return closure_loss

    @plain
    def post_backward(self, closure_loss: Tensor) -> None:
        """Called after the gradients were computed."""

    @plain
    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any] | None = None, model: Any = None, **kwargs: Any
    ) -> Any:
        """Update the parameters: with the work bound by a loop, else as the precision does.

        Args:
            optimizer: The optimizer.
            closure: Computes the loss and the gradients; None if they are there already.
            model: The module; not needed on one device.
            **kwargs: Passed on to the work of the loop.
        """
        if (work := self._bound.get("optimizer_step")) is not None:
            return work(optimizer, closure, model, **kwargs)
        return self.precision_plugin.optimizer_step(optimizer, closure)

    @plain
    def on_train_start(self) -> None:
        """Called when training begins."""

    @plain
    def on_train_end(self) -> None:
        """Called when training ends."""

    @plain
    def on_validation_start(self) -> None:
        """Called when validation begins."""

    @plain
    def on_validation_end(self) -> None:
        """Called when validation ends."""

    @plain
    def on_test_start(self) -> None:
        """Called when the test begins."""

    @plain
    def on_test_end(self) -> None:
        """Called when the test ends."""

    @plain
    def on_predict_start(self) -> None:
        """Called when prediction begins."""

    @plain
    def on_predict_end(self) -> None:
        """Called when prediction ends."""

    @plain
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Called before each training step."""

    @plain
    def on_exception(self, exception: BaseException) -> None:
        """Called when the run ends by an exception."""
