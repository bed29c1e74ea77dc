"""A machine on which nothing of a cluster is set."""

import os
import shutil

import pytest

PREFIXES = ("SLURM_", "MASTER_", "LSB_", "JSM_", "TORCHELASTIC_")
NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "STANDALONE_PORT")


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    """Also what an environment sets while a test runs is taken back."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(PREFIXES) or name in NAMES:
            del os.environ[name]
    monkeypatch.setattr(shutil, "which", lambda command: None)
    yield
    os.environ.clear()
    os.environ.update(before)
