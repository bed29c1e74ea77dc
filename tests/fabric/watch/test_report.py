"""The report of a run of several processes that has failed."""

from fulmen.fabric.watch.report import compose, death_of, failure_of, others_in, parting
from fulmen.fabric.watch.stand import Stand

STANDS = {0: Stand("barrier", "save", "train.py:7 in main", "epoch 0").as_dict(), 2: Stand().as_dict()}


def test_an_exception():
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        report = compose(failure_of(1, error), STANDS, 3)
    lines = report.splitlines()
    assert lines[0] == "Rank 1 of 3 failed first: ValueError: two"
    assert "test_an_exception" in report
    assert lines[-3:] == [
        "Where the others stood:",
        "  rank 0: epoch 0, in barrier 'save', at train.py:7 in main",
        "  rank 2: outside of a run",
    ]
    assert others_in(report) == "\n".join(lines[-3:])
    assert others_in("nothing") == ""


def test_deaths():
    assert "has died without a word" in compose(death_of(1), STANDS, 3)
    assert compose(death_of(1, -11), {}, 3) == "Rank 1 of 3 was killed by SIGSEGV."
    assert compose(death_of(1, -200), {}, 3) == "Rank 1 of 3 was killed by signal 200."
    assert compose(death_of(1, 3), {}, 3) == "Rank 1 of 3 ended with exit code 3."
    assert "rank 0" not in compose(death_of(0), STANDS, 3)


def test_partings():
    stands = {0: Stand("barrier"), 1: Stand("all_reduce")}
    parted = compose(parting(stands, set()), STANDS, 3)
    assert parted.startswith("The processes have parted")
    assert "Where the processes stood:\n  rank 0" in parted
    left = compose(parting(stands, {1}), STANDS, 3)
    assert left.startswith("Rank 1 of 3 has ended while others still wait for it.\nWhere the others stood:")
    assert "self.log(..., sync_dist=True)" in left
