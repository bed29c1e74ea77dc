import warnings

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from fulmen.errors import MisconfigurationException
from fulmen.strategies import SingleDeviceStrategy
from fulmen.utilities.data import extract_batch_size, has_len_all_ranks


def test_the_first_dimension_of_the_first_tensor():
    assert extract_batch_size(torch.ones(3, 2)) == 3
    assert extract_batch_size([{"a": torch.ones(4)}, "text"]) == 4


@pytest.mark.parametrize("batch", ["text", [], {"a": 1}])
def test_without_a_tensor_it_is_not_known(batch):
    with pytest.raises(MisconfigurationException, match="holds no tensor"):
        extract_batch_size(batch)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([1, 2])


class Sized(Stream):
    def __len__(self):
        return 2


class WithOthers(SingleDeviceStrategy):
    """As if other processes had five batches more."""

    def reduce(self, tensor, group=None, reduce_op="mean"):
        assert reduce_op == "sum"
        return tensor + 5


ALONE, BESIDE_OTHERS = SingleDeviceStrategy(device="cpu"), WithOthers(device="cpu")


@pytest.mark.parametrize(
    ("loader", "expected"), [([1, 2], True), (DataLoader(Stream()), False), ((i for i in range(2)), False)]
)
@pytest.mark.parametrize("strategy", [ALONE, BESIDE_OTHERS])
def test_whether_loaders_have_a_length(loader, expected, strategy):
    assert has_len_all_ranks(loader, strategy) is expected


@pytest.mark.parametrize(
    ("loader", "strategy", "message"),
    [
        ([], ALONE, "`list` loader has no batches on any rank"),
        ([], BESIDE_OTHERS, "`list` loader has no batches on this rank, but 5 on others"),
        (DataLoader(Sized()), ALONE, "has a `__len__`"),
    ],
)
def test_lengths_that_are_odd(loader, strategy, message):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert has_len_all_ranks(loader, strategy, allow_zero_length_dataloader_with_multiple_devices=True)
    assert [message in str(warning.message) for warning in caught] == [True]


def test_a_loader_must_not_be_the_only_empty_one():
    with pytest.raises(RuntimeError, match="5 on others, which would wait forever"):
        has_len_all_ranks([], BESIDE_OTHERS)
