"""Manual optimisation: what `training_step` returned is only handed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fulmen.errors import LossError
from fulmen.loops.optimization.closure import OutputResult

__all__ = ["ManualResult"]


@dataclass
class ManualResult(OutputResult):
    """What came out of a manual training step.

    Attributes:
        extra: What it returned, with a loss that is cut off from its graph.
    """

    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_training_step_output(cls, training_step_output: Any) -> ManualResult:
        """The result for what `training_step` returned.

        Args:
            training_step_output: A tensor, a dictionary, or None.

        Raises:
            LossError: It is something else.
        """
        output = training_step_output
        if isinstance(output, Tensor):
            return cls({"loss": output.detach()})
        if output is None:
            return cls()
        if isinstance(output, Mapping):
            loss = output.get("loss")
            return cls({**output, "loss": loss.detach()} if isinstance(loss, Tensor) else dict(output))
        raise LossError(
            f"`training_step` returned {type(output).__name__}; in manual optimisation it may return a tensor, a"
            " dictionary, or nothing.",
            subject=output,
        )

    def asdict(self) -> dict[str, Any]:
        """What the step returned."""
        return self.extra
