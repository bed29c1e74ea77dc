"""Seeds, under the names users of Lightning import."""

from __future__ import annotations

from fulmen.fabric.seed import MAX_SEED, MIN_SEED, pl_worker_init_function, reset_seed, seed_everything

__all__ = ["max_seed_value", "min_seed_value", "pl_worker_init_function", "reset_seed", "seed_everything"]

max_seed_value = MAX_SEED
min_seed_value = MIN_SEED
