"""Batch norms that share their statistics, and their way back."""

import pytest
import torch
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.layer_sync import LayerSync, TorchSyncBatchNorm


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, momentum=0.5)
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_there_and_back():
    net, sync = Net(), TorchSyncBatchNorm()
    originals, weight = (net.norm, net.body[1]), net.norm.weight
    assert sync.apply(net) is net
    assert [type(net.norm), type(net.body[1]), type(net.body[0])] == [nn.SyncBatchNorm, nn.SyncBatchNorm, nn.Conv2d]
    assert net.norm.weight is weight

    net.to(torch.float64)
    with torch.no_grad():
        net.norm.weight.fill_(7)
        net.norm.running_mean.fill_(5)
    net.norm.eval()
    assert sync.revert(net) is net
    assert (net.norm, net.body[1]) == originals
    assert net.norm.weight is weight
    assert net.norm.running_mean.tolist() == [5.0] * 3
    assert net.norm.running_mean.dtype is torch.float64
    assert (net.norm.training, net.body[1].training) == (False, True)
    assert net.norm(torch.ones(1, 3, dtype=torch.float64)).isfinite().all()


def test_a_batch_norm_alone():
    norm, sync = nn.BatchNorm1d(3), TorchSyncBatchNorm()
    synced = sync.apply(norm)
    assert type(synced) is nn.SyncBatchNorm
    assert sync.revert(synced) is norm


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (4, 3, 2, 2)])
def test_layers_that_were_synchronised_from_the_start_take_any_input(shape):
    net = nn.Sequential(nn.SyncBatchNorm(3, eps=0.5, affine=False))
    net[0].running_mean.fill_(1)
    plain = TorchSyncBatchNorm().revert(net)[0].eval()
    assert not isinstance(plain, nn.SyncBatchNorm)
    assert (plain.eps, plain.weight) == (0.5, None)
    assert torch.allclose(plain(torch.full(shape, 2.0)), torch.tensor(1 / 1.5**0.5))


def test_a_users_own_has_both_ways():
    class OneWay(LayerSync):
        def apply(self, model):
            return model

    with pytest.raises(TypeError, match="revert"):
        OneWay()


def test_loops_of_the_users_own_convert_the_module_themselves():
    with pytest.raises(TypeError, match=r"TorchSyncBatchNorm\(\).apply\(model\)"):
        Fabric(accelerator="cpu", plugins=TorchSyncBatchNorm())
