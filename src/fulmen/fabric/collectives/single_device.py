"""A group of one process."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fulmen.fabric.collectives.collective import Collective

__all__ = ["SingleDeviceCollective"]


class SingleDeviceCollective(Collective):
    """The group of one process, in which everybody has everything already: tensors are given back as they are."""

    @property
    def rank(self) -> int:
        """Always 0."""
        return 0

    @property
    def world_size(self) -> int:
        """Always 1."""
        return 1

    def broadcast(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """The tensor itself."""
        return tensor

    def all_reduce(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """The tensor itself."""
        return tensor

    def reduce(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """The tensor itself."""
        return tensor

    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor, **__: Any) -> list[Tensor]:
        """The tensor, as a list."""
        return [tensor]

    def gather(self, tensor: Tensor, *_: Any, **__: Any) -> list[Tensor]:
        """The tensor, as a list."""
        return [tensor]

    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], *_: Any, **__: Any) -> Tensor:
        """The tensor in the list."""
        return scatter_list[0]

    def reduce_scatter(self, output: Tensor, input_list: list[Tensor], *_: Any, **__: Any) -> Tensor:
        """The tensor in the list."""
        return input_list[0]

    def all_to_all(
        self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor], *_: Any, **__: Any
    ) -> list[Tensor]:
        """The input list itself."""
        return input_tensor_list

    def send(self, *_: Any, **__: Any) -> None:
        """There is nobody to send to."""

    def recv(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """The tensor itself: there is nobody to receive from."""
        return tensor

    def barrier(self, *_: Any, **__: Any) -> None:
        """There is nobody to wait for."""

    @classmethod
    def is_available(cls) -> bool:
        """Always."""
        return True

    @classmethod
    def is_initialized(cls) -> bool:
        """Always: the process itself is there."""
        return True

    @classmethod
    def init_group(cls, **_: Any) -> None:
        """There is nothing to make."""

    @classmethod
    def new_group(cls, **_: Any) -> object:
        """An object that stands for the group."""
        return object()

    @classmethod
    def destroy_group(cls, group: object) -> None:
        """There is nothing to end."""
