"""Prints a summary of the model as a table of rich."""

from __future__ import annotations

from typing import Any

from fulmen.callbacks.model_summary import ModelSummary
from fulmen.summary import SummaryData, summary_totals
from fulmen.terminal import make_console

__all__ = ["RichModelSummary"]

_NUMBERS = ("Params", "FLOPs", "Params per Device")


class RichModelSummary(ModelSummary):
    """Prints a table of the model's layers when fit starts, drawn by rich.

    Args:
        max_depth: How many levels of nested layers get a row: 1 the direct children, -1 all; 0 prints nothing.
        **summarize_kwargs: `header_style` is the style of the table's header, "bold magenta" by default.

    Raises:
        ValueError: If `max_depth` is not an integer >= -1.
    """

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
        """Print the summary; arguments as in `ModelSummary.summarize`."""
        from rich.table import Table
        from rich.text import Text

        table = Table(header_style=summarize_kwargs.get("header_style", "bold magenta"))
        for header, _ in summary_data:
            style = "dim" if header in (" ", "Type") else None
            table.add_column(header, style=style, justify="right" if header in _NUMBERS else "left")
        for row in zip(*(cells for _, cells in summary_data), strict=True):
            table.add_row(*(Text(cell) for cell in row))

        totals = Table.grid(padding=(0, 2))
        totals.add_column(style="bold")
        totals.add_column(justify="right")
        for label, value in summary_totals(
            summary_data, total_parameters, trainable_parameters, model_size, total_training_modes, total_flops
        ):
            totals.add_row(label, value.strip())

        console = make_console()
        console.print(table)
        console.print(totals)
