"""Groups of processes by `torch.distributed`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fulmen.fabric.collectives.collective import Collective

__all__ = ["TorchCollective"]


class TorchCollective(Collective):
    """Groups of `torch.distributed`. Without a group of its own, it works with that of all processes.

    Ranks given as arguments count all processes, also where the group has only some of them.

    Attributes:
        manages_default_group: Whether `setup` made the group of all processes, so that `teardown` ends it.

    Raises:
        RuntimeError: This torch was built without `torch.distributed`.
    """

    manages_default_group: bool = False
    addr_key: ClassVar[str] = "MASTER_ADDR"
    port_key: ClassVar[str] = "MASTER_PORT"

    def __init__(self) -> None:
        if not self.is_available():
            raise RuntimeError("This torch was built without `torch.distributed`. Install a build that has it.")
        super().__init__()

    @property
    def group(self) -> Any:
        """The group of its own, else that of all processes.

        Raises:
            RuntimeError: There is neither.
        """
        return dist.group.WORLD if self._group is None and self.is_initialized() else super().group

    @property
    def rank(self) -> int:
        """Rank of this process in the group; -1 if it is not one of them."""
        return dist.get_rank(self.group)

    @property
    def world_size(self) -> int:
        """Number of processes in the group; -1 if this is not one of them."""
        return dist.get_world_size(self.group)

    def broadcast(self, tensor: Tensor, src: int) -> Tensor:
        """Give all processes the tensor of rank `src`, in place."""
        dist.broadcast(tensor, src, group=self.group)
        return tensor

    def all_reduce(self, tensor: Tensor, op: str | Any = "sum") -> Tensor:
        """Give all processes the reduction of the tensors of all, in place.

        Args:
            tensor: Of the same shape and type on all processes.
            op: "sum", "avg", "min", "max", "product", ... in any case of letters, or a `ReduceOp`.

        Raises:
            ValueError: The operation is not known.
        """
        dist.all_reduce(tensor, op=_operation(op), group=self.group)
        return tensor

    def reduce(self, tensor: Tensor, dst: int, op: str | Any = "sum") -> Tensor:
        """Give rank `dst` the reduction of the tensors of all, in place; the others' tensors are of no use then.

        Raises:
            ValueError: The operation is not known.
        """
        dist.reduce(tensor, dst, op=_operation(op), group=self.group)
        return tensor

    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor) -> list[Tensor]:
        """Fill the list of every process with the tensors of all."""
        dist.all_gather(tensor_list, tensor, group=self.group)
        return tensor_list

    def gather(self, tensor: Tensor, gather_list: list[Tensor], dst: int = 0) -> list[Tensor]:
        """Fill the list of rank `dst` with the tensors of all; the others' lists are left as they are."""
        dist.gather(tensor, gather_list if dist.get_rank() == dst else None, dst, group=self.group)
        return gather_list

    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], src: int = 0) -> Tensor:
        """Fill the tensor of every process with its own of the list of rank `src`."""
        dist.scatter(tensor, scatter_list if dist.get_rank() == src else None, src, group=self.group)
        return tensor

    def reduce_scatter(self, output: Tensor, input_list: list[Tensor], op: str | Any = "sum") -> Tensor:
        """Reduce the lists element by element, and fill the tensor of every process with its own.

        Raises:
            ValueError: The operation is not known.
        """
        dist.reduce_scatter(output, input_list, op=_operation(op), group=self.group)
        return output

    def all_to_all(self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor]) -> list[Tensor]:
        """Send every process its own of the input list, and fill the output list with what came from each."""
        dist.all_to_all(output_tensor_list, input_tensor_list, group=self.group)
        return output_tensor_list

    def send(self, tensor: Tensor, dst: int, tag: int = 0) -> None:
        """Send a tensor to rank `dst`, which has to receive it."""
        dist.send(tensor, dst, tag=tag, group=self.group)

    def recv(self, tensor: Tensor, src: int | None = None, tag: int = 0) -> Tensor:
        """Fill the tensor with what rank `src` (None: anybody) sends."""
        dist.recv(tensor, src, tag=tag, group=self.group)
        return tensor

    def barrier(self, device_ids: list[int] | None = None) -> None:
        """Wait until all processes are here.

        Args:
            device_ids: Devices to wait on, for the backend nccl.
        """
        dist.barrier(group=self.group, device_ids=device_ids)

    def all_gather_object(self, object_list: list[Any], obj: Any) -> list[Any]:
        """Fill the list of every process with the objects of all, which are pickled."""
        dist.all_gather_object(object_list, obj, group=self.group)
        return object_list

    def broadcast_object_list(self, object_list: list[Any], src: int, device: torch.device | None = None) -> list[Any]:
        """Fill the list of every process with the objects of rank `src`, which are pickled."""
        dist.broadcast_object_list(object_list, src, group=self.group, device=device)
        return object_list

    def gather_object(self, obj: Any, object_gather_list: list[Any], dst: int = 0) -> list[Any]:
        """Fill the list of rank `dst` with the objects of all, which are pickled; the others' lists are left."""
        dist.gather_object(obj, object_gather_list if dist.get_rank() == dst else None, dst, group=self.group)
        return object_gather_list

    def scatter_object_list(
        self, scatter_object_output_list: list[Any], scatter_object_input_list: list[Any], src: int = 0
    ) -> list[Any]:
        """Put into the first place of every process' list its own object of the list of rank `src`."""
        dist.scatter_object_list(scatter_object_output_list, scatter_object_input_list, src, group=self.group)
        return scatter_object_output_list

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """Wait until all processes are here, or say on rank 0 who is missing; for the backend gloo.

        Args:
            timeout: For how long.
            wait_all_ranks: Whether all that are missing are named, and not only the first.

        Raises:
            RuntimeError: Somebody did not come in time.
        """
        dist.monitored_barrier(group=self.group, timeout=timeout, wait_all_ranks=wait_all_ranks)

    def setup(self, main_address: str | None = None, main_port: str | None = None, **kwargs: Any) -> Self:
        """Make the group of all processes, unless it is there.

        Args:
            main_address: Host of rank 0; None for MASTER_ADDR of the environment.
            main_port: Port of rank 0; None for MASTER_PORT of the environment.
            **kwargs: Arguments of `torch.distributed.init_process_group`.
        """
        if not self.is_initialized():
            with _environment({self.addr_key: main_address, self.port_key: main_port}):
                super().setup(**kwargs)
            self.manages_default_group = True
        return self

    def teardown(self) -> Self:
        """End the group of its own, and that of all processes if `setup` made it. A group of others is left alone.

        Raises:
            RuntimeError: There is no group.
        """
        if self.group is self._group:
            super().teardown()
        if self.manages_default_group:
            self.destroy_group(dist.group.WORLD)
        self.manages_default_group = False
        return self

    @classmethod
    def is_available(cls) -> bool:
        """Whether this torch was built with `torch.distributed`."""
        return dist.is_available()

    @classmethod
    def is_initialized(cls) -> bool:
        """Whether the group of all processes is there."""
        return cls.is_available() and dist.is_initialized()

    @classmethod
    def init_group(cls, **kwargs: Any) -> None:
        """Make the group of all processes; arguments as for `torch.distributed.init_process_group`."""
        dist.init_process_group(**kwargs)

    @classmethod
    def new_group(cls, **kwargs: Any) -> Any:
        """Make and return a group; arguments as for `torch.distributed.new_group`. All processes have to call it."""
        return dist.new_group(**kwargs)

    @classmethod
    def destroy_group(cls, group: Any) -> None:
        """End a group, unless that of all processes has ended, and all others with it."""
        if cls.is_initialized():
            dist.destroy_process_group(group)


def _operation(op: Any) -> dist.ReduceOp.RedOpType:
    if isinstance(op, dist.ReduceOp | dist.ReduceOp.RedOpType):
        return cast(dist.ReduceOp.RedOpType, op)
    known = dist.ReduceOp.RedOpType.__members__
    if not isinstance(op, str) or op.upper() not in known:
        raise ValueError(f"op={op!r} is not known. Type one of: {', '.join(map(str.lower, known))}")
    return known[op.upper()]


@contextmanager
def _environment(variables: dict[str, str | None]) -> Iterator[None]:
    """Set environment variables, all but those that are None, for as long as this is entered."""
    given = {name: value for name, value in variables.items() if value is not None}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
