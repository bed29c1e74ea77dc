"""`TorchCollective`, under the path users import."""

from __future__ import annotations

from torch.distributed.constants import default_pg_timeout

from fulmen.fabric.collectives.torch_collective import TorchCollective

__all__ = ["TorchCollective", "default_pg_timeout"]
