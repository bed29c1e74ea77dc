"""The tuner: looks for a good learning rate and for the largest batch size before a run."""

from fulmen.tuner.tuning import Tuner

__all__ = ["Tuner"]
