"""What `Fabric` puts around modules, optimizers and loaders, so that a loop reads as it would without it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fulmen.fabric.precision import Precision
from fulmen.fabric.strategies import Strategy, overrides
from fulmen.tree import map_tensors, move

__all__ = ["is_wrapped", "unwrap"]

_STEP_METHODS = frozenset({"training_step", "validation_step", "test_step", "predict_step"})


class BackwardGuard:
    """Knows whether `fabric.backward` is under way, for precisions in which a plain `loss.backward()` is wrong."""

    def __init__(self) -> None:
        self.inside = False

    def watch(self, output: Any) -> Any:
        """Make a backward pass from any tensor of `output` fail outside of `fabric.backward`."""
        return map_tensors(self._watch_tensor, output)

    def _watch_tensor(self, tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            tensor.register_hook(self._check)  # type: ignore[no-untyped-call]
        return tensor

    def _check(self, gradient: Tensor) -> None:
        if not self.inside:
            raise RuntimeError(
                "The precision of this run does more in a backward pass, such as scaling the loss, than "
                "`loss.backward()`. Type: fabric.backward(loss)"
            )


class _FabricModule(nn.Module):
    """A module as `fabric.setup` gives it back: the original in everything but the call.

    The call converts the arguments to the precision, runs the strategy's module in it, and converts the result back.
    Attributes are read from and written to the original; the state dict is the original's.

    Args:
        forward_module: What the strategy made of the module; runs when this module is called.
        strategy: The strategy.
        original_module: The user's module.
        guard: Refuses `loss.backward()` where the precision scales the loss.
    """

    _is_ready = False

    def __init__(
        self, forward_module: nn.Module, strategy: Strategy, original_module: nn.Module, guard: BackwardGuard
    ) -> None:
        super().__init__()
        self._forward_module = forward_module
        # past the registration as a submodule: its parameters would be counted twice
        object.__setattr__(self, "_original_module", original_module)
        self._strategy = strategy
        self._guard = guard
        self._forward_methods = set(_STEP_METHODS)
        # past it again: as an instance attribute it is found without the detour that nn.Module makes for submodules
        object.__setattr__(self, "_call", self._in_precision(forward_module))
        self._is_wrapped_by_strategy = strategy.wraps_in_place or without_compile(forward_module) is not original_module
        self.training = original_module.training
        self._is_ready = True

    @property
    def module(self) -> nn.Module:
        """The user's module, not moved into any wrapper."""
        return self._original_module  # type: ignore[no-any-return]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The strategy's module, in the precision."""
        return self._call(*args, **kwargs)

    def _in_precision(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn` with conversion of arguments and result; `fn` itself in 32 bit."""
        precision = self._strategy.precision_plugin
        if type(precision) is Precision:
            return fn
        in_context = precision.wrap_forward(fn)
        is_guarded = precision.changes_backward

        @functools.wraps(fn, updated=())
        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = precision.convert_forward_input((args, kwargs))
            output = precision.convert_output(in_context(*args, **kwargs))
            return self._guard.watch(output) if is_guarded else output

        return call

    def __deepcopy__(self, memo: dict[int, Any]) -> _FabricModule:
        # the module is copied; strategy and guard are those of the run, and the copy takes part in the same one
        forward, original = copy.deepcopy((self._forward_module, self._original_module), memo)
        result = _FabricModule(forward, self._strategy, original, self._guard)
        result._forward_methods.update(self._forward_methods)
        return result

    def mark_forward_method(self, method: str | Callable[..., Any]) -> None:
        """Let a method of the module run as its forward does: in the precision, and through the strategy's wrapper.

        Args:
            method: The method or its name.

        Raises:
            TypeError: Neither a method nor a string.
            ValueError: It is "forward".
            AttributeError: The module has no such method.
        """
        if not isinstance(method, str) and not callable(method):
            raise TypeError(f"Expected a method or its name, got {method!r}.")
        name = method if isinstance(method, str) else method.__name__
        if name == "forward":
            raise ValueError("`forward` is a forward method already and does not have to be marked.")
        original = self._original_module
        if not callable(getattr(original, name, None)):
            raise AttributeError(f"Cannot mark {name!r}: {type(original).__name__} has no method of that name.")
        self._forward_methods.add(name)

    def _through_forward(self, name: str) -> Callable[..., Any]:
        """The original's method, run as the forward of the strategy's module."""
        original = self._original_module
        method = getattr(original, name)
        if not self._is_wrapped_by_strategy:
            return self._in_precision(method)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            before = vars(original).get("forward")

            def forward(*args: Any, **kwargs: Any) -> Any:
                _put_back(original, before)  # the method may call the module's own forward
                return method(*args, **kwargs)

            original.forward = forward
            try:
                return self._call(*args, **kwargs)
            finally:
                _put_back(original, before)

        return call

    def _refuse_submodules(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, with an error where it would compute past the strategy's wrapper."""

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            def refuse(module: nn.Module, _: Any) -> None:
                raise RuntimeError(
                    f"`{name}` calls the forward of a submodule ({type(module).__name__}), past what the strategy "
                    f"{type(self._strategy).__name__} has put around the module. Compute in `forward`, or type: "
                    f"model.mark_forward_method({name!r})"
                )

            hooks = [module.register_forward_pre_hook(refuse) for module in self._original_module.modules()]
            try:
                return method(*args, **kwargs)
            finally:
                for hook in hooks:
                    hook.remove()

        return call

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state of the user's module: the keys have no prefix."""
        return self._original_module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state into the user's module."""
        return self._original_module.load_state_dict(state_dict, strict=strict, assign=assign)

    def __getattr__(self, name: str) -> Any:
        # reached only for what is not in the instance nor the class
        modules = self.__dict__["_modules"]
        if name in modules:
            return modules[name]
        original = self.__dict__["_original_module"]
        value = getattr(original, name)
        if name in self._forward_methods:
            return self._through_forward(name)
        if self._is_wrapped_by_strategy and getattr(value, "__self__", None) is original:
            return self._refuse_submodules(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._is_ready or name in self.__dict__ or name in self._modules or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            setattr(self._original_module, name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__ or name in self._modules:
            super().__delattr__(name)
        else:
            delattr(self._original_module, name)


def _put_back(module: nn.Module, forward: Any) -> None:
    """Give a module the forward it had: one set on the instance, or (None) the one of its class."""
    if forward is None:
        vars(module).pop("forward", None)
    else:
        module.forward = forward


def without_compile(module: nn.Module) -> nn.Module:
    """The module inside of what `torch.compile` gave."""
    original = getattr(module, "_orig_mod", None)
    return module if original is None else original


class _FabricOptimizer:
    """An optimizer as `fabric.setup` gives it back: the original in everything but the step and its state.

    The class of an instance is a subclass of the original's, named "Fabric<Name>", as schedulers insist on one.

    Args:
        optimizer: The user's optimizer.
        strategy: The strategy.
        callbacks: Objects that may have a method `on_after_optimizer_step(strategy, optimizer)`.
    """

    _OWN = frozenset({"_optimizer", "_strategy", "_callbacks", "_update", "step"})

    def __init__(self, optimizer: Optimizer, strategy: Strategy, callbacks: list[Any]) -> None:
        self._optimizer = optimizer
        self._strategy = strategy
        self._callbacks = callbacks
        through_strategy = overrides(strategy, "optimizer_step")
        self._update = strategy.optimizer_step if through_strategy else strategy.precision_plugin.optimizer_step

    @property
    def optimizer(self) -> Optimizer:
        """The user's optimizer."""
        return self._optimizer

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters as strategy and precision need it.

        Args:
            closure: Computes the loss, with `fabric.backward` for the gradients; None if they are there already.
        """
        result = self._update(self._optimizer) if closure is None else self._update(self._optimizer, closure=closure)
        for callback in self._callbacks:
            if (hook := getattr(callback, "on_after_optimizer_step", None)) is not None:
                hook(strategy=self._strategy, optimizer=self._optimizer)
        return result

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, as the strategy saves it."""
        return self._strategy.optimizer_state(self._optimizer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state into the user's optimizer."""
        self._strategy.load_optimizer_state(self._optimizer, state_dict)

    def __getattr__(self, name: str) -> Any:
        if name in _FabricOptimizer._OWN:
            raise AttributeError(name)
        return getattr(self._optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # a scheduler replaces `step` by one that counts: that one has to be ours, or it would call itself
        if name in _FabricOptimizer._OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._optimizer, name, value)


def wrap_optimizer(optimizer: Optimizer, strategy: Strategy, callbacks: list[Any]) -> Any:
    """The optimizer with a step that goes through the strategy; arguments as `_FabricOptimizer`."""
    kind: Any = type(optimizer)
    return _class_for(kind)(optimizer, strategy, callbacks)


@functools.cache
def _class_for(optimizer_class: type) -> type[_FabricOptimizer]:
    """A subclass of both, in which all methods of the optimizer's class are those of the wrapped object."""
    own = set(dir(_FabricOptimizer))
    inherited = {name for name in dir(optimizer_class) if name not in own and not name.startswith("__")}
    delegates = {name: property(functools.partial(_of_inner, name)) for name in inherited}
    return type(f"Fabric{optimizer_class.__name__}", (_FabricOptimizer, optimizer_class), dict(delegates))


def _of_inner(name: str, wrapper: _FabricOptimizer) -> Any:
    return getattr(wrapper._optimizer, name)


class _FabricDataLoader:
    """A loader as `fabric.setup_dataloaders` gives it back: the original, with batches on the device.

    Args:
        dataloader: The user's loader.
        device: Where the batches go; None leaves them where they are.
    """

    def __init__(self, dataloader: DataLoader[Any], device: torch.device | None = None) -> None:
        self._dataloader = dataloader
        self._device = device
        self._num_iterations = 0

    @property
    def device(self) -> torch.device | None:
        """Where the batches go."""
        return self._device

    def __len__(self) -> int:
        return len(self._dataloader)

    def __iter__(self) -> Iterator[Any]:
        _set_epoch(self._dataloader, self._num_iterations)
        self._num_iterations += 1
        if self._device is None:
            yield from self._dataloader
            return
        device = self._device
        for batch in self._dataloader:
            yield move(batch, device)

    def __getattr__(self, name: str) -> Any:
        if name == "_dataloader":
            raise AttributeError(name)
        return getattr(self._dataloader, name)


def _set_epoch(dataloader: DataLoader[Any], epoch: int) -> None:
    """Tell the samplers which epoch it is, so that they shuffle anew."""
    batch_sampler = getattr(dataloader, "batch_sampler", None)
    samplers = (getattr(dataloader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    for sampler in {id(sampler): sampler for sampler in samplers}.values():
        if callable(set_epoch := getattr(sampler, "set_epoch", None)):
            set_epoch(epoch)


def is_wrapped(obj: object) -> bool:
    """Whether a module, optimizer or loader came out of `fabric.setup` or `fabric.setup_dataloaders`."""
    if isinstance(obj, nn.Module):
        obj = without_compile(obj)
    return isinstance(obj, (_FabricModule, _FabricOptimizer, _FabricDataLoader))


def unwrap(obj: Any) -> Any:
    """The user's own module, optimizer or loader inside of a wrapper; anything else is returned as it is."""
    if isinstance(obj, _FabricModule):
        return obj.module
    if isinstance(obj, _FabricOptimizer):
        return obj.optimizer
    if isinstance(obj, _FabricDataLoader):
        return obj._dataloader
    return obj
