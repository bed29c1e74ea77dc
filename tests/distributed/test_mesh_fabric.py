"""Model parallel in a loop of the user's own."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

import meshes
from fulmen.fabric import Fabric
from fulmen.strategies import ModelParallelStrategy
from meshes import Network, Part, assert_same, loader, weights
from processes import RanksFailed, run_ranks


def train(network, optimizer, batches, backward, clip, window=1, no_sync=None):
    losses = []
    for index, (x, y) in enumerate(batches):
        closes = (index + 1) % window == 0
        with no_sync(not closes):
            loss = nn.functional.cross_entropy(network(x), y) / window
            backward(loss)
        losses.append(loss.item())
        if closes:
            clip()
            optimizer.step()
            optimizer.zero_grad()
    return losses


def new_network(seed=0):
    torch.manual_seed(seed)
    return Network()


def alone(window=1):
    network = new_network()
    optimizer = torch.optim.AdamW(network.parameters(), 0.05)

    def clip():
        nn.utils.clip_grad_norm_(network.parameters(), 0.05)

    train(network, optimizer, loader(), torch.Tensor.backward, clip, window, lambda enabled: torch.enable_grad())
    return weights(network)


def train_on_a_rank(spread, sizes, order, window):
    strategy = ModelParallelStrategy(*sizes, parallelize_fn=meshes.returning(meshes.SPREAD[spread]))
    fabric = Fabric(accelerator="cpu", devices=dist.get_world_size(), strategy=strategy)
    fabric.launch()
    network = new_network()
    if order == "at once":
        network, optimizer = fabric.setup(network, torch.optim.AdamW(network.parameters(), 0.05))
    else:
        network = fabric.setup_module(network)
        optimizer = fabric.setup_optimizers(torch.optim.AdamW(network.parameters(), 0.05))

    def clip():
        fabric.clip_gradients(network, optimizer, max_norm=0.05)

    def no_sync(enabled):
        return fabric.no_backward_sync(network, enabled)

    train(network, optimizer, Part(strategy, loader()), fabric.backward, clip, window, no_sync)
    return weights(network)


@pytest.mark.parametrize(
    ("spread", "sizes", "order", "window"),
    [
        ("tensor", (1, 2), "at once", 1),
        ("tensor", (2, 1), "one after the other", 2),
        ("sharded", (2, 1), "at once", 2),
    ],
)
def test_a_loop_of_ones_own(spread, sizes, order, window):
    for result in run_ranks(train_on_a_rank, 2, spread, sizes, order, window):
        assert_same(result, alone(window))


def save_and_load(path, distributed):
    def fabric_with(network, **settings):
        strategy = ModelParallelStrategy(1, 2, parallelize_fn=meshes.returning(meshes.tensor), **settings)
        fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
        fabric.launch()
        return fabric, *fabric.setup(network, torch.optim.AdamW(network.parameters(), 0.05))

    fabric, network, optimizer = fabric_with(new_network(), save_distributed_checkpoint=distributed)
    for x, y in loader():
        fabric.backward(nn.functional.cross_entropy(network(x), y))
        optimizer.step()
    fabric.save(path, {"model": network, "optimizer": optimizer, "step": 4})
    before = weights(network), meshes.whole(optimizer.state[network.up.weight]["exp_avg"])
    other, network, optimizer = fabric_with(new_network(seed=5))
    state = {"model": network, "optimizer": optimizer, "step": 0}
    other.load(path, state)
    after = weights(network), meshes.whole(optimizer.state[network.up.weight]["exp_avg"])
    return before, after, state["step"]


@pytest.mark.parametrize("distributed", [True, False])
def test_save_and_load(distributed, tmp_path):
    for (state, moment), (loaded, loaded_moment), step in run_ranks(
        save_and_load, 2, str(tmp_path / "saved"), distributed
    ):
        assert_same(loaded, state)
        torch.testing.assert_close(loaded_moment, moment)
        assert step == 4


def set_up(kind):
    functions = {"nothing": lambda module, mesh: None, "returned": meshes.returning(meshes.tensor)}
    strategy = ModelParallelStrategy(1, 2, parallelize_fn=functions[kind])
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    with fabric.init_module(empty_init=True):
        network = Network()
    is_meta = network.up.weight.is_meta
    torch.manual_seed(3)
    network = fabric.setup(network)
    return is_meta, weights(network), type(network.up.weight) is DTensor, fabric.all_gather(torch.ones(1)).shape


def test_modules_made_without_data():
    for is_meta, result, is_spread, shape in run_ranks(set_up, 2, "returned"):
        assert is_meta
        assert is_spread
        assert shape == (2, 1)
        network = Network()
        torch.manual_seed(3)
        for module in network.modules():
            getattr(module, "reset_parameters", lambda: None)()
        assert_same(result, weights(network))


def test_the_function_has_to_return_the_module():
    with pytest.raises(RanksFailed, match="`parallelize_fn` has to return the module it was given, got None"):
        run_ranks(set_up, 2, "nothing")
