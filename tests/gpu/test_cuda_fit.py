"""A fit on a GPU: no synchronisation of ours, every precision, a resume that is exact, all back on the CPU."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, LightningModule, Trainer, seed_everything
from fulmen.callbacks import ModelCheckpoint

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:There is a `validation_step`")]

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cuda",
    "devices": 1,
}


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))
        self.losses = []

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self.layers(inputs), targets)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        self.log("val_loss", nn.functional.cross_entropy(self.layers(inputs), targets))

    def configure_optimizers(self):
        # in half precision the epsilon of AdamW is zero, and a division by it no number
        half = self.layers[0].weight.dtype == torch.float16
        return (torch.optim.SGD if half else torch.optim.AdamW)(self.parameters(), lr=1e-2)


def loader(shuffle=True, pin_memory=False):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(96, 16, generator=generator)
    targets = torch.randint(4, (96,), generator=generator)
    return DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=shuffle, pin_memory=pin_memory)


class NoSynchronisation(Callback):
    """Makes every synchronisation with the device an error while batches are trained on."""

    def on_train_epoch_start(self, trainer, pl_module):
        torch.cuda.set_sync_debug_mode("error")

    def on_train_epoch_end(self, trainer, pl_module):
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, trainer, pl_module, exception):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_does_not_synchronise(precision, accumulate):
    trainer = Trainer(
        **QUIET,
        max_epochs=2,
        enable_checkpointing=False,
        precision=precision,
        accumulate_grad_batches=accumulate,
        callbacks=[NoSynchronisation()],
    )
    trainer.fit(Net(), loader(pin_memory=True))
    assert trainer.global_step == 12 // accumulate
    assert trainer.callback_metrics["loss_epoch"].device.type == "cpu"


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"])
def test_it_learns_in_every_precision(precision):
    seed_everything(0, verbose=False)
    model = Net()
    trainer = Trainer(**QUIET, max_epochs=8, enable_checkpointing=False, precision=precision)
    trainer.fit(model, loader(), loader(shuffle=False))
    assert model.losses[-1].float().item() < model.losses[0].float().item()
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_losses_are_those_of_a_raw_loop():
    seed_everything(3, verbose=False)
    raw = Net().cuda()
    optimizer = raw.configure_optimizers()
    losses = []
    for inputs, targets in loader():
        loss = nn.functional.cross_entropy(raw.layers(inputs.cuda()), targets.cuda())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    seed_everything(3, verbose=False)
    model = Net()
    Trainer(**QUIET, max_epochs=1, enable_checkpointing=False).fit(model, loader())
    assert torch.equal(torch.stack(losses), torch.stack(model.losses))


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, precision):
    def run(name, ckpt_path=None):
        seed_everything(5 if ckpt_path is None else 99, verbose=False)
        model = Net()
        checkpoint = ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=4, save_top_k=-1)
        trainer = Trainer(**QUIET, max_epochs=3, callbacks=[checkpoint], precision=precision)
        trainer.fit(model, loader(), loader(shuffle=False), ckpt_path=ckpt_path)
        return model

    whole = run("whole")
    for step in (4, 8, 12):
        again = run("whole", tmp_path / "whole" / f"step={step}.ckpt")
        assert all(
            torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
        )
