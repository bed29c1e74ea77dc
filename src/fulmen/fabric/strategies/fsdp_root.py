"""The outermost sharded module: leads what is not its forward through what FSDP does before and after a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

__all__ = ["Root"]

_END_OF_STEP = -1


class Root:
    """Runs functions, such as a `training_step`, as if they were the forward of a sharded module.

    Within such a function the module may be called, too: its parameters are there already, so FSDP is passed by.

    Args:
        module: What `fully_shard` was called on last.
    """

    def __init__(self, module: nn.Module) -> None:
        assert isinstance(module, FSDPModule)
        self.module = module
        self.parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
        self._state: Any = module._get_fsdp_state()
        self._inside = False
        self._state._pre_forward_hook_handle.remove()
        self._state._post_forward_hook_handle.remove()
        module.register_forward_pre_hook(self._before_forward, prepend=True, with_kwargs=True)
        module.register_forward_hook(self._after_forward)

    @classmethod
    def of(cls, module: nn.Module) -> Root | None:
        """The root that a module is; None if it is none."""
        owners = (getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values())
        return next((owner for owner in owners if isinstance(owner, Root)), None)

    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return None if self._inside else self._state._pre_forward(module, args, kwargs)

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> Any:
        return None if self._inside else self._state._post_forward(module, args, output)

    # ------------------------------------------------------------------------------------------------ running

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function that uses the parameters; its gradients will be computed later."""
        if self._inside:
            return function(*args, **kwargs)
        args, kwargs = self._state._pre_forward(self.module, args, kwargs)
        self._inside = True
        try:
            output = function(*args, **kwargs)
        except BaseException:
            self._inside = False
            self.reset()
            raise
        self._inside = False
        return self._state._post_forward(self.module, args, output)

    def run_once(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As `run`, where no gradients follow: afterwards all parameters are shards again."""
        output = self.run(function, *args, **kwargs)
        self.reshard()
        return output

    def leave(self, loss: Tensor) -> None:
        """In the midst of a function: a backward pass from `loss` follows."""
        if self._inside:
            self._state._post_forward(self.module, (), loss)

    def enter(self) -> None:
        """In the midst of a function: the parameters are used again, as they are now."""
        if self._inside:
            self._state._post_forward(self.module, (), None)  # in the midst of a forward, nothing would be given back
            self.reshard()
            self._state._pre_forward(self.module, (), {})

    def reshard(self) -> None:
        """Give all gathered parameters back."""
        for part in self.parts:
            part.reshard()

    def reset(self) -> None:
        """Bring everything into the state between two steps, after an exception within one."""
        if hasattr(self.module, "reset_iter_state"):  # torch >= 2.13
            self.module.reset_iter_state()
        self.reshard()

    # ------------------------------------------------------------------------------------------------ uneven ends

    def follow(self, leader: int, device: torch.device) -> None:
        """Take part in a step of others: gather what they gather, in their order, until it has ended.

        Args:
            leader: The rank that tells the order.
            device: Of this process.
        """
        self._state._lazy_init()
        while (index := _told(_END_OF_STEP, leader, device)) != _END_OF_STEP:
            self.parts[index].unshard()
            self.parts[index].reshard()

    @contextmanager
    def lead(self, leader: int, device: torch.device) -> Iterator[None]:
        """Context of a step in which those who follow are told what is gathered.

        Args:
            leader: The rank that tells; on other ranks that run a step this checks that they gather the same.
            device: Of this process.
        """

        def tell(index: int) -> None:
            if (told := _told(index, leader, device)) != index:
                raise RuntimeError(
                    f"In this step the processes do not run the same sharded modules: rank {leader} is at"
                    f" {_name(self.parts, told)}, rank {dist.get_rank()} at {_name(self.parts, index)}. Evaluate"
                    " without conditions that differ between processes, or type: strategy='ddp'"
                )

        def before(index: int, part: FSDPModule) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any) -> None:
                if part is self.module and self._inside:
                    return
                part.reshard()  # so that it is gathered again, as the followers will do
                tell(index)
                part.unshard()

            return hook

        self._state._lazy_init()
        self.reshard()
        handles = [
            part.register_forward_pre_hook(before(index, part), prepend=True) for index, part in enumerate(self.parts)
        ]

        try:
            tell(self.parts.index(self.module))
            self.module.unshard()
            yield
        finally:
            for handle in handles:
                handle.remove()
        tell(_END_OF_STEP)


def _told(index: int, leader: int, device: torch.device) -> int:
    told = torch.tensor(index, device=device)
    dist.broadcast(told, leader)
    return int(told)


def _name(parts: Sequence[FSDPModule], index: int) -> str:
    return "its end" if index == _END_OF_STEP else type(parts[index]).__name__
