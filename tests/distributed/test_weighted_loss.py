"""`Loss(sum, weight)` on several processes: the mean over the items of all of them."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fulmen import LightningModule, Loss, Trainer
from processes import RanksFailed, run_ranks

LENGTHS = (3, 17, 5, 9, 2, 11, 7, 1, 4, 6)  # of the micro-batches, in the order of one process
QUIET = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Tagger(LightningModule):
    def __init__(self, as_tensor):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        self.as_tensor = as_tensor

    def training_step(self, batch, batch_idx):
        x, y = batch
        total = nn.functional.cross_entropy(self.layers(x), y, reduction="sum")
        loss = Loss(total, torch.tensor(len(y)) if self.as_tensor else len(y))
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


class Sentences:
    """Every so many-th of the micro-batches."""

    def __init__(self, rank=0, size=1):
        generator = torch.Generator().manual_seed(1)
        all_of_them = [torch.randn(length, 3, generator=generator) for length in LENGTHS]
        self.batches = [(x, (x.sum(1) > 0).long()) for x in all_of_them[rank::size]]

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def train(loader, as_tensor, **settings):
    module = Tagger(as_tensor)
    trainer = Trainer(**QUIET, **settings)
    trainer.fit(module, loader)
    weights = trainer.strategy.lightning_module_state_dict()
    return {name: value.detach().clone() for name, value in weights.items()}, trainer.callback_metrics["loss"]


def train_on_a_rank(strategy, window, as_tensor):
    loader = Sentences(dist.get_rank(), dist.get_world_size())
    return train(loader, as_tensor, devices=2, strategy=strategy, accumulate_grad_batches=window)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("window", [1, 2])  # of five batches a rank: the last window of two is not full
def test_the_gradient_is_that_of_all_items(strategy, window):
    expected, loss = train(Sentences(), False, accumulate_grad_batches=2 * window)
    for place, (weights, mean) in enumerate(run_ranks(train_on_a_rank, 2, strategy, window, window == 2)):
        torch.testing.assert_close(mean, loss)
        for name, value in weights.items() if place == 0 or strategy == "ddp" else ():
            torch.testing.assert_close(value, expected[name])


def train_by_hand():
    module = Tagger(False)
    module.automatic_optimization = False
    module.training_step = lambda batch, batch_idx: module.manual_backward(Loss(torch.ones(()), 2))
    Trainer(devices=2, **QUIET).fit(module, Sentences())


def test_manual_optimisation_says_what_to_type():
    with pytest.raises(RanksFailed, match=r"manual_backward\(loss.mean\)"):
        run_ranks(train_by_hand, 2)
