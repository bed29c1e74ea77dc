"""Files of hyperparameters, under the names users of Lightning import."""

from __future__ import annotations

from fulmen.checkpoint.hyperparameters import (
    convert,
    load_hparams_from_tags_csv,
    load_hparams_from_yaml,
    save_hparams_to_tags_csv,
    save_hparams_to_yaml,
    update_hparams,
)
from fulmen.checkpoint.load import CHECKPOINT_PAST_HPARAMS_KEYS

__all__ = [
    "CHECKPOINT_PAST_HPARAMS_KEYS",
    "convert",
    "load_hparams_from_tags_csv",
    "load_hparams_from_yaml",
    "save_hparams_to_tags_csv",
    "save_hparams_to_yaml",
    "update_hparams",
]
