"""From the user's loaders to batches: order, limits, combination and position."""

from fulmen.data.combined import CombinedLoader, flatten
from fulmen.data.feed import Feed, is_combined, limited_length, without_shuffle
from fulmen.data.loaders import hint_shuffle, hint_workers, shuffles
from fulmen.data.position import Position

__all__ = [
    "CombinedLoader",
    "Feed",
    "Position",
    "flatten",
    "hint_shuffle",
    "hint_workers",
    "is_combined",
    "limited_length",
    "shuffles",
    "without_shuffle",
]
