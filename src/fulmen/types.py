"""Names for types: what user code may return, and what third parties must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NotRequired, Protocol, Self, TypeAlias, TypedDict, runtime_checkable

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

__all__ = [
    "EVAL_DATALOADERS",
    "STEP_OUTPUT",
    "TRAIN_DATALOADERS",
    "CaselessEnum",
    "CollectibleGroup",
    "GradClipAlgorithmType",
    "LRSchedulerConfigType",
    "LRSchedulerPLType",
    "LRSchedulerTypeUnion",
    "Optimizable",
    "OptimizerConfig",
    "OptimizerLRScheduler",
    "OptimizerLRSchedulerConfig",
    "Stateful",
    "Steppable",
]

STEP_OUTPUT: TypeAlias = Tensor | Mapping[str, Any] | None
"""What a step returns: the loss, a mapping with the loss under "loss", or None to skip the batch."""

# Any iterable will do as a loader, and any nesting of them, which no type can say usefully.
TRAIN_DATALOADERS: TypeAlias = Any
EVAL_DATALOADERS: TypeAlias = Any

LRSchedulerTypeUnion: TypeAlias = LRScheduler | ReduceLROnPlateau
LRSchedulerPLType: TypeAlias = LRSchedulerTypeUnion


class LRSchedulerConfigType(TypedDict):
    """A scheduler and when to step it, as `configure_optimizers` may return it."""

    scheduler: LRSchedulerTypeUnion
    name: NotRequired[str | None]
    interval: NotRequired[str]
    frequency: NotRequired[int]
    reduce_on_plateau: NotRequired[bool]
    monitor: NotRequired[str | None]
    strict: NotRequired[bool]


class OptimizerConfig(TypedDict):
    """A single optimizer, as `configure_optimizers` may return it."""

    optimizer: Optimizer


class OptimizerLRSchedulerConfig(TypedDict):
    """An optimizer and its scheduler, as `configure_optimizers` may return them."""

    optimizer: Optimizer
    lr_scheduler: LRSchedulerTypeUnion | LRSchedulerConfigType
    monitor: NotRequired[str]


OptimizerLRScheduler: TypeAlias = (
    Optimizer
    | Sequence[Optimizer]
    | tuple[Sequence[Optimizer], Sequence[LRSchedulerTypeUnion | LRSchedulerConfigType]]
    | OptimizerConfig
    | OptimizerLRSchedulerConfig
    | Sequence[OptimizerConfig]
    | Sequence[OptimizerLRSchedulerConfig]
    | None
)
"""Everything `configure_optimizers` may return; None means that nothing is optimized."""


@runtime_checkable
class Stateful(Protocol):
    """Has state that belongs into a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as something that can be pickled."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        ...


@runtime_checkable
class CollectibleGroup(Protocol):
    """A group of processes that can take part in collectives."""

    def size(self) -> int:
        """How many processes there are."""
        ...

    def rank(self) -> int:
        """The place of this process among them."""
        ...


@runtime_checkable
class Steppable(Protocol):
    """Can update parameters."""

    def step(self, closure: Callable[[], Any] | None = ...) -> Any:
        """Do one update."""
        ...


@runtime_checkable
class Optimizable(Steppable, Protocol):
    """All that an optimizer has to have; a `torch.optim.Optimizer` has it."""

    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]
    state: Any

    def state_dict(self) -> dict[str, Any]:
        """The state, as something that can be pickled."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        ...


class CaselessEnum(StrEnum):
    """An enumeration of strings whose members equal their plain string in any case."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        return next((member for member in cls if member == value), None)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        return str.lower(self) == str.lower(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.value.lower())


class GradClipAlgorithmType(CaselessEnum):
    """What `gradient_clip_algorithm` can be."""

    VALUE = "value"
    NORM = "norm"

    @staticmethod
    def supported_type(val: str) -> bool:
        """Whether there is an algorithm of that name."""
        return val in GradClipAlgorithmType.supported_types()

    @staticmethod
    def supported_types() -> list[str]:
        """The names of all algorithms."""
        return [member.value for member in GradClipAlgorithmType]
