"""Seeds and the capture of random state."""

import logging
import os
import random
import sys

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.seed import (
    capture_random,
    isolate_rng,
    pl_worker_init_function,
    reset_seed,
    restore_random,
    seed_everything,
)


def draws():
    return random.random(), numpy.random.rand(), torch.rand(1).item()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")  # monkeypatch puts back what the test leaves
        monkeypatch.delenv(name)
    with isolate_rng():
        yield


def test_the_same_seed_gives_the_same_numbers():
    assert seed_everything(3, verbose=False) == 3
    first = draws()
    seed_everything(3, verbose=False)
    assert draws() == first
    seed_everything(4, verbose=False)
    assert all(a != b for a, b in zip(first, draws(), strict=True))


def test_the_environment_carries_the_seed():
    seed_everything(7, workers=True, verbose=False)
    assert (os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]) == ("7", "1")
    first = draws()
    assert seed_everything(verbose=False) == 7
    assert draws() == first
    assert os.environ["PL_SEED_WORKERS"] == "0"


def test_reset_seed_repeats_what_the_environment_says():
    state = torch.get_rng_state()
    reset_seed()
    assert torch.equal(torch.get_rng_state(), state)
    seed_everything(7, workers=True, verbose=False)
    first = draws()
    reset_seed()
    assert draws() == first
    assert os.environ["PL_SEED_WORKERS"] == "1"


def test_without_any_seed_it_is_zero_with_a_warning():
    with pytest.warns(UserWarning, match="No seed found, seed set to 0") as record:
        assert seed_everything() == 0
    assert record[0].filename == __file__
    del os.environ["PL_GLOBAL_SEED"]
    assert seed_everything(verbose=False) == 0


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_bounds(seed):
    with pytest.raises(ValueError, match="not in bounds"):
        seed_everything(seed)


def test_other_types_go_through_int(monkeypatch):
    assert seed_everything("5", verbose=False) == 5
    assert seed_everything(4.7, verbose=False) == 4
    monkeypatch.setenv("PL_GLOBAL_SEED", "x")
    with pytest.raises(ValueError, match="PL_GLOBAL_SEED='x'"):
        seed_everything()


def test_it_says_what_it_did_with_the_rank(caplog, monkeypatch):
    with caplog.at_level(logging.INFO, logger="fulmen"):
        seed_everything(5)
        seed_everything(6, verbose=False)
        monkeypatch.setenv("RANK", "0")
        seed_everything(7)
    assert caplog.messages == ["Seed set to 5", "[rank: 0] Seed set to 7"]


def test_captured_state_survives_a_safe_load(tmp_path):
    random.gauss(0, 1)  # leaves a second number behind, which is part of the state
    numpy.random.randn()
    torch.save(capture_random(), tmp_path / "state")
    expected = [draws() for _ in range(3)] + [random.gauss(0, 1), numpy.random.randn()]
    restore_random(torch.load(tmp_path / "state", weights_only=True))
    assert [draws() for _ in range(3)] + [random.gauss(0, 1), numpy.random.randn()] == expected


@given(st.integers(0, 2**32 - 1), st.integers(0, 700))
def test_restoring_is_the_inverse_of_drawing(seed, number):
    seed_everything(seed, verbose=False)
    state = capture_random()
    first = draws()
    for _ in range(number % 7):
        draws()
    random.getrandbits(number + 1)
    restore_random(state)
    assert draws() == first


def test_isolate_rng_also_when_the_block_fails():
    seed_everything(1, verbose=False)
    expected = draws()
    seed_everything(1, verbose=False)
    with pytest.raises(KeyError), isolate_rng():
        raise KeyError(draws())
    assert draws() == expected


def worker_draws(worker_id, rank, base_seed=11):
    torch.manual_seed(base_seed + worker_id)  # as torch does in a worker
    pl_worker_init_function(worker_id, rank)
    return draws()


def test_workers_differ_by_id_by_rank_and_by_generator():
    seen = [worker_draws(worker, rank) for worker in range(3) for rank in range(3)]
    numbers = [number for row in seen for number in row]
    assert len(set(numbers)) == len(numbers)
    assert worker_draws(1, 2) == worker_draws(1, 2)
    assert worker_draws(0, 0, base_seed=12) != worker_draws(0, 0)


@pytest.mark.gpu
def test_cuda_states_are_captured_once_cuda_is_in_use():
    torch.ones(1, device="cuda")
    state = capture_random()
    expected = torch.rand(3, device="cuda")
    restore_random(state)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
    assert "cuda" not in capture_random(include_cuda=False)


def test_numpy_is_left_alone_unless_in_use(monkeypatch):
    assert "numpy" in capture_random()
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "numpy")
        assert "numpy" not in capture_random()
