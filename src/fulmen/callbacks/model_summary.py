"""Prints a summary of the model when training begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.callback import Callback
from fulmen.summary import ModelSummary as Summary
from fulmen.summary import SummaryData, check_max_depth, format_summary

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["ModelSummary"]


class ModelSummary(Callback):
    """Prints a table of the model's layers when fit starts.

    Args:
        max_depth: How many levels of nested layers get a row: 1 the direct children, -1 all; 0 prints nothing.
        **summarize_kwargs: Passed on to `summarize`, for overrides of it.

    Raises:
        ValueError: If `max_depth` is not an integer >= -1.
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        check_max_depth(max_depth)
        self._max_depth = max_depth
        self._summarize_kwargs = summarize_kwargs

    def listens(self, hook: str, trainer: Trainer) -> bool:
        """Depth 0 means no summary."""
        return self._max_depth != 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Summarises on all ranks, because a sharded model runs its example on all; prints on rank 0."""
        if self._max_depth == 0:
            return
        summary = Summary(pl_module, max_depth=self._max_depth)
        if trainer.is_global_zero:
            self.summarize(
                summary.data(),
                summary.total_parameters,
                summary.trainable_parameters,
                summary.model_size,
                summary.total_training_modes,
                summary.total_flops,
                **self._summarize_kwargs,
            )

    @staticmethod
    def summarize(
        summary_data: SummaryData,
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Print the summary; override it to do something else with it.

        Args:
            summary_data: The table as columns: (header, one cell per row).
            total_parameters: Number of parameters.
            trainable_parameters: Number of parameters that require a gradient.
            model_size: Size of the parameters in megabytes.
            total_training_modes: Number of modules by mode, "train" and "eval".
            total_flops: Floating-point operations of one forward pass; 0 if not counted.
            **summarize_kwargs: What the callback was given.
        """
        text = format_summary(
            summary_data, total_parameters, trainable_parameters, model_size, total_training_modes, total_flops
        )
        print(f"\n{text}", flush=True)
