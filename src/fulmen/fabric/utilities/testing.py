"""For test suites: what a test needs and this machine lacks."""

from __future__ import annotations

import os
import platform
import re
import sys

import torch

from fulmen.extras import available
from fulmen.fabric.accelerators import MPSAccelerator, XLAAccelerator

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
    linux_only: bool = False,
) -> tuple[list[str], dict[str, bool]]:
    """Why a test with these needs cannot run here, for ``pytest.mark.skipif``.

    Args:
        min_cuda_gpus: GPUs at least.
        min_torch: Version of torch at least.
        max_torch: Version of torch before.
        min_python: Version of Python at least.
        bf16_cuda: A GPU that computes in bfloat16.
        tpu: A TPU.
        mps: Apple's GPU; False: none.
        skip_windows: Not Windows.
        standalone: Tests that need a process of their own are asked for (``PL_RUN_STANDALONE_TESTS=1``).
        deepspeed: DeepSpeed.
        dynamo: A compiler for ``torch.compile``.
        linux_only: Linux.

    Returns:
        The reasons, none if it can run, and the marks that such a test carries.
    """
    here, has_gpu, has_mps = platform.system(), torch.cuda.is_available(), MPSAccelerator.is_available()
    lacks = {
        f"GPUs>={min_cuda_gpus}": torch.cuda.device_count() < min_cuda_gpus,
        f"torch>={min_torch}, {torch.__version__} installed": _is_before(torch.__version__, min_torch),
        f"torch<{max_torch}, {torch.__version__} installed": (
            max_torch is not None and not _is_before(torch.__version__, max_torch)
        ),
        f"python>={min_python}": _is_before(platform.python_version(), min_python),
        "CUDA device bf16": bf16_cuda and not (has_gpu and torch.cuda.is_bf16_supported()),
        "unimplemented on Windows": skip_windows and here == "Windows",
        "TPU": tpu and not XLAAccelerator.is_available(),
        "MPS": mps is True and not has_mps,
        "not MPS": mps is False and has_mps,
        "Standalone execution": standalone and os.environ.get("PL_RUN_STANDALONE_TESTS") != "1",
        "Deepspeed": deepspeed and not available("deepspeed"),
        "torch.compile": dynamo and (here == "Windows" or sys.version_info >= (3, 15)),
        "only linux": linux_only and here != "Linux",
    }
    marks = {"min_cuda_gpus": min_cuda_gpus > 0, "tpu": tpu, "standalone": standalone}
    return [reason for reason, is_so in lacks.items() if is_so], {
        mark: True for mark, is_set in marks.items() if is_set
    }


def _is_before(version: str, other: str | None) -> bool:
    return other is not None and _numbers(version) < _numbers(other)


def _numbers(version: str) -> list[int]:
    """The release of a version: "2.13.0+cpu" is [2, 13, 0]."""
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]
