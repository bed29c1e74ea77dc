"""A small language model, and a text for it to learn.

The text is made on the spot, by a grammar of a few rules, so that nothing has to be downloaded. It is written where the
words of WikiText-2 are expected, as ``wiki.train.tokens``; with the real file in that place, that one is read.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import MultiheadAttention as MultiheadAttention
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from fulmen.module import LightningModule

__all__ = ["Dictionary", "LightningTransformer", "PositionalEncoding", "Transformer", "WikiText2", "tokenize"]

_SUBJECTS = ("the river", "a king", "the old town", "her ship", "the second army", "a small bird", "the song", "no one")
_VERBS = ("reached", "followed", "forgot", "built", "crossed", "described", "won", "left")
_OBJECTS = ("the coast", "two bridges", "its name", "the northern road", "a long war", "the first album", "a new house")
_ENDINGS = ("in the spring", "after nine years", "without a reason", "near the border", "for the last time")
_NUM_SENTENCES = 2000


class Transformer(nn.Module):
    """Predicts words from the words before them, with ``torch.nn.Transformer``.

    Args:
        vocab_size: Number of different words.
        ninp: Length of the vector that stands for a word.
        nhead: Heads of the attention.
        nhid: Width of the layers between the attentions.
        nlayers: Layers of the encoder, and of the decoder.
        dropout: Share of the values dropped in training.
    """

    def __init__(
        self,
        vocab_size: int = 33278,
        ninp: int = 200,
        nhead: int = 2,
        nhid: int = 200,
        nlayers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.pos_encoder = PositionalEncoding(ninp, dropout)
        self.embedding = nn.Embedding(vocab_size, ninp)
        self.transformer = nn.Transformer(
            d_model=ninp,
            nhead=nhead,
            num_encoder_layers=nlayers,
            num_decoder_layers=nlayers,
            dim_feedforward=nhid,
            dropout=dropout,
            batch_first=True,
        )
        self.decoder = nn.Linear(ninp, vocab_size)
        self.ninp = ninp
        self.vocab_size = vocab_size
        self.src_mask: Tensor | None = None

    def generate_square_subsequent_mask(self, size: int) -> Tensor:
        """What hides the words to come. Shape: (size, size); -inf where a word must not be seen, else 0."""
        return torch.full((size, size), -math.inf).triu(diagonal=1)

    def forward(self, inputs: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The log probabilities of the words.

        Args:
            inputs: Numbers of words, (N, T).
            target: Numbers of the words to predict, (N, T).
            mask: What hides the words to come, (T, T).

        Returns:
            Log probabilities, (N * T, vocab_size).
        """
        length = inputs.size(1)
        if mask is None:
            if self.src_mask is None or self.src_mask.size(0) != length or self.src_mask.device != inputs.device:
                self.src_mask = self.generate_square_subsequent_mask(length).to(inputs.device)
            mask = self.src_mask
        source = self.pos_encoder(self.embedding(inputs) * math.sqrt(self.ninp))
        wanted = self.pos_encoder(self.embedding(target) * math.sqrt(self.ninp))
        output = self.decoder(self.transformer(source, wanted, tgt_mask=mask))
        return F.log_softmax(output, dim=-1).view(-1, self.vocab_size)


class PositionalEncoding(nn.Module):
    """Adds to each vector of a sequence where it stands (sines and cosines, Vaswani et al. 2017).

    Args:
        dim: Length of the vectors.
        dropout: Share of the values dropped in training.
        max_len: The longest sequence.
    """

    pe: Tensor

    def __init__(self, dim: int, dropout: float = 0.1, max_len: int = 5000) -> None:
        super().__init__()
        self.dropout = nn.Dropout(p=dropout)
        self.dim = dim
        self.max_len = max_len
        self.register_buffer("pe", encode_positions(dim, max_len), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (N, T, dim) -> (N, T, dim)."""
        output: Tensor = self.dropout(x + self.pe[:, : x.size(1)])
        return output


def encode_positions(dim: int, max_len: int) -> Tensor:
    """A vector for each position: sines in its even places, cosines in its odd ones. Shape: (1, max_len, dim)."""
    position = torch.arange(max_len).unsqueeze(1)
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    encoding = torch.zeros(1, max_len, dim)
    encoding[0, :, 0::2] = torch.sin(position * rates)
    encoding[0, :, 1::2] = torch.cos(position * rates)[:, : dim // 2]
    return encoding


class WikiText2(Dataset[tuple[Tensor, Tensor]]):
    """Pieces of a text, each with the same piece one word further on.

    Args:
        data_dir: Folder of ``wiki.train.tokens``.
        block_size: Words in a piece.
        download: Whether the text is made if the file is missing; see the head of this module.
    """

    def __init__(self, data_dir: Path = Path("data"), block_size: int = 35, download: bool = True) -> None:
        self.path = Path(data_dir) / "wiki.train.tokens"
        if download:
            self.download(self.path)
        self.data, self.dictionary = tokenize(self.path)
        self.block_size = block_size

    @property
    def vocab_size(self) -> int:
        """Number of different words."""
        return len(self.dictionary)

    def __len__(self) -> int:
        return len(self.data) // self.block_size - 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * self.block_size
        end = start + self.block_size
        return self.data[start:end], self.data[start + 1 : end + 1]

    @staticmethod
    def download(destination: Path) -> None:
        """Makes the text, always the same one, unless the file is there already."""
        if destination.exists():
            return
        draw = random.Random(0)
        parts = (_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS)
        lines = [" ".join(draw.choice(part) for part in parts) + " .\n" for _ in range(_NUM_SENTENCES)]
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_text("".join(lines), encoding="utf-8")


class Dictionary:
    """Numbers for words, in the order in which they come."""

    def __init__(self) -> None:
        self.word2idx: dict[str, int] = {}
        self.idx2word: list[str] = []

    def add_word(self, word: str) -> int:
        """The number of a word, a new one for a new word."""
        if word not in self.word2idx:
            self.word2idx[word] = len(self.idx2word)
            self.idx2word.append(word)
        return self.word2idx[word]

    def __len__(self) -> int:
        return len(self.idx2word)


def tokenize(path: Path) -> tuple[Tensor, Dictionary]:
    """The words of a file as numbers, with ``<eos>`` at the end of each line.

    Raises:
        FileNotFoundError: There is no such file.
    """
    dictionary = Dictionary()
    numbers: list[int] = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            numbers += [dictionary.add_word(word) for word in [*line.split(), "<eos>"]]
    return torch.tensor(numbers, dtype=torch.int64), dictionary


class LightningTransformer(LightningModule):
    """Trains a ``Transformer`` on ``WikiText2``.

    Args:
        vocab_size: Number of different words.
    """

    def __init__(self, vocab_size: int = 33278) -> None:
        super().__init__()
        self.model = Transformer(vocab_size=vocab_size)

    def forward(self, inputs: Tensor, target: Tensor) -> Tensor:
        """The log probabilities of the words; see ``Transformer``."""
        output: Tensor = self.model(inputs, target)
        return output

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        """The negative log likelihood."""
        inputs, target = batch
        return F.nll_loss(self(inputs, target), target.view(-1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.model.parameters(), lr=0.1)

    def prepare_data(self) -> None:
        """Makes the text."""
        WikiText2(download=True)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The pieces of the text."""
        return DataLoader(WikiText2())
