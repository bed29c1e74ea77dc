"""`Fabric`: devices, precision, strategies and checkpoints for a training loop that the user owns."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fulmen.data.shard import sharded
from fulmen.errors import PossibleUserWarning
from fulmen.fabric.accelerators import Accelerator
from fulmen.fabric.errors import PlanError, PluginTypeError
from fulmen.fabric.plan import Plan, resolve
from fulmen.fabric.processes import Processes, is_using_cli
from fulmen.fabric.seed import pl_worker_init_function, seed_everything
from fulmen.fabric.state import collect, restore, restore_object
from fulmen.fabric.strategies import Strategy, overrides
from fulmen.fabric.wrappers import (
    BackwardGuard,
    _FabricDataLoader,
    _FabricModule,
    is_wrapped,
    unwrap,
    without_compile,
    wrap_optimizer,
)
from fulmen.ranks import rank_zero_deprecation, rank_zero_warn
from fulmen.tree import move, to_scalars

__all__ = ["Fabric"]

_CALLBACKS_GROUP = "lightning.fabric.callbacks_factory"


class Fabric(Processes):
    """Runs a training loop of the user's own on any device, in any precision.

    The environment variables LT_ACCELERATOR, LT_STRATEGY, LT_DEVICES, LT_NUM_NODES and LT_PRECISION win over the
    arguments.

    Example:
        ```python
        fabric = Fabric(accelerator="auto", precision="bf16-mixed")
        model, optimizer = fabric.setup(model, optimizer)
        loader = fabric.setup_dataloaders(loader)
        for x, y in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            fabric.backward(loss)
            optimizer.step()
        ```

    Args:
        accelerator: "auto", "cpu", "gpu", "cuda", "mps", or an `Accelerator`.
        strategy: "auto", a registered name, "dp", or a `Strategy`.
        devices: "auto", a number, or indices.
        num_nodes: Number of machines.
        precision: "32-true", "64-true", "16-mixed", "bf16-mixed", "16-true" or "bf16-true".
        plugins: One or several of `Precision`, `CheckpointIO`, `ClusterEnvironment`.
        callbacks: One or several objects whose methods `call` reaches.
        loggers: One or several loggers, for `log` and `log_dict`.

    Raises:
        ValueError, RuntimeError, TypeError: Settings that cannot work; see `fulmen.fabric.plan.resolve`.
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        strategy: str | Strategy = "auto",
        devices: list[int] | str | int = "auto",
        num_nodes: int = 1,
        precision: str | int | None = None,
        plugins: Any = None,
        callbacks: Any = None,
        loggers: Any = None,
    ) -> None:
        num_nodes = _from_environment("num_nodes", num_nodes, 1)
        self.plan: Plan = _resolve(
            accelerator=_from_environment("accelerator", accelerator, "auto"),
            strategy=_from_environment("strategy", strategy, "auto"),
            devices=_from_environment("devices", devices, "auto"),
            num_nodes=int(num_nodes) if isinstance(num_nodes, str) and num_nodes.isdigit() else num_nodes,
            precision=_from_environment("precision", precision, None),
            plugins=plugins,
        )
        if self.plan.layer_sync is not None:
            raise PluginTypeError(
                f"plugins={self.plan.layer_sync!r} is for a Trainer. In a loop of your own, convert the module before "
                "`setup`: model = fulmen.plugins.TorchSyncBatchNorm().apply(model)",
                subject=self.plan.layer_sync,
            )
        self._strategy = self.plan.strategy
        self._callbacks = _as_list(callbacks) + _external_callbacks()
        self._loggers = _as_list(loggers)
        self._guard = BackwardGuard()
        self._has_plain_backward = not self.plan.precision.changes_backward and not any(
            overrides(self._strategy, name) for name in ("pre_backward", "backward", "post_backward")
        )
        self._prepare_processes()

    # What and where this is

    @property
    def accelerator(self) -> Accelerator:
        """Kind of the devices."""
        return self.plan.accelerator

    @property
    def loggers(self) -> list[Any]:
        """All loggers."""
        return self._loggers

    @property
    def logger(self) -> Any:
        """The first logger; IndexError if there is none."""
        return self._loggers[0]

    # Set-up

    def setup(
        self,
        module: nn.Module,
        *optimizers: Optimizer,
        scheduler: Any = None,
        move_to_device: bool = True,
        _reapply_compile: bool = True,
    ) -> Any:
        """Bring a module into the precision, to the device and into the strategy, with its optimizers.

        Args:
            module: Any module; also one that `torch.compile` gave.
            *optimizers: Optimizers of its parameters.
            scheduler: A learning rate scheduler, for strategies that need it.
            move_to_device: False if the module is where it should be.

        Returns:
            The module, or a tuple of the module, the optimizers and (if given) the scheduler.

        Raises:
            ValueError: One of them is set up already.
            TypeError: Something else than an optimizer.
            RuntimeError: Parameters are on the meta device, without data; several devices, and the processes have not
                been launched.
        """
        self._require_launch()
        if is_wrapped(module):
            raise ValueError("This module is set up already: pass it only once to `setup`.")
        self._check_optimizers(optimizers, "setup")
        original = self._checked(module, move_to_device)
        forward_module, made, scheduler = self._strategy.setup_module_and_optimizers(
            original, list(optimizers), scheduler, move_to_device
        )
        wrapped = self._wrap_module(module, forward_module, _reapply_compile)
        wrapped_optimizers = [wrap_optimizer(optimizer, self._strategy, self._callbacks) for optimizer in made]
        if hasattr(wrapped.module, "_fabric_optimizers"):
            wrapped.module._fabric_optimizers = wrapped_optimizers  # type: ignore[assignment]
        self.call("on_after_setup", fabric=self, module=wrapped)
        result = [wrapped, *wrapped_optimizers, *([] if scheduler is None else [scheduler])]
        return tuple(result) if len(result) > 1 else wrapped

    def setup_module(self, module: nn.Module, move_to_device: bool = True, _reapply_compile: bool = True) -> Any:
        """As `setup`, for a module alone, whose optimizer will be made from what this returns.

        Args:
            module: Any module; also one that `torch.compile` gave.
            move_to_device: False if the module is where it should be.

        Raises:
            ValueError: It is set up already.
        """
        self._require_launch()
        if is_wrapped(module):
            raise ValueError("This module is set up already: pass it only once to `setup_module`.")
        forward_module = self._strategy.setup_module(self._checked(module, move_to_device), move_to_device)
        wrapped = self._wrap_module(module, forward_module, _reapply_compile)
        self.call("on_after_setup", fabric=self, module=wrapped)
        return wrapped

    def setup_optimizers(self, *optimizers: Optimizer) -> Any:
        """As `setup`, for optimizers of a module that is set up already.

        Returns:
            The optimizer, or a tuple if there are several.

        Raises:
            ValueError: No optimizer, or one that is set up already.
            TypeError: Something else than an optimizer.
            RuntimeError: Parameters are on the meta device, without data.
        """
        self._require_launch()
        if not optimizers:
            raise ValueError("`setup_optimizers` needs at least one optimizer.")
        self._check_optimizers(optimizers, "setup_optimizers")
        made = [self._strategy.setup_optimizer(optimizer) for optimizer in optimizers]
        wrapped = tuple(wrap_optimizer(optimizer, self._strategy, self._callbacks) for optimizer in made)
        return wrapped if len(wrapped) > 1 else wrapped[0]

    def _check_optimizers(self, optimizers: Sequence[Any], method: str) -> None:
        for index, optimizer in enumerate(optimizers):
            if is_wrapped(optimizer) or any(optimizer is other for other in optimizers[:index]):
                raise ValueError(f"This optimizer is set up already: pass it only once to `{method}`.")
            if not hasattr(optimizer, "param_groups"):
                raise TypeError(f"`{method}` takes optimizers, got {type(optimizer).__name__}.")
            _refuse_meta(parameter for group in optimizer.param_groups for parameter in group["params"])

    def _checked(self, module: nn.Module, move_to_device: bool) -> nn.Module:
        """The module, taken out of what `torch.compile` gave, if it can be moved."""
        original: nn.Module = getattr(module, "_orig_mod", module)
        if move_to_device:
            if not self._strategy.fills_meta_modules:
                _refuse_meta(original.parameters())
            _warn_of_several_devices(original)
        return original

    def _wrap_module(self, module: nn.Module, forward_module: nn.Module, reapply_compile: bool) -> _FabricModule:
        original: nn.Module = getattr(module, "_orig_mod", module)
        if module is not original and reapply_compile:
            # compiled again, with the same arguments, only if the strategy made another module of it
            forward_module = module if forward_module is original else type(module)(forward_module, module.dynamo_ctx)
        wrapped = _FabricModule(forward_module, self._strategy, original, self._guard)
        if isinstance(getattr(type(original), "fabric", None), property):  # a LightningModule, which lives above
            original.fabric = self  # type: ignore[assignment]
            original._fabric_optimizers = []  # type: ignore[assignment]
            if not any(original is callback for callback in self._callbacks):
                self._callbacks.append(original)
        return wrapped

    def setup_dataloaders(
        self, *dataloaders: DataLoader[Any], use_distributed_sampler: bool = True, move_to_device: bool = True
    ) -> Any:
        """Make loaders give their batches on the device.

        Args:
            *dataloaders: The loaders.
            use_distributed_sampler: Whether the data are shared out among the processes, where there are several. All
                get the same number of batches, for which some samples may come twice. Loaders that shuffle have to be
                iterated by all processes at once.
            move_to_device: False to leave the batches where they are.

        Returns:
            The loader, or a list if there are several.

        Raises:
            ValueError: No loader, or one that is set up already.
            TypeError: Not a `torch.utils.data.DataLoader`.
        """
        self._require_launch()
        if not dataloaders:
            raise ValueError("`setup_dataloaders` needs at least one loader.")
        for index, loader in enumerate(dataloaders):
            if is_wrapped(loader) or any(loader is other for other in dataloaders[:index]):
                raise ValueError("This loader is set up already: pass it only once to `setup_dataloaders`.")
            if not isinstance(loader, DataLoader):
                raise TypeError(
                    f"`setup_dataloaders` takes a `torch.utils.data.DataLoader`, got {type(loader).__name__}."
                )
        if use_distributed_sampler and (share := self._strategy.distributed_sampler_kwargs) is not None:
            dataloaders = tuple(sharded(loader, share["num_replicas"], share["rank"]) for loader in dataloaders)
        wrapped = [self._wrap_dataloader(loader, move_to_device) for loader in dataloaders]
        return wrapped if len(wrapped) > 1 else wrapped[0]

    def _wrap_dataloader(self, loader: DataLoader[Any], move_to_device: bool) -> _FabricDataLoader:
        if os.environ.get("PL_SEED_WORKERS") == "1" and loader.worker_init_fn is None:
            loader.worker_init_fn = functools.partial(pl_worker_init_function, rank=self.global_rank)
        return _FabricDataLoader(self._strategy.process_dataloader(loader), self.device if move_to_device else None)

    # The step

    def backward(self, tensor: Tensor, *args: Any, model: Any = None, **kwargs: Any) -> None:
        """Replaces `loss.backward()`: scales the loss where the precision needs that.

        Args:
            tensor: The loss.
            *args: Positional arguments of `Tensor.backward`.
            model: The module the loss came from, for strategies that need it.
            **kwargs: Keyword arguments of `Tensor.backward`.
        """
        if self._has_plain_backward:
            tensor.backward(*args, **kwargs)  # type: ignore[no-untyped-call]
            return
        guard = self._guard
        guard.inside = True
        try:
            named = kwargs if model is None else {"model": unwrap(model), **kwargs}
            self._strategy.backward(tensor, None, *args, **named)
        finally:
            guard.inside = False

    def clip_gradients(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        clip_val: float | int | None = None,
        max_norm: float | int | None = None,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor | None:
        """Clip the gradients of the optimizer's parameters, between `backward` and the step.

        Args:
            module: The module.
            optimizer: Its optimizer.
            clip_val: The largest absolute value of an element.
            max_norm: The largest norm of all gradients together.
            norm_type: Which norm.
            error_if_nonfinite: Whether a norm that is infinite or not a number is an error. With a scaled loss it never
                is: the step is skipped then and the scale lowered.

        Returns:
            The norm before clipping, if `max_norm` was given.

        Raises:
            ValueError: Not exactly one of `clip_val` and `max_norm` was given.
        """
        if (clip_val is None) == (max_norm is None):
            raise ValueError(
                f"Give exactly one of `clip_val` (by value) and `max_norm` (by norm); got clip_val={clip_val}, "
                f"max_norm={max_norm}."
            )
        module, optimizer = unwrap(module), unwrap(optimizer)
        if clip_val is not None:
            self._strategy.clip_gradients_value(module, optimizer, clip_val)
            return None
        assert max_norm is not None
        return self._strategy.clip_gradients_norm(module, optimizer, max_norm, norm_type, error_if_nonfinite)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which code outside of a module runs in the precision."""
        return self.plan.precision.forward_context()

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Context in which backward passes do not exchange gradients; for accumulation. Nothing to do on one device.

        The forward passes belong into it, too.

        Args:
            module: A module that was set up.
            enabled: False to exchange them after all.

        Raises:
            TypeError: The module was not set up.
        """
        module = without_compile(module)
        if not isinstance(module, _FabricModule):
            raise TypeError("This module is not set up. Type first: model = fabric.setup(model, ...)")
        if enabled and self.world_size > 1 and not overrides(self._strategy, "no_backward_sync"):
            rank_zero_warn(
                f"{type(self._strategy).__name__} exchanges gradients in every backward pass: `no_backward_sync` has no"
                " effect. The result is the same; the exchanges cost time.",
                category=PossibleUserWarning,
            )
        return self._strategy.no_backward_sync(without_compile(module._forward_module), enabled)

    def to_device(self, obj: Any) -> Any:
        """Move a module, a tensor, or any nesting of tensors to the device."""
        if isinstance(obj, nn.Module):
            return obj.to(self.device)
        return move(obj, self.device)

    # New modules and tensors

    def init_tensor(self) -> AbstractContextManager[Any]:
        """Context in which new tensors are on the device and in the precision."""
        return self._strategy.tensor_init_context()

    def init_module(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Context in which new modules are on the device and in the precision.

        Args:
            empty_init: Whether parameters keep what their memory held, as a checkpoint will be loaded into them.
        """
        self._require_launch()
        return self._strategy.module_init_context(empty_init)

    def sharded_model(self) -> AbstractContextManager[Any]:
        """Deprecated: use `init_module`."""
        rank_zero_deprecation("`Fabric.sharded_model()` will go away. Type: fabric.init_module()")
        self._require_launch()
        return self._strategy.module_sharded_context()

    # State

    def save(
        self, path: str | Path, state: dict[str, Any], filter: dict[str, Callable[[str, Any], bool]] | None = None
    ) -> None:
        """Write a checkpoint; to be called by all processes.

        Args:
            path: Where to.
            state: Names to modules, optimizers, other objects with a state dict, and plain values.
            filter: Names to functions of a key and a value of that entry's state; what they refuse is left out.

        Raises:
            TypeError: `filter` is not a dict of functions.
            ValueError: `filter` has a name that `state` has not.
        """
        self._require_launch()
        self._strategy.save_checkpoint(collect(self._strategy, state, filter), path)
        self.barrier()

    def load(
        self, path: str | Path, state: Any = None, strict: bool = True, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint into objects, in place.

        Args:
            path: Where it is.
            state: Names to objects that take their state back, and to plain values, which are replaced in this dict;
                a single module or optimizer takes the whole file; None loads nothing into anything.
            strict: Whether everything in `state` has to be in the file.
            weights_only: As in `torch.load`; None for its default.

        Returns:
            What the file holds beyond `state`.

        Raises:
            KeyError: Something in `state` is not in the file, and `strict` is True.
        """
        self._require_launch()
        checkpoint = self._strategy.load_checkpoint(path, weights_only=weights_only)
        self.barrier()
        if not state and not isinstance(state, nn.Module):
            return checkpoint
        if not isinstance(state, dict):
            self._load_into(state, checkpoint, strict)
            return {}
        return restore(self._strategy, state, checkpoint, strict)

    def load_raw(
        self, path: str | Path, obj: nn.Module | Optimizer, strict: bool = True, weights_only: bool | None = None
    ) -> None:
        """Read a file that holds nothing but the state dict of a module or an optimizer.

        Args:
            path: Where it is.
            obj: What takes the state.
            strict: Whether the keys have to match.
            weights_only: As in `torch.load`; None for its default.
        """
        self._load_into(obj, self._strategy.load_checkpoint(path, weights_only=weights_only), strict)

    def _load_into(self, obj: Any, state: Any, strict: bool) -> None:
        if not restore_object(self._strategy, obj, state, strict):
            raise TypeError(f"A state can be loaded into a module or an optimizer, got {type(obj).__name__}.")

    @staticmethod
    def seed_everything(seed: int | None = None, workers: bool | None = None, verbose: bool = True) -> int:
        """As `fulmen.seed_everything`; workers of loaders get derived seeds unless `workers` is False."""
        return seed_everything(seed, workers=True if workers is None else workers, verbose=verbose)

    # Callbacks and loggers

    def call(self, hook_name: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of every callback that has it; keyword arguments that one does not take are left out.

        Args:
            hook_name: Name of the method.
            *args: Positional arguments.
            **kwargs: Keyword arguments.
        """
        for callback in self._callbacks:
            method = getattr(callback, hook_name, None)
            if method is None:
                continue
            if not callable(method):
                rank_zero_warn(f"`{type(callback).__name__}.{hook_name}` is not a method and was not called.")
                continue
            method(*args, **_accepted(method, kwargs))

    def log(self, name: str, value: Any, step: int | None = None) -> None:
        """Give a number to all loggers.

        Args:
            name: Its name.
            value: A number, or a tensor with one element.
            step: When; None leaves it to the logger.
        """
        self.log_dict({name: value}, step)

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Give several numbers to all loggers; arguments as in `log`."""
        if self._loggers:
            scalars = _nested_scalars(metrics)
            for logger in self._loggers:
                logger.log_metrics(metrics=scalars, step=step)


def _nested_scalars(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics with numbers in the place of tensors, those of mappings within it, too."""
    scalars = to_scalars(metrics)
    return {key: _nested_scalars(value) if isinstance(value, Mapping) else value for key, value in scalars.items()}


def _resolve(strategy: Any, **settings: Any) -> Plan:
    """The plan; "dp" is a strategy of Fabric only, and only for GPUs."""
    if not isinstance(strategy, str) or strategy.lower() != "dp":
        return resolve(strategy=strategy, **settings)
    from fulmen.fabric.strategies.dp import DataParallelStrategy

    plan = resolve(strategy=DataParallelStrategy(), **settings)
    if plan.devices[0].type != "cpu":
        return plan
    rank_zero_warn("strategy='dp' is for GPUs; on the CPU 'ddp' is used. Type: strategy='ddp'")
    return resolve(strategy="ddp", **settings)


def _from_environment(name: str, given: Any, default: Any) -> Any:
    """The setting as the environment has it, else as it was given."""
    value = os.environ.get(f"LT_{name.upper()}")
    if value is None:
        return given
    if is_using_cli() and given != default and str(given) != value:
        raise PlanError(
            f"`Fabric({name}={given!r})` conflicts with --{name.replace('_', '-')}={value} of the command line. "
            "Leave one out.",
            subject=given,
        )
    return value


def _as_list(objects: Any) -> list[Any]:
    if objects is None:
        return []
    return list(objects) if isinstance(objects, (list, tuple)) else [objects]


def _external_callbacks() -> list[Any]:
    """Callbacks of installed packages that announce them."""
    result: list[Any] = []
    for entry_point in entry_points(group=_CALLBACKS_GROUP):
        result += _as_list(entry_point.load()())
    return result


def _accepted(method: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(method).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return kwargs
    return {name: value for name, value in kwargs.items() if name in parameters}


def _refuse_meta(parameters: Iterable[Tensor]) -> None:
    if any(parameter.is_meta for parameter in parameters):
        raise RuntimeError(
            "Some parameters are on the meta device and have no data. Give them memory first and fill it: "
            "module.to_empty(device=fabric.device), or make the module under `with fabric.init_module():`"
        )


def _warn_of_several_devices(module: nn.Module) -> None:
    places = {parameter.device: name for name, parameter in module.named_parameters()}
    if len(places) > 1:
        examples = " and ".join(f"{name!r} on {device}" for device, name in places.items())
        rank_zero_warn(
            f"The parameters of this module are on {len(places)} devices, for instance {examples}; all will be moved"
            " to one. To keep them where they are, type: fabric.setup(..., move_to_device=False)",
            category=PossibleUserWarning,
        )
