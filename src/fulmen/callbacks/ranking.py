"""Which checkpoints are the best, and what a checkpoint is called: the pure parts of ``ModelCheckpoint``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["admits", "best_of", "fill_in", "finite_rank", "insert", "worst_of"]

_FIELD = re.compile(r"\{(?P<key>[^{}:]*)(?P<spec>:[^{}]*)?\}")


def is_better(first: float, second: float, mode: str) -> bool:
    """Whether ``first`` is strictly better than ``second``: lower for mode "min", higher for "max"."""
    return first < second if mode == "min" else first > second


def worst_value(mode: str) -> float:
    """What every score is better than."""
    return math.inf if mode == "min" else -math.inf


def finite_rank(score: Tensor, mode: str) -> Tensor:
    """``score`` as a scalar on the CPU; NaN becomes the worst value, so that anything else is better."""
    score = score.detach().squeeze().cpu()
    return torch.tensor(worst_value(mode)) if score.isnan() else score.clone()


def best_of(scores: Mapping[str, Any], mode: str) -> str:
    """The path of the best score; of equal ones the oldest."""
    return (min if mode == "min" else max)(scores, key=lambda path: float(scores[path]))


def worst_of(scores: Mapping[str, Any], mode: str) -> str:
    """The path of the worst score; of equal ones the oldest."""
    return (max if mode == "min" else min)(scores, key=lambda path: float(scores[path]))


def admits(scores: Mapping[str, Any], k: int, mode: str, score: float) -> bool:
    """Whether a new score is among the best ``k`` (all for -1): it has to be strictly better than the worst of them."""
    if k == 0:
        return False
    if k == -1 or len(scores) < k:
        return True
    if math.isnan(score):
        return False
    return is_better(score, float(scores[worst_of(scores, mode)]), mode)


def displaced_by_next(scores: Mapping[str, Any], k: int, mode: str) -> str:
    """The path that has to go when one more is admitted; "" if there is room."""
    return "" if k == -1 or len(scores) < k else worst_of(scores, mode)


def insert(scores: Mapping[str, Any], k: int, mode: str, path: str, score: Any) -> dict[str, Any]:
    """``scores`` with a new one that was admitted, without the one that it displaces."""
    displaced = displaced_by_next(scores, k, mode)
    return {**{other: value for other, value in scores.items() if other != displaced}, path: score}


def fill_in(template: str, metrics: Mapping[str, Any], insert_names: bool, equals: str) -> str:
    """Replaces the fields ``{key}`` and ``{key:format}`` of a file name by the values of metrics.

    Args:
        template: The file name.
        metrics: Numbers and scalar tensors by key; a key that is not there counts as 0.
        insert_names: Whether a field becomes ``key=value`` instead of ``value``.
        equals: What stands between key and value.

    Raises:
        ValueError: A field without key, or a format that does not suit its value.
    """

    def value_of(field: re.Match[str]) -> str:
        key, spec = field["key"], (field["spec"] or ":")[1:]
        if not key:
            raise ValueError(f"`ModelCheckpoint(filename={template!r})`: {{}} names no metric. Write '{{epoch}}', say.")
        value = metrics.get(key, 0)
        value = value.item() if isinstance(value, Tensor) else value
        try:
            text = format(value, spec)
        except ValueError as error:
            raise ValueError(
                f"`ModelCheckpoint(filename={template!r})`: {value!r} cannot be written as {field[0]}: {error}."
                " Formats ending in 'd' are for whole numbers; for others write for instance '{" + key + ":.2f}'."
            ) from error
        return f"{key}{equals}{text}" if insert_names else text

    return _FIELD.sub(value_of, template)
