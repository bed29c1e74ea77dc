"""A small network that model parallel tests spread over a mesh in several ways, and what they compare."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.strategies import ModelParallelStrategy

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Network(nn.Module):
    """A block, a norm that is in most plans of nobody, and a head."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.norm = nn.LayerNorm(4)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.dropout(self.norm(x + self.down(torch.tanh(self.up(x))))))


def tensor(network, mesh):
    """Layers divided over the tensor dimension; over the data dimension everything is a copy."""
    parallelize_module(network, mesh["tensor_parallel"], {"up": ColwiseParallel(), "down": RowwiseParallel()})


def sharded(network, mesh):
    """Layers divided over the tensor dimension, everything sharded over the data dimension or dimensions."""
    tensor(network, mesh)
    data = mesh[tuple(name for name in mesh.mesh_dim_names if name != "tensor_parallel")]
    fully_shard(network.norm, mesh=data)
    fully_shard(network, mesh=data)


def head_sharded(network, mesh):
    """Over the data dimension a part is sharded, the rest are copies."""
    tensor(network, mesh)
    fully_shard(network.head, mesh=mesh["data_parallel"])


class SequenceNetwork(nn.Module):
    """Works on sequences of two elements; its norm can work on a part of them."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.first, self.norm = nn.Linear(2, 4), nn.LayerNorm(4)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.first(x.view(-1, 2, 2)))
        return self.head(self.down(torch.tanh(self.up(x))).mean(1))


def sequence(network, mesh):
    """Between the layers each process has a part of each sequence; every parameter is a `DTensor`."""
    plan = {
        "first": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(network, mesh["tensor_parallel"], plan)


def classes(network, mesh):
    """The logits stay divided along the classes, for a loss of shards."""
    tensor(network, mesh)
    parallelize_module(network.head, mesh["tensor_parallel"], ColwiseParallel(use_local_output=False))


SPREAD = {"tensor": tensor, "sharded": sharded, "head": head_sharded, "classes": classes, "sequence": sequence}


def returning(spread):
    """What `ModelParallelStrategy(parallelize_fn=...)` takes."""

    def parallelize(network, mesh):
        spread(network, mesh)
        return network

    return parallelize


class Classifier(LightningModule):
    """Trains a `Network`; `spread` is a name in `SPREAD`."""

    def __init__(self, spread=None, seed=0, dropout=0.0, sequences=False, optimizer=torch.optim.SGD, **arguments):
        super().__init__()
        torch.manual_seed(seed)
        self.network = SequenceNetwork() if spread == "sequence" or sequences else Network(dropout)
        self.spread, self.optimizer, self.arguments = spread, optimizer, {"lr": 0.05, **arguments}
        self.losses = []

    def configure_model(self):
        if self.spread is not None and not any(isinstance(p, DTensor) for p in self.parameters()):
            SPREAD[self.spread](self.network, self.device_mesh)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.network(x), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), **self.arguments)


def data(size=32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 4, generator=generator)
    return TensorDataset(x, torch.randint(0, 3, (size,), generator=generator))


def loader(batch_size=8):
    return DataLoader(data(), batch_size)


class Part:
    """Of each batch that one process would get, the part for this process's place in the data dimension."""

    def __init__(self, strategy, batches):
        self.strategy, self.batches = strategy, batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        place = self.strategy.distributed_sampler_kwargs
        for batch in self.batches:
            yield [part.chunk(place["num_replicas"])[place["rank"]] for part in batch]


def whole(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


def weights(module):
    """The state of a module, with whole tensors; all ranks have to call it."""
    return {name: whole(value).clone() for name, value in module.state_dict().items()}


def assert_same(result, expected, **tolerance):
    assert list(result) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def fit(module, strategy=None, epochs=2, ckpt_path=None, **settings):
    """Train on this rank, or alone on whole batches if there is no strategy."""
    if strategy is None:
        trainer = Trainer(max_epochs=epochs, **QUIET | settings)
        trainer.fit(module, loader(), ckpt_path=ckpt_path)
        return trainer
    trainer = Trainer(devices=dist.get_world_size(), strategy=strategy, max_epochs=epochs, **QUIET | settings)
    trainer.fit(module, Part(strategy, loader()), ckpt_path=ckpt_path)
    return trainer


def fit_on_a_rank(spread, sizes, arguments=None, settings=None, **of_strategy):
    module = Classifier(spread, **arguments or {})
    trainer = fit(module, ModelParallelStrategy(*sizes, **of_strategy), **settings or {})
    return weights(module), trainer.global_step
