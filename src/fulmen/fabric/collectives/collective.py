"""What can be done together by the processes of a group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

from torch import Tensor

__all__ = ["Collective"]


class Collective(ABC):
    """A group of processes and what they do together: its own, between `create_group` and `teardown`."""

    def __init__(self) -> None:
        self._group: Any = None

    @property
    @abstractmethod
    def rank(self) -> int:
        """Rank of this process in the group."""

    @property
    @abstractmethod
    def world_size(self) -> int:
        """Number of processes in the group."""

    @property
    def group(self) -> Any:
        """The group.

        Raises:
            RuntimeError: There is none.
        """
        if self._group is None:
            raise RuntimeError(
                f"This `{type(self).__name__}` has no group. Type: collective.setup(...), or collective.create_group()"
            )
        return self._group

    @abstractmethod
    def broadcast(self, tensor: Tensor, src: int) -> Tensor:
        """Give all processes the tensor of rank `src`, in place."""

    @abstractmethod
    def all_reduce(self, tensor: Tensor, op: str) -> Tensor:
        """Give all processes the reduction of the tensors of all, in place."""

    @abstractmethod
    def reduce(self, tensor: Tensor, dst: int, op: str) -> Tensor:
        """Give rank `dst` the reduction of the tensors of all, in place."""

    @abstractmethod
    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor) -> list[Tensor]:
        """Fill the list of every process with the tensors of all."""

    @abstractmethod
    def gather(self, tensor: Tensor, gather_list: list[Tensor], dst: int = 0) -> list[Tensor]:
        """Fill the list of rank `dst` with the tensors of all."""

    @abstractmethod
    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], src: int = 0) -> Tensor:
        """Fill the tensor of every process with its own of the list of rank `src`."""

    @abstractmethod
    def reduce_scatter(self, output: Tensor, input_list: list[Tensor], op: str) -> Tensor:
        """Reduce the lists element by element, and fill the tensor of every process with its own."""

    @abstractmethod
    def all_to_all(self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor]) -> list[Tensor]:
        """Send every process its own of the input list, and fill the output list with what came from each."""

    @abstractmethod
    def send(self, tensor: Tensor, dst: int, tag: int = 0) -> None:
        """Send a tensor to rank `dst`, which has to receive it."""

    @abstractmethod
    def recv(self, tensor: Tensor, src: int | None = None, tag: int = 0) -> Tensor:
        """Fill the tensor with what rank `src` (None: anybody) sends."""

    @abstractmethod
    def barrier(self, device_ids: list[int] | None = None) -> None:
        """Wait until all processes are here."""

    @classmethod
    @abstractmethod
    def is_available(cls) -> bool:
        """Whether this kind works here."""

    @classmethod
    @abstractmethod
    def is_initialized(cls) -> bool:
        """Whether the group of all processes is there."""

    @classmethod
    @abstractmethod
    def init_group(cls, **kwargs: Any) -> None:
        """Make the group of all processes."""

    @classmethod
    @abstractmethod
    def new_group(cls, **kwargs: Any) -> Any:
        """Make and return a group of some or all of the processes."""

    @classmethod
    @abstractmethod
    def destroy_group(cls, group: Any) -> None:
        """End a group."""

    def setup(self, **kwargs: Any) -> Self:
        """Make the group of all processes, unless it is there; arguments as for `init_group`."""
        if not self.is_initialized():
            self.init_group(**kwargs)
        return self

    def create_group(self, **kwargs: Any) -> Self:
        """Make a group of this object's own; arguments as for `new_group`.

        Raises:
            RuntimeError: It has one.
        """
        if self._group is not None:
            raise RuntimeError(f"This `{type(self).__name__}` has a group. Type first: collective.teardown()")
        self._group = self.new_group(**kwargs)
        return self

    def teardown(self) -> Self:
        """End this object's own group.

        Raises:
            RuntimeError: It has none.
        """
        if self._group is None:
            raise RuntimeError(f"This `{type(self).__name__}` has no group of its own to end.")
        self.destroy_group(self._group)
        self._group = None
        return self
