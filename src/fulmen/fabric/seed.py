"""Seeds and the state of every random generator a training process uses."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fulmen.extras import available
from fulmen.ranks import rank_prefixed_message, rank_zero_only, rank_zero_warn, show_information

__all__ = [
    "capture_random",
    "isolate_rng",
    "pl_worker_init_function",
    "reset_seed",
    "restore_random",
    "seed_everything",
]

log = logging.getLogger(__name__)

MIN_SEED = 0
MAX_SEED = 2**32 - 1  # what numpy accepts

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed Python's `random`, NumPy (if installed) and torch on all devices.

    The environment variables `PL_GLOBAL_SEED` and `PL_SEED_WORKERS` carry the choice to child processes.

    Args:
        seed: The seed; None takes `PL_GLOBAL_SEED`, and 0 (with a warning) where that is not set.
        workers: Whether the workers of data loaders get seeds derived from this one.
        verbose: Whether to say which seed was set.

    Returns:
        The seed.

    Raises:
        ValueError: The seed is not an integer in [0, 2**32 - 1].
    """
    seed = _seed_from_environment(verbose) if seed is None else int(seed)
    if not MIN_SEED <= seed <= MAX_SEED:
        raise ValueError(f"The seed {seed} is not in bounds: it has to be in [{MIN_SEED}, {MAX_SEED}].")
    if verbose:
        show_information()
        log.info(rank_prefixed_message(f"Seed set to {seed}", _known_rank()))
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    os.environ["PL_SEED_WORKERS"] = str(int(workers))
    random.seed(seed)
    if available("numpy"):
        import numpy

        numpy.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def _seed_from_environment(verbose: bool) -> int:
    text = os.environ.get("PL_GLOBAL_SEED")
    if text is None:
        if verbose:
            rank_zero_warn("No seed found, seed set to 0. Choose one: `seed_everything(42)`.", stacklevel=6)
        return 0
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"Invalid seed in the environment: PL_GLOBAL_SEED={text!r} is not an integer.") from None


def _known_rank() -> int | None:
    return rank_zero_only.rank if any(name in os.environ for name in _RANK_VARIABLES) else None


def reset_seed() -> None:
    """Seed again with what the environment carries; nothing if `seed_everything` was never called."""
    if (seed := os.environ.get("PL_GLOBAL_SEED")) is not None:
        workers = os.environ.get("PL_SEED_WORKERS", "0") == "1"
        seed_everything(int(seed), workers=workers, verbose=False)


def pl_worker_init_function(worker_id: int, rank: int | None = None) -> None:
    """Seed a data loader's worker from its base seed, its id and the rank, differently for each generator.

    Args:
        worker_id: The worker's id, as the loader gives it.
        rank: Global rank of the process that owns the loader; None takes the known one.
    """
    rank = rank_zero_only.rank if rank is None else rank
    base_seed = torch.initial_seed() - worker_id  # torch adds the id to the seed that the loader drew
    # A string seed goes through SHA-512, which leaves no relation between the seeds of neighbouring workers.
    source = random.Random(f"{base_seed}/{worker_id}/{rank}")
    torch.manual_seed(source.getrandbits(64))
    random.seed(source.getrandbits(64))
    if available("numpy"):
        import numpy

        numpy.random.seed([source.getrandbits(32) for _ in range(4)])


def capture_random(include_cuda: bool = True) -> dict[str, Any]:
    """The state of all random generators in use, made of what `torch.load(weights_only=True)` accepts.

    Args:
        include_cuda: Whether the generators of the CUDA devices are captured, too (if CUDA is initialised).

    Returns:
        Keys "torch", "python", and where in use "numpy", "cuda" (one state per device), "mps".
    """
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(internal), gauss_next]}
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, position, has_gauss, cached = numpy.random.get_state()
        keys = torch.tensor([int(key) for key in keys], dtype=torch.int64)
        state["numpy"] = [str(name), keys, int(position), int(has_gauss), float(cached)]
    if include_cuda and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random(state: dict[str, Any]) -> None:
    """Put the generators back to what `capture_random` gave; what this machine lacks is left out.

    Args:
        state: The captured state, perhaps loaded from a file.
    """
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if "numpy" in state and available("numpy"):
        import numpy

        name, keys, position, has_gauss, cached = state["numpy"]
        numpy.random.set_state((name, numpy.array(keys.tolist(), dtype=numpy.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state.cpu(), index)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())


@contextmanager
def isolate_rng(include_cuda: bool = True) -> Iterator[None]:
    """Put all random generators back at the end to what they were at the start.

    Args:
        include_cuda: Whether the generators of the CUDA devices are put back, too.
    """
    state = capture_random(include_cuda)
    try:
        yield
    finally:
        restore_random(state)
