"""What classes of users can inherit, under the name users of Lightning import."""

from __future__ import annotations

from fulmen.hparams import HyperparametersMixin

__all__ = ["HyperparametersMixin"]
