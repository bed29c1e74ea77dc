"""What data parallel training needs beyond torch's own parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel import distributed as data_parallel
from torch.utils.data import DistributedSampler, Sampler

from fulmen.fabric.utilities.distributed import SamplerAsDataset

__all__ = ["UnrepeatedDistributedSampler", "UnrepeatedDistributedSamplerWrapper", "prepare_for_backward"]


class UnrepeatedDistributedSampler(DistributedSampler[Any]):
    """Shares a dataset out among the processes so that each sample comes exactly once, as predictions need it.

    Some processes then have one sample more than others.

    Args:
        *args: As for `DistributedSampler`.
        **kwargs: As for `DistributedSampler`; `drop_last` has no meaning here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.total_size = len(self.dataset)  # type: ignore[arg-type]
        if self.total_size < self.num_replicas:
            raise ValueError(
                f"{self.total_size} samples cannot be shared out among {self.num_replicas} processes. Use fewer."
            )
        self.num_samples = len(range(self.rank, self.total_size, self.num_replicas))

    def __iter__(self) -> Iterator[Any]:
        if self.shuffle:
            generator = torch.Generator()
            generator.manual_seed(self.seed + self.epoch)
            indices = torch.randperm(self.total_size, generator=generator).tolist()
        else:
            indices = list(range(self.total_size))
        return iter(indices[self.rank :: self.num_replicas])


class UnrepeatedDistributedSamplerWrapper(UnrepeatedDistributedSampler):
    """The same for the indices of any sampler.

    Args:
        sampler: The sampler, which must draw the same indices on all processes.
        *args: As for `DistributedSampler`, after the dataset.
        **kwargs: The same by name.
    """

    def __init__(self, sampler: Sampler[Any] | Sequence[Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(SamplerAsDataset(sampler), *args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        drawn: Any = self.dataset
        drawn.draw()
        return (drawn[index] for index in super().__iter__())


def prepare_for_backward(model: DistributedDataParallel, output: Any) -> None:
    """Tells a data parallel module what its next backward pass starts from, if it was not called for it.

    Args:
        model: The wrapped module.
        output: What was computed, in any nesting: the parameters that it does not depend on are not waited for.
    """
    if not (torch.is_grad_enabled() and model.require_backward_grad_sync):
        model.require_forward_param_sync = False
        return
    model.require_forward_param_sync = True
    searches = model.find_unused_parameters and not model.static_graph
    tensors: list[Any] = list(data_parallel._find_tensors(output)) if searches else []  # type: ignore[no-untyped-call]
    model.reducer.prepare_for_backward(tensors)
