"""Types of Fabric, under the names users of Lightning import."""

from __future__ import annotations

from torch import UntypedStorage as UntypedStorage
from torch import distributed

from fulmen.types import CollectibleGroup, Optimizable, Stateful, Steppable

__all__ = ["CollectibleGroup", "Optimizable", "Stateful", "Steppable"]

if distributed.is_available():
    from torch.distributed import ProcessGroup, ReduceOp

    RedOpType = ReduceOp.RedOpType
    __all__ += ["ProcessGroup", "RedOpType", "ReduceOp"]
