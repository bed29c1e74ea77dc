"""A small model of blocks, its data, and what tests of sharded runs compare."""

from itertools import chain

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from fulmen import LightningModule, Trainer

__all__ = [
    "GLOBAL_BATCH",
    "QUIET",
    "Block",
    "Blocks",
    "Evaluated",
    "data",
    "difference",
    "fit_alone",
    "share",
    "trainer_for",
]

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
GLOBAL_BATCH = 8
SAMPLES = 24


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Blocks(LightningModule):
    """A regression; the same weights whenever it is made."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.last = nn.Linear(4, 1)
        self.losses = []

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)

    def loss(self, batch):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.02)


class Evaluated(Blocks):
    """The same with all kinds of evaluation."""

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), batch_size=len(batch[0]), sync_dist=True)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch), batch_size=len(batch[0]), sync_dist=True)

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


def data(size=SAMPLES):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 4, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True))


def share(dataset, global_batch=GLOBAL_BATCH):
    """The loader of a rank, of which each batch is a part of the global batch of the same number."""
    rank, size = dist.get_rank(), dist.get_world_size()
    each = global_batch // size
    starts = range(rank * each, len(dataset), global_batch)
    indices = list(chain.from_iterable(range(start, start + each) for start in starts))
    return DataLoader(Subset(dataset, indices), each)


def trainer_for(strategy="fsdp", **arguments):
    settings = {"max_epochs": 1, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
    return Trainer(**QUIET | settings | {"strategy": strategy, "devices": dist.get_world_size()} | arguments)


def fit_alone(make=Blocks, ckpt_path=None, **arguments):
    """One process on the global batches: its trainer, whose module has trained."""
    trainer = Trainer(**QUIET | {"max_epochs": 1, "num_sanity_val_steps": 0} | arguments)
    module = make()
    evaluated = DataLoader(data(8), GLOBAL_BATCH) if isinstance(module, Evaluated) else None
    trainer.fit(module, DataLoader(data(), GLOBAL_BATCH), evaluated, ckpt_path=ckpt_path)
    return trainer


def difference(expected, found, where=""):
    """The largest difference of any number in nested containers, which have to be of one structure."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert set(expected) == set(found), where
        return max((difference(value, found[key], f"{where}.{key}") for key, value in expected.items()), default=0.0)
    if isinstance(expected, (list, tuple)):
        assert len(expected) == len(found), where
        pairs = enumerate(zip(expected, found, strict=True))
        return max((difference(*pair, f"{where}.{place}") for place, pair in pairs), default=0.0)
    if isinstance(expected, torch.Tensor):
        assert type(found) is type(expected), where
        assert (expected.shape, expected.dtype, expected.device) == (found.shape, found.dtype, found.device), where
        return (expected.double() - found.double()).abs().max().item() if expected.numel() else 0.0
    if isinstance(expected, float):
        return abs(expected - found)
    assert expected == found, where
    return 0.0
