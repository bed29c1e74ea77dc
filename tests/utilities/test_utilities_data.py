import pytest
import torch

from fulmen.errors import MisconfigurationException
from fulmen.utilities.data import extract_batch_size


def test_the_first_dimension_of_the_first_tensor():
    assert extract_batch_size(torch.ones(3, 2)) == 3
    assert extract_batch_size([{"a": torch.ones(4)}, "text"]) == 4


@pytest.mark.parametrize("batch", ["text", [], {"a": 1}])
def test_without_a_tensor_it_is_not_known(batch):
    with pytest.raises(MisconfigurationException, match="holds no tensor"):
        extract_batch_size(batch)
