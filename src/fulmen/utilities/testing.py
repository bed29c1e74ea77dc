"""For test suites: what a test needs and this machine lacks."""

from __future__ import annotations

from fulmen.extras import available
from fulmen.fabric.utilities import testing

__all__ = ["_runif_reasons"]


def _runif_reasons(
    *,
    min_cuda_gpus: int = 0,
    min_torch: str | None = None,
    max_torch: str | None = None,
    min_python: str | None = None,
    bf16_cuda: bool = False,
    tpu: bool = False,
    mps: bool | None = None,
    skip_windows: bool = False,
    standalone: bool = False,
    deepspeed: bool = False,
    dynamo: bool = False,
    rich: bool = False,
    omegaconf: bool = False,
    psutil: bool = False,
    sklearn: bool = False,
    onnx: bool = False,
    linux_only: bool = False,
    onnxscript: bool = False,
    tensorrt: bool = False,
) -> tuple[list[str], dict[str, bool]]:
    """As the function of this name in ``fulmen.fabric.utilities.testing``, with some packages a test may need, too."""
    reasons, marks = testing._runif_reasons(
        min_cuda_gpus=min_cuda_gpus,
        min_torch=min_torch,
        max_torch=max_torch,
        min_python=min_python,
        bf16_cuda=bf16_cuda,
        tpu=tpu,
        mps=mps,
        skip_windows=skip_windows,
        standalone=standalone,
        deepspeed=deepspeed,
        dynamo=dynamo,
        linux_only=linux_only,
    )
    packages = {
        "Rich": (rich, "rich"),
        "omegaconf": (omegaconf, "omegaconf"),
        "psutil": (psutil, "psutil"),
        "scikit-learn": (sklearn, "sklearn"),
        "onnx": (onnx, "onnx"),
        "onnxscript": (onnxscript, "onnxscript"),
        "torch-tensorrt": (tensorrt, "torch_tensorrt"),
    }
    reasons += [name for name, (is_needed, package) in packages.items() if is_needed and not available(package)]
    return reasons, marks
