"""A training run as one HTML file: curves, times, configuration, results. Nothing is loaded from anywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from html import escape
from typing import Any

from fulmen.chart import Series, line_chart, stacked_bar
from fulmen.report_page import SCRIPT, STYLE

__all__ = ["Checkpoint", "Curve", "ReportData", "group_curves", "render"]

_STAGES = {
    "train": 0,
    "training": 0,
    "fit": 0,
    "val": 1,
    "valid": 1,
    "validate": 1,
    "validation": 1,
    "eval": 1,
    "test": 2,
    "testing": 2,
}
_LOADER = re.compile(r"/dataloader_idx_\d+$")
_TIMING_TITLES = {
    "setup": "Set-up",
    "data": "Waiting for data",
    "forward_backward": "Forward and backward",
    "optimizer": "Optimizer",
    "logging": "Logging",
    "checkpoint": "Checkpoints",
    "validation": "Validation",
    "other": "Other",
}


@dataclass
class Curve:
    """A metric over the run.

    Attributes:
        name: The metric's name.
        x: Steps, ascending.
        y: Values.
    """

    name: str
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: The file.
        score: The monitored value, None if nothing was monitored.
        best: Whether it is the best one.
    """

    path: str
    score: float | None = None
    best: bool = False


@dataclass
class ReportData:
    """Everything a report shows. Sections without content are left out.

    Attributes:
        title: Headline.
        model: Name of the model's class.
        status: "finished", "interrupted" or "failed".
        error: What ended the run, if something did.
        started: When the run began, as it is to be shown.
        duration: Seconds.
        epochs: Epochs done.
        steps: Optimizer steps done.
        monitor: Name of the metric by which checkpoints are ranked.
        metrics: The last value of each metric.
        curves: Metrics over the run.
        learning_rates: Learning rates over the run.
        timings: Seconds by category.
        configuration: What ran, and with which settings.
        hyperparameters: What the model was made with.
        summary: The model's summary as text.
        checkpoints: Checkpoints of the run.
        versions: Versions of the software.
    """

    title: str
    model: str = ""
    status: str = "finished"
    error: str | None = None
    started: str = ""
    duration: float = 0.0
    epochs: int = 0
    steps: int = 0
    monitor: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    learning_rates: list[Curve] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    summary: str = ""
    checkpoints: list[Checkpoint] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def render(data: ReportData) -> str:
    """Make the page.

    Args:
        data: What it shows.

    Returns:
        A complete HTML document that needs no other file and no connection.
    """
    sections = [
        _header(data),
        _error(data),
        _cards(data),
        _charts(data),
        _timings(data),
        _pair(_metrics_table(data), _checkpoints_table(data)),
        _pair(_facts("Configuration", data.configuration), _facts("Hyperparameters", data.hyperparameters)),
        _summary(data),
        _facts("Versions", data.versions),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(data.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f'<body>\n<main>\n{body}\n</main>\n<div id="tip" hidden></div>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )


# -------------------------------------------------------------------------------------------------- head


def _header(data: ReportData) -> str:
    facts = [data.model if data.model != data.title else "", data.started]
    line = " · ".join(escape(fact) for fact in facts if fact)
    return (
        f'<header><div><h1>{escape(data.title)}</h1><p class="sub">{line}</p></div>'
        f'<span class="status {escape(data.status, quote=True)}">{escape(data.status)}</span></header>'
    )


def _error(data: ReportData) -> str:
    return f'<p class="error">{escape(data.error)}</p>' if data.error else ""


def _cards(data: ReportData) -> str:
    metrics = [(name, format_number(data.metrics[name]), "") for name in _headline_metrics(data)]
    facts = []
    if data.duration:
        facts.append(("duration", format_duration(data.duration), ""))
    if data.steps:
        speed = f"{data.steps / data.duration:.3g} steps/s" if data.duration else ""
        facts.append(
            ("trained", _plural(data.steps, "step"), f"{_plural(data.epochs, 'epoch')} · {speed}".rstrip(" ·"))
        )
    best = next((checkpoint for checkpoint in data.checkpoints if checkpoint.best), None)
    if best is not None:
        score = "" if best.score is None else f"{data.monitor or 'score'} {format_number(best.score)}"
        facts.append(("best checkpoint", _file_name(best.path), score))
    return _card_row(metrics) + _card_row(facts)


def _card_row(cards: Sequence[tuple[str, str, str]]) -> str:
    items = "".join(
        f'<div class="card"><dt>{escape(name)}</dt><dd{_small(value)}>{escape(value)}</dd>'
        + (f'<dd class="note">{escape(note)}</dd>' if note else "")
        + "</div>"
        for name, value, note in cards
    )
    return f'<dl class="cards">{items}</dl>' if items else ""


def _small(value: str) -> str:
    return ' class="small"' if len(value) > 16 else ""


def _headline_metrics(data: ReportData, limit: int = 4) -> list[str]:
    """The metrics that tell most: the monitored one, then those of test, validation and training, whole epochs only."""

    def rank(name: str) -> tuple[bool, int, bool, str]:
        return (name != data.monitor, -stage_of(name), _subject(name) == name, name)

    names = [name for name in data.metrics if not name.endswith("_step")]
    return sorted(names, key=rank)[:limit]


# -------------------------------------------------------------------------------------------------- curves


def stage_of(name: str) -> int:
    """0 for a metric of training, 1 of validation, 2 of test, by its name."""
    return next((_STAGES[token] for token in re.split(r"[/_\-. ]", name.lower()) if token in _STAGES), 0)


def _subject(name: str) -> str:
    """What is measured, without the stage and the suffixes: "train_loss_step" -> "loss"."""
    tokens = re.split(r"([/_\-. ])", _LOADER.sub("", name))
    if len(tokens) > 2 and tokens[-1] in ("step", "epoch"):
        tokens = tokens[:-2]
    for index, token in enumerate(tokens):
        if token.lower() in _STAGES and len(tokens) > 1:
            # The separator goes with the word: the one after it, or before it at the end.
            return "".join(
                tokens[:index] + tokens[index + 2 :] if index == 0 else tokens[: index - 1] + tokens[index + 1 :]
            )
    return "".join(tokens)


def group_curves(curves: Iterable[Curve]) -> dict[str, list[Curve]]:
    """Put what belongs into one chart together: the same metric of training, validation and test.

    Returns:
        What is measured -> its curves, training first.
    """
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(_subject(curve.name), []).append(curve)
    return {name: sorted(group, key=lambda curve: stage_of(curve.name)) for name, group in groups.items()}


def _charts(data: ReportData) -> str:
    groups = group_curves(curve for curve in data.curves if curve.x)
    charts = [_chart(name, _colored(group)) for name, group in groups.items()]
    rates = [curve for curve in data.learning_rates if curve.x]
    if rates:
        lines = [Series(curve.name, curve.x, curve.y, index + 3) for index, curve in enumerate(rates)]
        charts.append(_chart("learning rate", lines))
    if not charts:
        return ""
    return f'<section><h2>Curves</h2><div class="charts">{"".join(charts)}</div></section>'


def _colored(curves: Sequence[Curve]) -> list[Series]:
    """Training has colour 0, validation 1, test 2; a second curve of a stage takes a colour that is free."""
    taken: set[int] = set()
    lines = []
    for curve in curves:
        wish = stage_of(curve.name)
        color = wish if wish not in taken else next((c for c in range(3, 6) if c not in taken), wish)
        taken.add(color)
        lines.append(Series(curve.name, curve.x, curve.y, color))
    return lines


def _chart(title: str, lines: Sequence[Series]) -> str:
    legend = "".join(_legend_item(line) for line in lines)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><ul class="legend">{legend}</ul>'
        f"{line_chart(lines, title)}</figure>"
    )


def _legend_item(line: Series) -> str:
    missing = len(line.y) - len(line.finite)
    note = f' <i class="bad">{missing:,} not finite</i>' if missing else ""
    return (
        f'<li><span class="swatch fill{line.color % 6}"></span>{escape(line.name)}'
        f" <b>{format_number(line.y[-1])}</b>{note}</li>"
    )


# -------------------------------------------------------------------------------------------------- tables


def _timings(data: ReportData) -> str:
    total = sum(data.timings.values())
    if total <= 0:
        return ""
    shares = [(_TIMING_TITLES.get(name, name), seconds) for name, seconds in data.timings.items()]
    rows = "".join(
        f'<li><span class="swatch fill{index % 8}"></span>{escape(name)} <b>{seconds / total:.1%}</b>'
        f" <i>{format_duration(seconds)}</i></li>"
        for index, (name, seconds) in enumerate(shares)
    )
    bar = stacked_bar(shares, "Share of time by category")
    return f'<section><h2>Where the time went</h2>{bar}<ul class="legend wide">{rows}</ul></section>'


def _metrics_table(data: ReportData) -> str:
    rows = [(name, format_number(value)) for name, value in sorted(data.metrics.items())]
    return _table("Final metrics", ("metric", "value"), rows)


def _checkpoints_table(data: ReportData) -> str:
    rows = [
        (
            _file_name(entry.path) + (" (best)" if entry.best else ""),
            "" if entry.score is None else format_number(entry.score),
        )
        for entry in data.checkpoints
    ]
    table = _table("Checkpoints", ("file", data.monitor or "score"), rows)
    folders = sorted({entry.path[: -len(_file_name(entry.path))] for entry in data.checkpoints} - {""})
    return (
        table.replace("</section>", f'<p class="path">{escape(", ".join(folders))}</p></section>') if folders else table
    )


def _table(title: str, header: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return ""
    head = f'<tr><th>{escape(header[0])}</th><th class="number">{escape(header[1])}</th></tr>'
    body = "".join(f'<tr><td>{escape(name)}</td><td class="number">{escape(value)}</td></tr>' for name, value in rows)
    return f"<section><h2>{escape(title)}</h2><table><thead>{head}</thead><tbody>{body}</tbody></table></section>"


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items()
    )
    return f'<section><h2>{escape(title)}</h2><table class="facts"><tbody>{rows}</tbody></table></section>'


def _pair(*sections: str) -> str:
    present = [section for section in sections if section]
    return f'<div class="pair">{"".join(present)}</div>' if len(present) > 1 else "".join(present)


def _summary(data: ReportData) -> str:
    return f"<section><h2>Model</h2><pre>{escape(data.summary)}</pre></section>" if data.summary else ""


# -------------------------------------------------------------------------------------------------- words for numbers


def format_number(value: float) -> str:
    """Five significant digits, or the words "nan" and "inf"."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.5g}"
    return str(value)


def format_duration(seconds: float) -> str:
    """A duration in words: "42.0 s", "3 min 20 s", "1 d 2 h 5 min"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = timedelta(seconds=round(seconds))
    minutes, rest = divmod(whole.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(whole.days, "d"), (hours, "h"), (minutes, "min"), (rest if seconds < 3600 else 0, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def _plural(number: int, unit: str) -> str:
    return f"{number:,} {unit}" if number == 1 else f"{number:,} {unit}s"


def _file_name(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]
