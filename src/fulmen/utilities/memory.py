"""Memory: was it the lack of it that ended something, and giving back what is no longer used."""

from __future__ import annotations

import gc
from typing import Any

import torch

from fulmen.tree import map_tensors

__all__ = [
    "garbage_collection_cuda",
    "is_cuda_out_of_memory",
    "is_cudnn_snafu",
    "is_oom_error",
    "is_out_of_cpu_memory",
    "recursive_detach",
]


def recursive_detach(in_dict: Any, to_cpu: bool = False) -> Any:
    """The same nesting with every tensor cut off from its graph.

    Args:
        in_dict: Tensors in any nesting.
        to_cpu: Whether they are moved to the CPU, too.
    """
    return map_tensors(lambda tensor: tensor.detach().cpu() if to_cpu else tensor.detach(), in_dict)


def is_oom_error(exception: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a device or on the CPU."""
    return is_cuda_out_of_memory(exception) or is_cudnn_snafu(exception) or is_out_of_cpu_memory(exception)


def is_cuda_out_of_memory(exception: BaseException) -> bool:
    """Whether an exception says that the memory of a device ran out."""
    if isinstance(exception, torch.OutOfMemoryError):
        return True
    # cuBLAS cannot get its workspace; a data loader's worker passes on the text only
    return _says(exception, "out of memory") or _says(exception, "CUBLAS_STATUS_ALLOC_FAILED")


def is_cudnn_snafu(exception: BaseException) -> bool:
    """Whether an exception is one of cuDNN's that come where its memory ran out.

    "Not supported" is what cuDNN answers when no algorithm fits into the memory that is left.
    """
    return _says(exception, "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED.") or (
        _says(exception, "CUDNN_STATUS") and _says(exception, "ALLOC")
    )


def is_out_of_cpu_memory(exception: BaseException) -> bool:
    """Whether an exception says that the memory of the CPU ran out."""
    return isinstance(exception, MemoryError) or _says(exception, "DefaultCPUAllocator: can't allocate memory")


def _says(exception: BaseException, text: str) -> bool:
    return isinstance(exception, RuntimeError) and text in str(exception)


def garbage_collection_cuda() -> None:
    """Frees what nothing refers to any more, and gives the cached memory of CUDA devices back."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
