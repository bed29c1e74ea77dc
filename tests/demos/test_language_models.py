"""The transformer, the LSTM and their text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fulmen
from fulmen.demos import (
    LightningLSTM,
    LightningTransformer,
    SequenceSampler,
    SimpleLSTM,
    Transformer,
    WikiText2,
)
from fulmen.demos.transformer import Dictionary, PositionalEncoding, tokenize


@pytest.fixture
def trainer() -> fulmen.Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return fulmen.Trainer(accelerator="cpu", max_epochs=1, limit_train_batches=3, **dict.fromkeys(off, False))


def test_words_get_numbers(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a b c\nb c d\n")
    numbers, dictionary = tokenize(tmp_path / "text")
    assert numbers.tolist() == [0, 1, 2, 3, 1, 2, 4, 3]
    assert dictionary.idx2word == ["a", "b", "c", "<eos>", "d"]


def test_a_dictionary() -> None:
    dictionary = Dictionary()
    assert [dictionary.add_word(word) for word in "aba"] == [0, 1, 0]
    assert len(dictionary) == 2
    assert dictionary.word2idx == {"a": 0, "b": 1}


def test_the_text_is_made_once_and_the_same(tmp_path: Path) -> None:
    first = WikiText2(tmp_path / "one")
    again = WikiText2(tmp_path / "two")
    assert torch.equal(first.data, again.data)
    assert first.vocab_size == len(first.dictionary) > 30
    inputs, target = first[3]
    assert inputs.shape == (35,)
    assert torch.equal(inputs[1:], target[:-1])
    assert first[len(first) - 1][1].shape == (35,)


def test_a_file_that_is_there_is_read(tmp_path: Path) -> None:
    (tmp_path / "wiki.train.tokens").write_text("x y\n" * 6)
    dataset = WikiText2(tmp_path, block_size=3)
    assert (len(dataset), dataset.vocab_size) == (5, 3)
    with pytest.raises(FileNotFoundError):
        WikiText2(tmp_path / "empty", download=False)


@pytest.mark.parametrize("dim", [6, 5])
def test_positions_are_waves(dim: int) -> None:
    encoding = PositionalEncoding(dim, dropout=0.0, max_len=20)
    output = encoding(torch.zeros(2, 3, dim))
    assert output.shape == (2, 3, dim)
    torch.testing.assert_close(output[1, :, 0], torch.arange(3.0).sin())
    torch.testing.assert_close(output[1, :, 1], torch.arange(3.0).cos())
    assert "pe" not in encoding.state_dict()


def test_the_transformer_gives_probabilities_and_sees_no_word_to_come() -> None:
    model = Transformer(vocab_size=11, ninp=8, nhead=2, nhid=8).eval()
    inputs, target = torch.randint(0, 11, (2, 5)), torch.randint(0, 11, (2, 5))
    output = model(inputs, target)
    assert output.shape == (10, 11)
    torch.testing.assert_close(output.exp().sum(1), torch.ones(10))
    other = target.clone()
    other[:, -1] = (other[:, -1] + 1) % 11
    changed = (model(inputs, other) - output).view(2, 5, 11).abs().amax(dim=2) > 1e-6
    assert changed.tolist() == [[False] * 4 + [True]] * 2
    assert model.generate_square_subsequent_mask(2).tolist() == [[0.0, -torch.inf], [0.0, 0.0]]


def test_the_lstm_hands_its_state_on() -> None:
    model = SimpleLSTM(vocab_size=11, ninp=4, nhid=6, nlayers=2).eval()
    text = torch.randint(0, 11, (3, 8))
    start = model.init_hidden(3)
    assert [tuple(part.shape) for part in start] == [(2, 3, 6)] * 2
    together, _ = model(text, start)
    first, state = model(text[:, :5], start)
    second, _ = model(text[:, 5:], state)
    parts = torch.cat([first.view(3, 5, 11), second.view(3, 3, 11)], dim=1)
    torch.testing.assert_close(parts, together.view(3, 8, 11))


def test_sequences_go_on_from_batch_to_batch() -> None:
    sampler = SequenceSampler(range(23), 4)
    assert (sampler.chunk_size, len(sampler)) == (5, 5)
    assert list(sampler) == [[step, 5 + step, 10 + step, 15 + step] for step in range(5)]


@pytest.mark.parametrize("kind", [LightningTransformer, LightningLSTM])
def test_they_learn_the_text(
    kind: Any, trainer: fulmen.Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    size = WikiText2().vocab_size
    module = kind(vocab_size=size)
    if kind is LightningLSTM:
        module.model = SimpleLSTM(size, ninp=8, nhid=8, nlayers=1, dropout=0.0)
    trainer.fit(module)
    assert trainer.global_step == 3
    assert kind is LightningTransformer or (module.hidden is None and "train_loss" in trainer.callback_metrics)
