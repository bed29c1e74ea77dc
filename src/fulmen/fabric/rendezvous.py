"""How processes meet: what is said when some do not come, and where those of torchrun meet after a restart.

torchrun has one store for all attempts, in which the addresses of processes that have ended still stand: who reads them
waits for nobody. Nothing that torchrun tells its processes is new in each attempt and the same on all of them (each
machine counts its own restarts), so that they agree on a name for the attempt, under which nothing stands yet.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from fulmen.ranks import log

__all__ = ["store_of_attempt", "tell_of_waiting"]

WAIT_SECONDS = 30.0
"""After this time it is said that somebody is missing."""

_LOOK_SECONDS = 0.05


@contextmanager
def tell_of_waiting(rank: int, world_size: int, address: str, port: int) -> Generator[None]:
    """Context of the meeting: rank 0 says so when others do not come, long before the time is over."""
    message = (
        f"Rank 0 still waits at {address}:{port} for all {world_size} processes. Is each of them started, alive, and"
        f" given the same MASTER_ADDR={address} and MASTER_PORT={port}?"
    )
    timer = threading.Timer(WAIT_SECONDS, log.warning, (message,))
    timer.daemon = True
    if rank == 0:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def store_of_attempt(rank: int, world_size: int, address: str, port: int, timeout: timedelta) -> Any:
    """The part of torchrun's store that belongs to this attempt; None where nothing is ever started again.

    Args:
        rank: Of this process.
        world_size: Number of processes.
        address: Host of the store.
        port: Port of the store.
        timeout: How long to wait for the others.
    """
    is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not is_shared or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return None
    whole = dist.TCPStore(address, port, world_size, False, timeout)  # type: ignore[attr-defined]
    store = _part("fulmen", whole)
    return _part(_offer(store, world_size) if rank == 0 else _follow(store, rank), store)


def _part(name: str, store: Any) -> Any:
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def _offer(store: Any, world_size: int) -> str:
    """Rank 0 offers a name, and says who has taken it."""
    attempt = secrets.token_hex(8)
    store.set("offer", attempt)
    taken = [store.get(f"{attempt}/{rank}").decode() for rank in range(1, world_size)]  # waits for each
    store.set(f"{attempt}/all", json.dumps(taken))
    return attempt


def _follow(store: Any, rank: int) -> str:
    """The others take what is offered, until they are among those who have: an offer may be of a former attempt."""
    me = secrets.token_hex(8)
    answered = ""
    while True:
        attempt: str = store.get("offer").decode()
        if attempt != answered:
            store.set(f"{attempt}/{rank}", me)
            answered = attempt
        if store.check([f"{attempt}/all"]) and me in json.loads(store.get(f"{attempt}/all")):
            return attempt
        time.sleep(_LOOK_SECONDS)
