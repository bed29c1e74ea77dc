"""What a strategy is: how a module is spread over devices, for a Trainer and for `Fabric` alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from fulmen.fabric.overriding import overrides, plain
from fulmen.fabric.precision import Precision
from fulmen.fabric.strategies.steps import StrategySteps
from fulmen.tree import move

if TYPE_CHECKING:
    from fulmen.checkpoint.store import CheckpointIO
    from fulmen.fabric.accelerators import Accelerator
    from fulmen.fabric.layer_sync import LayerSync
    from fulmen.fabric.watch.leaving import Leaving

__all__ = ["Strategy", "overrides", "plain"]

F = TypeVar("F", bound=Callable[..., Any])

_NOTHING: AbstractContextManager[None] = nullcontext()


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


class Strategy(StrategySteps):
    """How a module is spread over devices: moves and wraps it, and owns the collectives and what is saved.

    What it does in the loop of a Trainer is inherited from `StrategySteps`.

    Args:
        accelerator: Kind of the devices; None is filled in when the plan is made.
        checkpoint_io: Writes and reads checkpoints; None for files written by `torch.save`.
        precision_plugin: In which precision the module computes; None for 32 bit.
        precision: The same, under the name it has for `Fabric`.

    Attributes:
        layer_sync: Makes layers share their statistics in a fit of several processes; None without.
        fills_meta_modules: Whether modules may be set up whose parameters are on the meta device.
        wraps_in_place: Whether `setup_module` gives back the module itself though its calls do more from then on.
        needs_equal_batches: Whether evaluation has to go through `in_step`.
        needs_configure_model: Whether it is the module that spreads itself, in `configure_model`.
        allows_inference_mode: Whether parameters that were used in inference mode can be trained afterwards.
        place: Says where the run is, for reports of processes that do not go on.
    """

    strategy_name: ClassVar[str] = ""
    fills_meta_modules: ClassVar[bool] = False
    wraps_in_place: ClassVar[bool] = False
    needs_equal_batches: ClassVar[bool] = False
    needs_configure_model: ClassVar[bool] = False
    allows_inference_mode: ClassVar[bool] = True

    global_rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    world_size: int = 1
    layer_sync: LayerSync | None = None
    place: Callable[[], str] = str

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        precision: Precision | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._checkpoint_io = checkpoint_io
        self._precision_plugin = precision_plugin if precision is None else precision
        self._lightning_module: Any = None
        self._model: nn.Module | None = None
        self._optimizers: list[Optimizer] = []
        self.lr_scheduler_configs: list[Any] = []
        self._bound: dict[str, Callable[..., Any]] = {}

    # Parts

    @classmethod
    def precision_for(cls, name: str) -> Precision | None:
        """The precision that this strategy needs in the place of the regular one of that name; None for that one."""
        return None

    @classmethod
    def register_strategies(cls, strategy_registry: Any) -> None:
        """Put this class into a registry, under the names it has in `StrategyRegistry`.

        Args:
            strategy_registry: Has `register(name, cls, description, **arguments)`; names that it knows stay.
        """
        from fulmen.fabric.strategies.registry import StrategyRegistry

        for name, entry in StrategyRegistry.entries_of(cls):
            if name not in strategy_registry:
                strategy_registry.register(name, cls, entry.description, **entry.init_params)

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
    def precision(self) -> Precision:
        """The `precision_plugin`, under the name it has for `Fabric`."""
        return self.precision_plugin

    @precision.setter
    def precision(self, precision: Precision | None) -> None:
        self.precision_plugin = precision

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """Writes and reads checkpoints."""
        if self._checkpoint_io is None:
            from fulmen.checkpoint.store import TorchCheckpointIO

            self._checkpoint_io = TorchCheckpointIO()
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, checkpoint_io: CheckpointIO | None) -> None:
        if getattr(checkpoint_io, "checkpoint_io", checkpoint_io) is None:  # it wraps another, not said which: ours
            checkpoint_io.checkpoint_io = self.checkpoint_io  # type: ignore[union-attr]
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
    def saves_together(self) -> bool:
        """Whether the state of the run is spread over the processes, so that all have to take part in saving it."""
        return False

    @property
    def leaving(self) -> Leaving | None:
        """Through which all processes come to leave a run together; None where each leaves by itself."""
        return None

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Whether the strategy counts the micro-batches of a window by itself."""
        return False

    # Collectives

    @abstractmethod
    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """The mean, sum or other reduction of a tensor over all processes."""

    def all_reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """As `reduce`; a loop of the user's own asks for this."""
        return self.reduce(tensor, group, reduce_op)

    @abstractmethod
    def barrier(self, name: str | None = None) -> None:
        """Wait until all processes are here."""

    def wait_long(self, name: str) -> None:
        """As `barrier`, with no limit in time: for what one process does once, such as a download."""
        self.barrier(name)

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
        self.module_to_device(self.model)

    def module_to_device(self, module: nn.Module) -> None:
        """Move a module to the device of this process, in place."""
        module.to(self.root_device)

    def setup_module_and_optimizers(
        self, module: nn.Module, optimizers: list[Optimizer], scheduler: Any = None, move_to_device: bool = True
    ) -> tuple[nn.Module, list[Optimizer], Any]:
        """`setup_module` and `setup_optimizer` at once, for strategies that make one thing of them.

        Args:
            module: Any module.
            optimizers: Optimizers of its parameters.
            scheduler: A learning rate scheduler, or None.
            move_to_device: False if the module is where it should be.

        Returns:
            The module to call, the optimizers, the scheduler.
        """
        module = self.setup_module(module, move_to_device)
        return module, [self.setup_optimizer(optimizer) for optimizer in optimizers], scheduler

    def setup_module(self, module: nn.Module, move_to_device: bool = True) -> nn.Module:
        """Bring a module into the precision and to the device, and wrap it where the strategy needs that.

        Args:
            module: Any module.
            move_to_device: False if it is where it should be.

        Returns:
            The module to call; the very same on one device.
        """
        module = self.precision_plugin.convert_module(module)
        if move_to_device:
            self.module_to_device(module)
        return module

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Wrap an optimizer where the strategy needs that; its module is set up already.

        Raises:
            MisconfigurationException: It cannot work in this precision.
        """
        self.precision_plugin.check_optimizer(optimizer)
        return optimizer

    @plain
    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Context in which backward passes do not exchange gradients between processes."""
        return _NOTHING

    def wrap_step(self, fn: F, training: bool = False) -> F:
        """A step method of the user's, led through the wrapper of the module; itself where there is none.

        Args:
            fn: The method.
            training: Whether it is the `training_step`.
        """
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

    def module_sharded_context(self) -> AbstractContextManager[Any]:
        """As `model_sharded_context`, under the name it has for `Fabric`."""
        return self.model_sharded_context()

    def copy_for_average(self, module: nn.Module) -> nn.Module:
        """A module with the same parameters and buffers, of which `copy.deepcopy` makes a second set."""
        return module

    def in_step(self, batches: Iterator[Any], num_batches: int | float) -> Iterator[Any]:
        """Batches of an evaluation, where the processes have to run equally many steps; see `needs_equal_batches`.

        Args:
            batches: Those of this process.
            num_batches: Their number; infinity if it is not known.
        """
        return batches

    def any_batches(self, has_batches: bool) -> bool:
        """Whether an evaluation is run, given whether there are batches for this process."""
        return has_batches

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

    def get_optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As `optimizer_state`, also of an optimizer that `Fabric` has set up."""
        return self.optimizer_state(getattr(optimizer, "optimizer", optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load "optimizer_states" of a checkpoint; each tensor goes to the device of its parameter."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            self.load_optimizer_state(optimizer, state)

    def load_optimizer_state(self, optimizer: Optimizer, state: Any) -> None:
        """Load a state that `optimizer_state` gave, or one of a single device."""
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
        return self.precision_plugin.clip_norm(parameters, max_norm, norm_type, is_error)

    def clip_gradients_value(self, module: nn.Module, optimizer: Optimizer, clip_val: float | int) -> None:
        """Clip each element of the gradients of the optimizer's parameters to [-clip_val, clip_val]."""
        self.precision_plugin.check_clipping(optimizer)
        self.precision_plugin.unscale_gradients(optimizer)
        self.precision_plugin.clip_value(self.precision_plugin.main_params(optimizer), clip_val)

    # The run of a Trainer

    def connect(self, model: Any) -> None:
        """Take over the user's module."""
        self._lightning_module = model
        self._model = model

    def setup(self, trainer: Any) -> None:
        """Bring the connected module into the precision and to its device; in a fit make the optimizers, too."""
        if self.accelerator is not None:
            self.accelerator.setup(trainer)
        if self.layer_sync is not None and self.world_size > 1 and trainer.state.fn == "fit":
            self.model = self.layer_sync.apply(self.model)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        self.prepare_model(trainer)
        if trainer.state.fn == "fit":
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def prepare_model(self, trainer: Any) -> None:
        """Wrap the connected module, which is on its device, before the optimizers are made."""

    def follow_trainable(self) -> bool:
        """Wrap the module anew if parameters were frozen or unfrozen since it was wrapped; whether that was done."""
        return False

    def setup_optimizers(self, trainer: Any) -> None:
        """Make the optimizers and schedulers: the trainer sets `optimizers` and `lr_scheduler_configs`."""
        trainer._configure_optimizers()
        for optimizer in self.optimizers:
            self.precision_plugin.check_optimizer(optimizer)

    def setup_precision_plugin(self) -> None:
        """Show module, optimizers and schedulers to the precision, which may replace them."""
        connected = self.precision_plugin.connect(self.model, self.optimizers, self.lr_scheduler_configs)
        self.model, self.optimizers, self.lr_scheduler_configs = connected

    def teardown(self) -> None:
        """Bring module and optimizers back to the CPU, give the devices back, and wait for what is being saved."""
        if self.layer_sync is not None and self.world_size > 1 and self.lightning_module is not None:
            self._lightning_module = self.layer_sync.revert(self.lightning_module)
        if self.root_device.type != "cpu":
            self._to_cpu()
        self.precision_plugin.teardown()
        if self.accelerator is not None:
            self.accelerator.teardown()
        if self._checkpoint_io is not None:
            self._checkpoint_io.teardown()

    def _to_cpu(self) -> None:
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                state.update(move(state, torch.device("cpu")))
        if self.lightning_module is not None:
            self.lightning_module.cpu()

    def explain(self, error: BaseException) -> BaseException:
        """The exception that ended a run, or a better one in its place."""
        return error
