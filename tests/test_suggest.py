from __future__ import annotations

import pytest

from fulmen.suggest import closest, did_you_mean


@pytest.mark.parametrize(
    ("given", "meant"),
    [("max_epoch", "max_epochs"), ("MAX_EPOCHS", "max_epochs"), ("gpuu", "gpu"), ("qwerty", None), (3, None)],
)
def test_what_was_meant(given, meant):
    assert closest(given, ["max_epochs", "max_steps", "gpu"]) == meant


def test_the_question():
    assert did_you_mean("gpuu", ["gpu"]) == " Did you mean 'gpu'?"
    assert did_you_mean("gpuu", ["tpus"]) == did_you_mean(None, ["gpu"]) == ""
