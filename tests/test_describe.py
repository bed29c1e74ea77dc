from __future__ import annotations

import pytest

from fulmen import Trainer
from fulmen.trigger import Every


def row(name, **arguments):
    """One row of what a trainer says of itself; None if there is none of that name."""
    lines = Trainer(accelerator="cpu", logger=False, **arguments).describe().splitlines()
    return next((line.split(maxsplit=1)[1] for line in lines if line.strip().startswith(f"{name} ")), None)


@pytest.mark.parametrize(
    ("arguments", "validation"),
    [
        ({}, "at the end of every epoch"),
        ({"val_check_interval": 0.5, "check_val_every_n_epoch": 2}, "every 0.5 of every 2 epochs"),
        ({"val_check_interval": 500, "check_val_every_n_epoch": None}, "every 500 batches, over epochs"),
        ({"val_check_interval": "500 steps"}, "every 500 steps"),
        ({"val_check_interval": Every(samples=100)}, "every 100 samples"),
        ({"val_check_interval": "2 h"}, "every 7200 s"),
        ({"val_check_interval": "3 epochs"}, "at the end of every 3 epochs"),
    ],
)
def test_when_it_validates(arguments, validation):
    assert row("validation", **arguments) == validation


def test_how_long_it_runs():
    assert row("epochs", max_epochs=3) == "0 to 3"
    assert row("duration", max_duration="100 samples") == "100 samples"
    assert row("duration", max_duration="100 steps") is None
    assert row("steps", max_duration="100 steps") == "0 to 100"


def test_where_it_writes():
    assert row("root", default_root_dir="memory://runs") == "memory://runs"
