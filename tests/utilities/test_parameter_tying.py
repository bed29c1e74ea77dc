import copy

import torch
from torch import nn

from fulmen.utilities.parameter_tying import find_shared_parameters, set_shared_parameters


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.again = nn.Sequential(self.first)


SHARED = [["first.weight", "second.weight", "again.0.weight"], ["first.bias", "again.0.bias"]]


def test_found_under_all_names():
    assert find_shared_parameters(Tied()) == SHARED
    assert find_shared_parameters(nn.Linear(1, 1)) == []


def test_tied_again():
    module = Tied()
    module.second.weight = nn.Parameter(torch.zeros(2, 2))
    module.again = copy.deepcopy(module.again)
    assert set_shared_parameters(module, SHARED) is module
    assert find_shared_parameters(module) == SHARED
    assert module.again[0].bias is module.first.bias
