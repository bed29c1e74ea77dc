"""How fast a run is: batches, samples and floating-point operations per second, and the share of the chip's peak."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from fulmen.ranks import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.fabric.fabric import Fabric

__all__ = ["Throughput", "ThroughputMonitor", "compute_dtype", "get_available_flops", "measure_flops"]

Number = TypeVar("Number", int, float)


class Throughput:
    """Rates over a sliding window of updates.

    Args:
        available_flops: Peak of the device in floating-point operations per second; needed for ``mfu``.
        world_size: Number of processes; with more than one the rates of all together are computed, too.
        window_size: Over how many updates the rates are taken, at least 2.
        separator: Between "device" and the name of a rate.
        using_sparse_model: Whether the model's weights are sparse in a way that the device computes faster.
        sparse_cuda_acceleration_factor: By how much that raises the peak. Tensor cores double it for weights with two
            zeros in each four.

    Raises:
        AssertionError: ``window_size`` is less than 2.

    Example:
        >>> throughput = Throughput(window_size=2)
        >>> throughput.update(time=1.0, batches=1, samples=32)
        >>> throughput.update(time=3.0, batches=2, samples=64)
        >>> throughput.compute()["device/samples_per_sec"]
        16.0
    """

    def __init__(
        self,
        available_flops: float | None = None,
        world_size: int = 1,
        window_size: int = 100,
        separator: str = "/",
        using_sparse_model: bool = False,
        sparse_cuda_acceleration_factor: float = 2.0,
    ) -> None:
        assert window_size > 1, f"`Throughput(window_size={window_size})`: a rate needs at least 2 updates."
        if using_sparse_model and available_flops is not None:
            available_flops *= sparse_cuda_acceleration_factor
        self.available_flops = available_flops
        self.world_size = world_size
        self.separator = separator
        self._time: deque[float] = deque(maxlen=window_size)
        self._batches: deque[int] = deque(maxlen=window_size)
        self._samples: deque[int] = deque(maxlen=window_size)
        self._lengths: deque[int] = deque(maxlen=window_size)
        self._flops: deque[int] = deque(maxlen=window_size)

    def update(
        self, *, time: float, batches: int, samples: int, lengths: int | None = None, flops: int | None = None
    ) -> None:
        """Adds one measurement. All but ``flops`` are totals of this process since the start (or ``reset``).

        Args:
            time: Seconds; must grow.
            batches: Number of batches; must grow.
            samples: Number of samples; must grow, and be at least the number of batches.
            lengths: Summed lengths of the samples, e.g. tokens; must grow, and be at least the number of samples. Given
                each time or never.
            flops: Floating-point operations of this process since the update before.

        Raises:
            ValueError: A total did not grow, or is less than what it consists of.
            RuntimeError: ``lengths`` was given at some updates only.
        """
        _check_grows("time", self._time, time)
        _check_grows("batches", self._batches, batches)
        _check_grows("samples", self._samples, samples)
        if samples < batches:
            raise ValueError(f"`update(samples={samples}, batches={batches})`: a batch has at least one sample.")
        if (lengths is None) == bool(self._lengths) and self._samples:
            raise RuntimeError("`update(lengths=...)`: give the lengths at every update or at none.")
        if lengths is not None:
            _check_grows("lengths", self._lengths, lengths)
            if lengths < samples:
                raise ValueError(f"`update(lengths={lengths}, samples={samples})`: a sample has at least length 1.")
            self._lengths.append(lengths)
        self._time.append(time)
        self._batches.append(batches)
        self._samples.append(samples)
        if flops is not None:
            self._flops.append(flops)

    def compute(self) -> dict[str, int | float]:
        """The totals, and once the window is full the rates.

        Returns:
            "time", "batches", "samples", "lengths" (if given), and ``device/<rate>`` with the rates "batches_per_sec",
            "samples_per_sec", "items_per_sec" (of ``lengths``), "flops_per_sec", and "mfu", the share of the peak. With
            several processes also ``<rate>``, those of all together. Empty before the first update.
        """
        if not self._time:
            return {}
        metrics: dict[str, int | float] = {
            "time": self._time[-1],
            "batches": self._batches[-1],
            "samples": self._samples[-1],
        }
        if self._lengths:
            metrics["lengths"] = self._lengths[-1]
        if len(self._time) < (self._time.maxlen or 0):
            return metrics
        rates = self._rates()
        metrics |= {f"device{self.separator}{name}": rate for name, rate in rates.items()}
        if self.world_size > 1:
            metrics |= {name: rate * self.world_size for name, rate in rates.items()}
        if "flops_per_sec" in rates and self.available_flops:
            metrics[f"device{self.separator}mfu"] = rates["flops_per_sec"] / self.available_flops
        return metrics

    def reset(self) -> None:
        """Forgets all updates."""
        for window in (self._time, self._batches, self._samples, self._lengths, self._flops):
            window.clear()

    def _rates(self) -> dict[str, float]:
        elapsed = self._time[-1] - self._time[0]
        rates = {
            "batches_per_sec": (self._batches[-1] - self._batches[0]) / elapsed,
            "samples_per_sec": (self._samples[-1] - self._samples[0]) / elapsed,
        }
        if self._lengths:
            rates["items_per_sec"] = (self._lengths[-1] - self._lengths[0]) / elapsed
        if len(self._flops) == len(self._time):
            # What the first update counts was done before the window's time began.
            rates["flops_per_sec"] = (sum(self._flops) - self._flops[0]) / elapsed
        return rates


def _check_grows(name: str, window: deque[Number], value: Number) -> None:
    if window and value <= window[-1]:
        raise ValueError(
            f"`update({name}={value})`: the last one was {window[-1]}. Give the total since the start, which must grow."
        )


class ThroughputMonitor(Throughput):
    """A ``Throughput`` that knows the device, and logs through ``Fabric``.

    Args:
        fabric: The Fabric of the run.
        **kwargs: Passed on to ``Throughput``. ``available_flops`` and ``world_size`` are found out if not given.

    Attributes:
        step: The x value of the last log, -1 before the first.
    """

    def __init__(self, fabric: Fabric, **kwargs: Any) -> None:
        if "available_flops" not in kwargs:
            dtype = compute_dtype(fabric.strategy.precision_plugin.precision)
            kwargs["available_flops"] = get_available_flops(fabric.device, dtype)
        super().__init__(**{"world_size": fabric.world_size, **kwargs})
        self._fabric = fabric
        self.step = -1

    def compute_and_log(self, step: int | None = None, **kwargs: Any) -> dict[str, int | float]:
        """Computes, and hands the result to the loggers.

        Args:
            step: The x value; None for the one after the last.
            **kwargs: Passed on to ``Fabric.log_dict``.

        Returns:
            What ``compute`` returns.
        """
        self.step = self.step + 1 if step is None else step
        metrics = self.compute()
        self._fabric.log_dict(metrics, step=self.step, **kwargs)
        return metrics


def measure_flops(
    model: nn.Module, forward_fn: Callable[[], Any], loss_fn: Callable[[Any], Tensor] | None = None
) -> int:
    """Counts the floating-point operations of a forward pass, or of forward and backward. Gradients are left alone.

    On the meta device this costs neither memory nor time: ``with torch.device("meta"): model, batch = ...``.

    Args:
        model: The module.
        forward_fn: Runs the forward pass, e.g. ``lambda: model(batch)``.
        loss_fn: Makes a loss of what that returns; if given, the backward pass counts, too.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        if loss_fn is None:
            forward_fn()
        else:
            with torch.enable_grad():
                loss = loss_fn(forward_fn())
                torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return int(counter.get_total_flops())


# ------------------------------------------------------------------------------------------------ peaks of chips

_DTYPES = (torch.float64, torch.float32, "tf32", torch.bfloat16, torch.float16, torch.int8)

# Dense peaks in tera-operations per second of the data sheets and white papers, in the order of _DTYPES; 0 where the
# chip has no unit for it. Matrix units where there are some (for float64 and float32 the plain ones); on the GeForce
# cards with accumulation in 32 bit.
_PEAKS: dict[str, tuple[float, float, float, float, float, float]] = {
    "b200": (37, 75, 1100, 2250, 2250, 4500),
    "h200": (33.5, 66.9, 494.7, 989.4, 989.4, 1978.9),
    "gh200": (33.5, 66.9, 494.7, 989.4, 989.4, 1978.9),
    "h100": (33.5, 66.9, 494.7, 989.4, 989.4, 1978.9),
    "h100 nvl": (30, 60, 417.5, 835.5, 835.5, 1670.5),
    "h100 pcie": (25.6, 51.2, 378, 756, 756, 1513),
    "a100": (9.7, 19.5, 156, 312, 312, 624),
    "a800": (9.7, 19.5, 156, 312, 312, 624),
    "a30": (5.2, 10.3, 82, 165, 165, 330),
    "a40": (0, 37.4, 74.8, 149.7, 149.7, 299.3),
    "a10": (0, 31.2, 62.5, 125, 125, 250),
    "a10g": (0, 35, 35, 70, 70, 140),
    "rtx a6000": (0, 38.7, 77.4, 154.8, 154.8, 309.7),
    "l4": (0, 30.3, 60, 121, 121, 242),
    "l40": (0, 90.5, 90.5, 181, 181, 362),
    "l40s": (0, 91.6, 183, 362, 362, 733),
    "v100": (7.8, 15.7, 0, 0, 125, 0),
    "v100 pcie": (7, 14, 0, 0, 112, 0),
    "v100s": (8.2, 16.4, 0, 0, 130, 0),
    "t4": (0, 8.1, 0, 0, 65, 130),
    "mi300x": (81.7, 163.4, 653.7, 1307.4, 1307.4, 2614.9),
    "rtx 5090": (0, 104.8, 104.8, 209.5, 209.5, 838),
    "rtx 4090": (0, 82.6, 82.6, 165.2, 165.2, 660.6),
    "rtx 4080": (0, 48.7, 48.7, 97.5, 97.5, 389.9),
    "rtx 3090": (0, 35.6, 35.6, 71, 71, 284),
    "rtx 3090 ti": (0, 40, 40, 80, 80, 320),
    "rtx 2080 ti": (0, 13.4, 0, 0, 53.8, 215.2),
}

# Words that make another chip of one of the same number.
_VARIANTS = {"laptop", "mobile", "max", "super", "ti", "d", "mig"}


def get_available_flops(device: torch.device, dtype: torch.dtype | str) -> int | None:
    """The peak of a device, in floating-point operations per second, for dense matrices.

    For float32 it is that of TF32 if ``torch.set_float32_matmul_precision`` allows it and the chip has it.

    Args:
        device: The device.
        dtype: The type in which matrices are multiplied.

    Returns:
        The peak; None for the CPU, and, with a warning, if it is not known.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peaks = _peaks_of(name)
    if peaks is None:
        rank_zero_warn(
            f"The peak of {name!r} is not known, so its used share (mfu) cannot be computed. Give it yourself:"
            " `available_flops=...`, in operations per second."
        )
        return None
    by_dtype = dict(zip(_DTYPES, peaks, strict=True))
    if dtype == torch.float32 and by_dtype["tf32"] and torch.get_float32_matmul_precision() != "highest":
        dtype = "tf32"
    peak = by_dtype.get(dtype)
    if not peak:
        rank_zero_warn(f"{name!r} has no peak for {dtype}, so its used share (mfu) cannot be computed.")
        return None
    return round(peak * 1e12)


def _peaks_of(name: str) -> tuple[float, ...] | None:
    """The row of the chip all of whose words are in ``name``; of several the most specific."""
    words = set(re.split(r"[\s\-]+", name.lower()))
    fitting = [chip for chip in _PEAKS if set(chip.split()) <= words and words & _VARIANTS <= set(chip.split())]
    return _PEAKS[max(fitting, key=lambda chip: len(chip.split()))] if fitting else None


def compute_dtype(precision: str) -> torch.dtype:
    """The type in which matrices are multiplied under a precision, e.g. "bf16-mixed"."""
    known = {"16": torch.float16, "bf16": torch.bfloat16, "64": torch.float64}
    return known.get(precision.split("-")[0], torch.float32)
