import pytest

from fulmen.checkpoint.format import LEGACY_VERSION, LIGHTNING_VERSION, VERSION
from fulmen.errors import CheckpointError
from fulmen.utilities.migration import migrate_checkpoint


def test_an_old_checkpoint():
    migrated, done = migrate_checkpoint({VERSION: "1.5.0", "epoch": 1, "global_step": 4})
    assert migrated[VERSION] == LIGHTNING_VERSION
    assert migrated[LEGACY_VERSION] == "1.5.0"
    assert done == {LIGHTNING_VERSION: ["migrate"]}


def test_a_present_one_stays_as_it_is():
    checkpoint = {VERSION: LIGHTNING_VERSION}
    migrated, done = migrate_checkpoint(checkpoint, LIGHTNING_VERSION)
    assert migrated is checkpoint
    assert done == {}


def test_what_cannot_be_migrated():
    with pytest.raises(ValueError, match="not to one in between"):
        migrate_checkpoint({VERSION: "1.5.0"}, target_version="1.9.0")
    with pytest.raises(CheckpointError):
        migrate_checkpoint({})
