from __future__ import annotations

import gc
import weakref

import pytest
import torch

from fulmen.utilities.memory import (
    garbage_collection_cuda,
    is_cuda_out_of_memory,
    is_cudnn_snafu,
    is_oom_error,
    is_out_of_cpu_memory,
    recursive_detach,
)

ERRORS = {
    "CUDA out of memory. Tried to allocate 20.00 GiB.": is_cuda_out_of_memory,
    "CUDA error: out of memory": is_cuda_out_of_memory,
    "MPS backend out of memory (MPS allocated: 9.00 GB)": is_cuda_out_of_memory,
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": is_cuda_out_of_memory,
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if": is_cudnn_snafu,
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED": is_cudnn_snafu,
    "[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: can't allocate memory: you": is_out_of_cpu_memory,
}


@pytest.mark.parametrize("text", ERRORS)
def test_what_says_that_memory_ran_out(text):
    error = RuntimeError(text)
    kinds = (is_cuda_out_of_memory, is_cudnn_snafu, is_out_of_cpu_memory)
    assert [kind for kind in kinds if kind(error)] == [ERRORS[text]]
    assert is_oom_error(error)
    assert not is_oom_error(ValueError(text))


def test_types_that_mean_it():
    assert is_cuda_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_cpu_memory(MemoryError())


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), RuntimeError(), KeyError("memory")])
def test_what_does_not(error):
    assert not is_oom_error(error)


def test_the_error_of_torch_itself():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_cpu_memory(caught.value)


def test_garbage_is_collected():
    class Node:
        pass

    node = Node()
    node.itself = node
    watched = weakref.ref(node)
    gc.disable()
    try:
        del node
        assert watched() is not None
        garbage_collection_cuda()
        assert watched() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("to_cpu", [False, True])
def test_recursive_detach(to_cpu):
    loss = torch.ones(1, requires_grad=True) * 2
    detached = recursive_detach({"a": [loss, 1], "b": {"c": (loss,)}}, to_cpu)
    assert detached == {"a": [torch.tensor([2.0]), 1], "b": {"c": (torch.tensor([2.0]),)}}
    assert not detached["a"][0].requires_grad
    assert not detached["b"]["c"][0].requires_grad
    assert loss.requires_grad
