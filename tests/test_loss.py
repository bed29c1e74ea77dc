"""The loss protocol: several small batches give what one big batch gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fulmen import LightningModule, Loss, Trainer

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 1,
}


class Weighted(LightningModule):
    """Fits a line; ``form`` says how the loss is returned."""

    def __init__(self, form="loss", optimizer=torch.optim.SGD):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1, dtype=torch.float64)
        self.form, self.optimizer = form, optimizer

    def training_step(self, batch, batch_idx):
        inputs, weights = batch
        total = (self.layer(inputs).squeeze(1).pow(2) * weights).sum()
        weight = weights.sum()
        if self.form == "number":
            weight = float(weight)
        loss = Loss(total, weight)
        return {"loss": loss, "extra": 1} if self.form == "dictionary" else loss

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=0.1)


def batches_of(sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 3, generator=generator, dtype=torch.float64),
            torch.rand(size, generator=generator, dtype=torch.float64) + 0.1,
        )
        for size in sizes
    ]


class Ready:
    """A loader of ready batches."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def fitted(batches, form="loss", **arguments):
    model = Weighted(form)
    Trainer(**QUIET, **arguments).fit(model, Ready(batches))
    return model.layer.weight.detach()


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=7), window=st.integers(1, 4))
def test_a_window_steps_as_one_big_batch(sizes, window):
    batches = batches_of(sizes)
    windows = [batches[start : start + window] for start in range(0, len(batches), window)]
    merged = [tuple(torch.cat(parts) for parts in zip(*part, strict=True)) for part in windows]
    torch.testing.assert_close(fitted(batches, accumulate_grad_batches=window), fitted(merged))


@pytest.mark.parametrize("form", ["loss", "number", "dictionary"])
def test_forms_of_the_loss(form):
    batches = batches_of([2, 5, 1])
    torch.testing.assert_close(
        fitted(batches, form, accumulate_grad_batches=2), fitted(batches, accumulate_grad_batches=2)
    )


def test_a_window_of_one_is_the_plain_mean():
    (inputs, weights), *_ = batches = batches_of([4])
    model = Weighted()
    (model.layer(inputs).squeeze(1).pow(2) * weights).sum().div(weights.sum()).backward()
    expected = model.layer.weight.detach() - 0.1 * model.layer.weight.grad
    torch.testing.assert_close(fitted(batches), expected)


def test_gradients_are_corrected_before_they_are_seen_and_clipped():
    seen = []

    class Watching(Weighted):
        def on_before_optimizer_step(self, optimizer):
            seen.append(self.layer.weight.grad.clone())

    batches = batches_of([2, 5])
    model = Watching()
    Trainer(**QUIET, accumulate_grad_batches=2, gradient_clip_val=1e-3).fit(model, Ready(batches))
    inputs, weights = (torch.cat(parts) for parts in zip(*batches, strict=True))
    whole = Weighted()
    (whole.layer(inputs).squeeze(1).pow(2) * weights).sum().div(weights.sum()).backward()
    torch.testing.assert_close(seen[0], whole.layer.weight.grad)


def test_the_logged_mean_is_weighted_likewise():
    class Logging(Weighted):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, on_step=True, on_epoch=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    batches = batches_of([2, 5, 1])
    trainer = Trainer(**QUIET)
    trainer.fit(model := Logging(), Ready(batches))
    inputs, weights = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = (model.layer(inputs).squeeze(1).pow(2) * weights).sum() / weights.sum()
    torch.testing.assert_close(trainer.callback_metrics["loss_epoch"].double(), expected.detach(), rtol=1e-6, atol=0)
    last = Loss(*((model.layer(batches[-1][0]).squeeze(1).pow(2) * batches[-1][1]).sum(), batches[-1][1].sum())).mean
    torch.testing.assert_close(trainer.callback_metrics["loss_step"].double(), last.detach(), rtol=1e-6, atol=0)
