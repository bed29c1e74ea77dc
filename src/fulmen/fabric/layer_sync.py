"""Layers whose statistics are shared between processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["LayerSync", "TorchSyncBatchNorm"]


class LayerSync(ABC):
    """Makes layers share their statistics between processes, and takes that back.

    A strategy of several processes calls `apply` before it wraps the module for a fit, and `revert` at the end.
    """

    @abstractmethod
    def apply(self, model: Any) -> Any:
        """The module with layers that share their statistics."""

    @abstractmethod
    def revert(self, model: Any) -> Any:
        """The module with the layers it had before `apply`."""


class TorchSyncBatchNorm(LayerSync):
    """Makes every batch norm a `torch.nn.SyncBatchNorm`; `revert` puts the very layers back that were there."""

    def __init__(self) -> None:
        self._originals: dict[str, _BatchNorm] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """The module with all its batch norms synchronised; parameters and statistics are the same tensors."""
        self._originals = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm)
        }
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """The module with its own batch norms, which keep what was learned meanwhile."""
        for name, layer in list(model.named_modules()):
            if not isinstance(layer, nn.SyncBatchNorm):
                continue
            plain = self._originals.get(name) or _AnyBatchNorm(layer.num_features)
            _take_over(plain, layer)
            if name == "":
                return plain
            parent, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(parent), own_name, plain)
        return model


class _AnyBatchNorm(_BatchNorm):
    """A batch norm of inputs of any number of dimensions, for a layer of which nobody knows what it was before."""

    def _check_input_dim(self, input: Tensor) -> None:
        """`SyncBatchNorm` has taken the inputs, whatever they are."""


def _take_over(plain: _BatchNorm, synced: nn.SyncBatchNorm) -> None:
    """Give a layer the settings and the very tensors of another, which may have been moved or converted meanwhile."""
    for name in ("num_features", "eps", "momentum", "affine", "track_running_stats"):
        setattr(plain, name, getattr(synced, name))
    plain._parameters.update(synced._parameters)
    plain._buffers.update(synced._buffers)
    plain.train(synced.training)
