"""What all tests share: one thread per worker, a clean rank, and no GPU tests where there is no GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from fulmen.ranks import rank_zero_only

settings.register_profile("fulmen", deadline=None)  # no test is about time
settings.load_profile("fulmen")
torch.set_num_threads(1)  # the workers of pytest-xdist share the cores
os.environ["LOCAL_WORLD_SIZE"] = str(os.cpu_count())  # so that no machine has cores left to hint at


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _rank_is_restored() -> Iterator[None]:
    rank = rank_zero_only.rank
    yield
    rank_zero_only.rank = rank
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # of a strategy of several processes that ran on one
