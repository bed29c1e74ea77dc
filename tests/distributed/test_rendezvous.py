"""How processes meet, and several attempts of torchrun, which share a store."""

import os
import time

import torch.distributed as dist

from fulmen.fabric import rendezvous
from fulmen.fabric.distributed import DEFAULT_TIMEOUT
from fulmen.fabric.rendezvous import store_of_attempt, tell_of_waiting
from processes import run_ranks


def attempt(rank, world_size, address, port):
    return store_of_attempt(rank, world_size, address, port, DEFAULT_TIMEOUT)


def meet(number, port):
    """An attempt, of which something is left in the store."""
    rank = int(os.environ["RANK"])
    os.environ["TORCHELASTIC_MAX_RESTARTS"] = "3"
    store = attempt(rank, 3, "127.0.0.1", port)
    assert not store.check([f"address of {rank}"])
    store.set(f"address of {rank}", str(number))
    return [store.get(f"address of {other}") for other in range(3)]


def test_an_attempt_reads_nothing_of_another():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for number in range(3):
        assert run_ranks(meet, 3, number, store.port, backend=None) == [[str(number).encode()] * 3] * 3


def start_only(port):
    """An attempt that ends before all have met."""
    os.environ["TORCHELASTIC_MAX_RESTARTS"] = "3"
    store = dist.PrefixStore("fulmen", dist.TCPStore("127.0.0.1", port, 3, False, DEFAULT_TIMEOUT))
    store.set("offer", "old")
    store.set("old/all", "[]")


def test_an_attempt_after_one_that_did_not_meet():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    run_ranks(start_only, 1, store.port, backend=None)
    assert run_ranks(meet, 3, 1, store.port, backend=None) == [[b"1"] * 3] * 3


def test_nothing_is_shared_where_nothing_starts_again(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert attempt(0, 2, "127.0.0.1", 1) is None
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert attempt(0, 2, "127.0.0.1", 1) is None
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert attempt(0, 2, "127.0.0.1", 1) is None


def test_rank_0_says_that_somebody_is_missing(monkeypatch, caplog):
    monkeypatch.setattr(rendezvous, "WAIT_SECONDS", 0.02)
    with tell_of_waiting(1, 4, "node7", 29500):
        time.sleep(0.1)
    assert caplog.text == ""
    with tell_of_waiting(0, 4, "node7", 29500):
        time.sleep(0.1)
    assert "Rank 0 still waits at node7:29500 for all 4 processes" in caplog.text
    with tell_of_waiting(0, 4, "node7", 29500):
        pass
    time.sleep(0.1)
    assert caplog.text.count("still waits") == 1
