"""The clock of a run on one process; of several see `distributed/test_decisions.py`."""

import time

from fulmen import Trainer
from fulmen.clock import Clock


def test_one_process_reads_its_own_clock_each_time():
    clock = Clock(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
    before, reading, later = time.monotonic(), clock.now(), clock.now(fresh=True)
    assert before <= reading <= later <= time.monotonic()
