"""A recurrent language model, whose state goes from batch to batch."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler

from fulmen.demos.transformer import WikiText2
from fulmen.module import LightningModule

__all__ = ["LightningLSTM", "SequenceSampler", "SimpleLSTM"]

State = tuple[Tensor, Tensor]


class SimpleLSTM(nn.Module):
    """Predicts words from the words before them.

    Args:
        vocab_size: Number of different words.
        ninp: Length of the vector that stands for a word.
        nhid: Width of the layers.
        nlayers: Number of layers.
        dropout: Share of the values dropped in training.
    """

    def __init__(
        self, vocab_size: int = 33278, ninp: int = 512, nhid: int = 512, nlayers: int = 4, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocab_size, ninp)
        self.rnn = nn.LSTM(ninp, nhid, nlayers, dropout=dropout, batch_first=True)
        self.decoder = nn.Linear(nhid, vocab_size)
        self.nlayers = nlayers
        self.nhid = nhid
        self.init_weights()

    def init_weights(self) -> None:
        """Draws small weights for the first and the last layer."""
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, input: Tensor, hidden: State) -> tuple[Tensor, State]:
        """The log probabilities of the next words, and the state after them.

        Args:
            input: Numbers of words, (N, T).
            hidden: The state before them; see ``init_hidden``.

        Returns:
            Log probabilities, (N * T, vocab_size), and the new state.
        """
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        decoded = self.decoder(self.drop(output)).view(-1, self.vocab_size)
        return F.log_softmax(decoded, dim=1), hidden

    def init_hidden(self, batch_size: int) -> State:
        """The state at the start of a text: zeros, (nlayers, batch_size, nhid) twice."""
        shape, like = (self.nlayers, batch_size, self.nhid), self.decoder.weight
        return like.new_zeros(shape), like.new_zeros(shape)


class SequenceSampler(Sampler[list[int]]):
    """Batches in which each place goes on where it was in the batch before, as a state that is kept needs it.

    Args:
        dataset: Anything with a length.
        batch_size: Samples in a batch. What the dataset has beyond a multiple of it is left out.
    """

    def __init__(self, dataset: Sized, batch_size: int) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size = batch_size
        self.chunk_size = len(dataset) // batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.chunk_size):
            yield [step + place * self.chunk_size for place in range(self.batch_size)]

    def __len__(self) -> int:
        return self.chunk_size


class LightningLSTM(LightningModule):
    """Trains a ``SimpleLSTM`` on ``WikiText2``.

    Args:
        vocab_size: Number of different words.
    """

    def __init__(self, vocab_size: int = 33278) -> None:
        super().__init__()
        self.model = SimpleLSTM(vocab_size=vocab_size)
        self.hidden: State | None = None

    def on_train_epoch_end(self) -> None:
        """The next epoch begins the text anew."""
        self.hidden = None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        """The negative log likelihood, logged as "train_loss"; the state is kept for the next batch."""
        inputs, target = batch
        hidden = self.model.init_hidden(inputs.size(0)) if self.hidden is None else self.hidden
        output, (short, long) = self.model(inputs, hidden)
        self.hidden = short.detach(), long.detach()
        loss = F.nll_loss(output, target.view(-1))
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD, with the high learning rate that this model bears."""
        return torch.optim.SGD(self.parameters(), lr=20.0)

    def prepare_data(self) -> None:
        """Makes the text."""
        WikiText2(download=True)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The pieces of the text, 20 places at once."""
        dataset = WikiText2()
        return DataLoader(dataset, batch_sampler=SequenceSampler(dataset, batch_size=20))
