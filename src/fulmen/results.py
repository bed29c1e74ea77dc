"""The table of results that `validate` and `test` print."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from fulmen.terminal import can_redraw, make_console

__all__ = ["print_results"]

_PLAIN_WIDTH = 120
_GAP = 3
_SUFFIX = re.compile(r"/dataloader_idx_\d+$")

Row = list[str]


def print_results(results: Sequence[Mapping[str, float]], stage: str) -> None:
    """Print what an evaluation returned: one row per metric, one column per dataloader.

    Args:
        results: One mapping of metrics per dataloader; the "/dataloader_idx_i" ending of keys is left out of the table.
        stage: "validate" or "test": the title of the first column.
    """
    if not any(results):
        return
    header, *rows = _table(results, stage)
    if can_redraw():
        console = make_console()
        for block in _blocks([header, *rows], console.width, gap=_GAP):
            console.print(_rich_table(block))
    else:
        for block in _blocks([header, *rows], _PLAIN_WIDTH, gap=2):
            print(_plain_table(block), flush=True)


def _table(results: Sequence[Mapping[str, float]], stage: str) -> list[Row]:
    plain = [{_SUFFIX.sub("", key): value for key, value in result.items()} for result in results]
    names = sorted({name for result in plain for name in result})
    header = [f"{stage.capitalize()} metric", *(f"DataLoader {index}" for index in range(len(plain)))]
    return [header, *([name, *(_cell(result.get(name)) for result in plain)] for name in names)]


def _cell(value: object) -> str:
    if value is None:
        return ""
    # Sixteen digits of a value that was computed in 32 bits would be noise.
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return str(value)


def _blocks(rows: list[Row], width: int, gap: int) -> Iterator[list[Row]]:
    """The table cut into blocks of columns that fit `width`; each block repeats the column of names."""
    widths = [max(len(row[column]) for row in rows) + gap for column in range(len(rows[0]))]
    start = 1
    while start < len(widths):
        stop, used = start + 1, widths[0] + widths[start]
        while stop < len(widths) and used + widths[stop] <= width:
            used += widths[stop]
            stop += 1
        yield [[row[0], *row[start:stop]] for row in rows]
        start = stop


def _plain_table(rows: list[Row]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *values in rows:
        cells = [f"{value:>{width}}" for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *cells]).rstrip())
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def _rich_table(rows: list[Row]) -> object:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    header, *body = rows
    table = Table(box=box.ROUNDED, header_style="bold", border_style="dim")
    table.add_column(header[0], style="cyan", overflow="fold")
    for title in header[1:]:
        table.add_column(title, justify="right", style="magenta", no_wrap=True)
    for row in body:
        table.add_row(*(Text(cell) for cell in row))
    return table
