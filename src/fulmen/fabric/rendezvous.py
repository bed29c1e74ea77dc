"""Where the processes of torchrun meet after it has started them again.

torchrun has one store for all attempts, in which the addresses of processes that have ended still stand: who reads them
waits for nobody. Nothing that torchrun tells its processes is new in each attempt and the same on all of them (each
machine counts its own restarts), so that they agree on a name for the attempt, under which nothing stands yet.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from datetime import timedelta

import torch.distributed as dist

__all__ = ["store_of_attempt"]

_LOOK_SECONDS = 0.05


def store_of_attempt(rank: int, world_size: int, address: str, port: int, timeout: timedelta) -> dist.Store | None:
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
    store = dist.PrefixStore("fulmen", dist.TCPStore(address, port, world_size, False, timeout))
    attempt = _offer(store, world_size) if rank == 0 else _follow(store, rank)
    return dist.PrefixStore(attempt, store)


def _offer(store: dist.Store, world_size: int) -> str:
    """Rank 0 offers a name, and says who has taken it."""
    attempt = secrets.token_hex(8)
    store.set("offer", attempt)
    taken = [store.get(f"{attempt}/{rank}").decode() for rank in range(1, world_size)]  # waits for each
    store.set(f"{attempt}/all", json.dumps(taken))
    return attempt


def _follow(store: dist.Store, rank: int) -> str:
    """The others take what is offered, until they are among those who have: an offer may be of a former attempt."""
    me = secrets.token_hex(8)
    answered = ""
    while True:
        attempt = store.get("offer").decode()
        if attempt != answered:
            store.set(f"{attempt}/{rank}", me)
            answered = attempt
        if store.check([f"{attempt}/all"]) and me in json.loads(store.get(f"{attempt}/all")):
            return attempt
        time.sleep(_LOOK_SECONDS)
