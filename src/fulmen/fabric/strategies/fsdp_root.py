"""The outermost sharded module: leads what is not its forward through what FSDP does before and after a forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from fulmen.fabric.strategies.fsdp_uneven import Units

__all__ = ["Root"]


class Root(Units):
    """Runs functions, such as a `training_step`, as if they were the forward of a sharded module.

    Within such a function the module may be called, too: its parameters are there already, so FSDP is passed by.

    Args:
        module: What `fully_shard` was called on last.
    """

    def __init__(self, module: nn.Module) -> None:
        assert isinstance(module, FSDPModule)
        super().__init__(module)
        self.module = module
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

    def reset(self) -> None:
        """Bring everything into the state between two steps, after an exception within one."""
        if hasattr(self.module, "reset_iter_state"):  # torch >= 2.13
            self.module.reset_iter_state()
        else:
            for part in self.parts:
                part._get_fsdp_state()._post_forward(part, (), None)
        self.reshard()

    # ------------------------------------------------------------------------------------------------ uneven ends

    def is_gathered(self, part: FSDPModule) -> bool:
        """Whether a unit is this module, within a function that runs as its forward."""
        return part is self.module and self._inside

    def begin(self, gather: Callable[[int], None]) -> None:
        """Gather this module's own parameters, for a function that runs as its forward."""
        gather(self.parts.index(self.module))
