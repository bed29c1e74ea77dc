"""SpikeDetection: notice when the loss jumps away from its recent values."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fulmen.checkpoint.store import writer
from fulmen.errors import TrainingSpikeException
from fulmen.paths import exists, join, read_bytes

if TYPE_CHECKING:
    from fulmen.fabric.fabric import Fabric

__all__ = ["SpikeDetection", "TrainingSpikeException"]


class SpikeDetection:
    """Ends training when the loss spikes, and writes down which batches to leave out when it starts again.

    A loss is a spike if it is worse than the one before, and away from the mean of the last ``window`` losses by at
    least ``atol`` and at least ``rtol`` times that mean. One that is not finite is one, too.

    Args:
        mode: "min" if a larger loss is worse, "max" if a smaller one is.
        window: Over how many losses the mean is taken.
        warmup: So many losses are only looked at first.
        atol: The least absolute distance from the mean; None to not ask for one.
        rtol: The least distance as a multiple of the mean; None to not ask for one.
        exclude_batches_path: JSON file for the indices of the batch of a spike and the one before it, added to those
            it holds. None: ``skip_batches.json`` in the trainer's ``default_root_dir``, or the working directory.
        finite_only: Whether NaN and infinity are spikes.

    Attributes:
        bad_batches: Indices of the batches found so far.
        last_val: The last loss that was no spike, None before the first.
        running_mean: The mean that the next loss is compared with, None before the first.

    Raises:
        ValueError: ``mode``, ``window`` or ``warmup`` is none of the above.
    """

    def __init__(
        self,
        mode: str = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float | None = None,
        rtol: float | None = 2.0,
        exclude_batches_path: str | Path | None = None,
        finite_only: bool = True,
    ) -> None:
        super().__init__()
        if mode not in ("min", "max"):
            raise ValueError(
                f"`SpikeDetection(mode={mode!r})`: expected 'min' (a larger loss is worse) or 'max' (a smaller one is)."
            )
        if window < 1 or warmup < 0:
            raise ValueError(
                f"`SpikeDetection(window={window}, warmup={warmup})`: expected a window of at least 1 loss and a"
                " warm-up of at least 0."
            )
        self.mode = mode
        self.warmup = warmup
        self.atol = atol
        self.rtol = rtol
        self.exclude_batches_path = exclude_batches_path
        self.finite_only = finite_only
        self.bad_batches: list[int] = []
        self.last_val: float | None = None
        self._recent: deque[float] = deque(maxlen=window)
        self._seen = 0

    @property
    def running_mean(self) -> float | None:
        """The mean of the last losses, None before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def on_train_batch_end(self, fabric: Fabric, loss: Tensor, batch: Any, batch_idx: int) -> None:
        """Looks at the loss of a batch. All processes must call it.

        Args:
            fabric: The ``Fabric`` (or ``Trainer``) of the run.
            loss: The loss, a tensor with one element.
            batch: The batch.
            batch_idx: Its index, which is what is written down.

        Raises:
            TrainingSpikeException: The loss of any process is a spike.
        """
        value = float(loss.detach())
        if fabric.strategy.reduce_boolean_decision(self.is_spike(value), all=False):
            self.bad_batches += [index for index in (batch_idx - 1, batch_idx) if index >= 0]
            if fabric.is_global_zero:
                self._write(self._path(fabric))
            raise TrainingSpikeException(batch_idx)
        self._seen += 1
        if math.isfinite(value):
            self.last_val = value
            self._recent.append(value)

    def is_spike(self, loss: float) -> bool:
        """Whether ``loss`` is a spike after those seen so far."""
        if self._seen < self.warmup:
            return False
        if self.finite_only and not math.isfinite(loss):
            return True
        mean = self.running_mean
        if mean is None or self.last_val is None:
            return False
        is_worse = loss > self.last_val if self.mode == "min" else loss < self.last_val
        distance = abs(loss - mean)
        return (
            is_worse
            and (self.atol is None or distance >= abs(self.atol))
            and (self.rtol is None or distance >= abs(self.rtol * mean))
        )

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {
            "last_val": self.last_val,
            "bad_batches": list(self.bad_batches),
            "recent": list(self._recent),
            "seen": self._seen,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave; of Lightning's, which holds no recent losses, the rest."""
        last = state_dict["last_val"]
        self.last_val = None if last is None else float(last)
        self.bad_batches = list(state_dict["bad_batches"])
        self._recent.clear()
        self._recent.extend(state_dict.get("recent", [] if self.last_val is None else [self.last_val]))
        self._seen = state_dict.get("seen", len(self._recent))

    def _path(self, fabric: Any) -> str:
        if self.exclude_batches_path is None:
            self.exclude_batches_path = join(getattr(fabric, "default_root_dir", os.getcwd()), "skip_batches.json")
        return os.fspath(self.exclude_batches_path)

    def _write(self, path: str) -> None:
        """Adds the batches to those that the file already names, from a run before this one."""
        known = json.loads(read_bytes(path)) if exists(path) else []
        with writer(path) as stream:
            stream.write(json.dumps(list(dict.fromkeys([*known, *self.bad_batches]))).encode())
