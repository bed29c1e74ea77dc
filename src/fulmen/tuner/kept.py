"""Kept: the state of a module, its datamodule and its loaders at one moment, in memory, to be put back bit by bit."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Sampler

from fulmen.data.loaders import is_stateful
from fulmen.data.position import generators_of

__all__ = ["Kept"]

_PLAIN = (int, float, complex, str, bytes, type(None))


class Kept:
    """Remembers how things are when it is made; ``restore`` puts them back, as often as it is called.

    Of a module that is all of it and its submodules: weights and buffers with their storage, device, dtype, gradients
    and ``requires_grad``, training modes, hooks, and whatever else is in its attributes, through lists and dicts. Of a
    datamodule the attributes themselves and its hyperparameters; what is in its datasets is not looked at. Of loaders
    and samplers the random generators.

    Values are kept in the memory of the CPU, so that a device has as much left as it had before.

    Args:
        module: The module.
        datamodule: The datamodule, None without.
        loaders: Loaders that the user gave.
        optimizers: Optimizers and schedulers that a run may use again.
    """

    def __init__(
        self, module: nn.Module, datamodule: Any = None, loaders: Iterable[Any] = (), optimizers: Iterable[Any] = ()
    ) -> None:
        self._undo: list[Callable[[], None]] = []
        # the objects stay referenced, as an id may be given again to another
        self._seen: dict[int, Any] = {}
        self._to_visit: list[Any] = [module, *module.parameters(), *module.buffers(), *optimizers]
        with torch.inference_mode(False):
            while self._to_visit:
                self._keep(self._to_visit.pop())
            if datamodule is not None:
                self._keep_datamodule(datamodule)
            for loader in loaders:
                self._keep_loader(loader)

    def restore(self) -> None:
        """Puts everything back."""
        with torch.inference_mode(False), torch.no_grad():
            for undo in self._undo:
                undo()

    def _keep(self, value: Any) -> None:
        if isinstance(value, _PLAIN) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._undo.append(_keep_tensor(value))
        elif isinstance(value, (nn.Module, Optimizer, LRScheduler)):
            self._to_visit.append(vars(value))
        elif isinstance(value, tuple):
            self._to_visit.extend(value)
        elif isinstance(value, dict):
            self._undo.append(_keep_items(value))
            self._to_visit.extend(value.values())
        elif isinstance(value, (list, deque, set)):
            self._undo.append(_keep_elements(value))
            self._to_visit.extend(value)
        else:
            self._keep_randomness(value)

    def _keep_datamodule(self, datamodule: Any) -> None:
        attributes = vars(datamodule)
        self._undo.append(_keep_items(attributes))
        for name, value in attributes.items():
            if name == "_hparams" and isinstance(value, dict):
                self._undo.append(_keep_items(value))
            else:
                self._keep_randomness(value)

    def _keep_loader(self, loader: Any) -> None:
        self._keep_randomness(loader)
        if is_stateful(loader):
            state = loader.state_dict()
            self._undo.append(lambda: loader.load_state_dict(state))

    def _keep_randomness(self, value: Any) -> None:
        """The generators that a value is, or that a loader or sampler draws from."""
        if isinstance(value, torch.Generator):
            self._undo.append(_keep_state(value.get_state(), value.set_state))
        elif isinstance(value, random.Random):
            self._undo.append(_keep_state(value.getstate(), value.setstate))
        elif isinstance(value, (DataLoader, Sampler)):
            for generator in generators_of(value):
                self._keep_randomness(generator)
        elif (numpy := sys.modules.get("numpy")) is not None and isinstance(value, numpy.random.Generator):
            bits: Any = value.bit_generator
            self._undo.append(_keep_state(bits.state, lambda state: setattr(bits, "state", state)))


def _keep_state(state: Any, set_state: Callable[[Any], Any]) -> Callable[[], None]:
    return lambda: set_state(state)


def _keep_items(mapping: dict[Any, Any]) -> Callable[[], None]:
    items = list(mapping.items())

    def restore() -> None:
        mapping.clear()
        mapping.update(items)

    return restore


def _keep_elements(container: Any) -> Callable[[], None]:
    elements = list(container)
    add = container.update if isinstance(container, set) else container.extend

    def restore() -> None:
        container.clear()
        add(elements)

    return restore


def _keep_tensor(tensor: Tensor) -> Callable[[], None]:
    """A function that gives a tensor its storage, values, ``requires_grad`` and gradient back."""
    data = tensor.data
    values = None if data.is_meta else data.to("cpu", copy=True)
    is_leaf, requires_grad = tensor.is_leaf, tensor.requires_grad
    grad = tensor.grad if is_leaf else None
    restore_grad = _keep_tensor(grad) if grad is not None else None

    def restore() -> None:
        with torch.inference_mode(data.is_inference()):
            if values is not None:
                data.copy_(values)
        if data.is_inference():
            return
        if is_leaf:
            tensor.grad = None  # it may have another dtype by now, and must not for a moment
        tensor.data = data
        if restore_grad is not None:
            restore_grad()
        if is_leaf:
            if not tensor.is_leaf:
                tensor.detach_()
            tensor.requires_grad_(requires_grad)
            tensor.grad = grad

    return restore
