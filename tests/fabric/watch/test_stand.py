"""Where a thread stands, read from its frames."""

import json
import threading

import pytest
import torch
import torch.distributed as dist

from fulmen.fabric import distributed
from fulmen.fabric.watch.look import STILL_LOOKS, Look
from fulmen.fabric.watch.stand import Stand, main_frame, stand_of
from processes import run_ranks


class InAThread:
    """Context in which a function runs in a thread, up to a point at which it waits."""

    def __init__(self, function, *args):
        self.waits, self.go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=function, args=(self.wait, *args))

    def wait(self):
        self.waits.set()
        assert self.go_on.wait(10)

    def __enter__(self):
        self.thread.start()
        assert self.waits.wait(10)
        return self.thread.ident

    def __exit__(self, *_):
        self.go_on.set()
        self.thread.join()


def compute(wait):
    wait()


def test_a_thread_that_computes():
    with InAThread(compute) as thread:
        stand = stand_of(main_frame(thread), "train, epoch 0, batch 3")
    assert stand.collective == ""
    assert stand.line.startswith("test_stand.py:")
    assert stand.place == "train, epoch 0, batch 3"
    assert "in" in stand.describe()
    assert Stand().describe() == "outside of a run"
    assert stand_of(None) == Stand()


class CallsBack:
    """What torch pickles for others, and calls meanwhile."""

    def __init__(self, wait):
        self.wait = wait

    def __reduce__(self):
        self.wait()
        return int, ()


def gather_what_calls_back(wait):
    dist.all_gather_object([None], CallsBack(wait))


def stand_in_called_code():
    with InAThread(gather_what_calls_back) as thread:
        return stand_of(main_frame(thread)).collective


def test_code_that_is_called_back_waits_for_nobody():
    assert run_ranks(stand_in_called_code, 1) == [""]


def wait_in(what):
    """Rank 0 waits in an exchange of which rank 1 knows nothing yet; it says where."""
    group = dist.new_group([0, 1])
    exchanges = {
        "reduce": lambda: distributed.reduce(torch.ones(2), name="loss"),
        "barrier": lambda: dist.barrier(group),
        "backward": lambda: wrapped(torch.ones(1, 2)).sum().backward(),
        "receive": lambda: dist.recv(torch.ones(2), 1),
    }
    wrapped = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
    dist.barrier()
    if dist.get_rank() == 0:
        said = {}
        watching = threading.Thread(target=look_until_it_stands, args=(threading.get_ident(), said))
        watching.start()
        exchanges[what]()
        watching.join()
        return said["stand"]
    dist.monitored_barrier(dist.new_group([1]))
    torch.randn(2)
    pause()
    if what == "receive":
        dist.send(torch.ones(2), 0)
    else:
        exchanges[what]()
    return None


def pause():
    threading.Event().wait(1.0)


def look_until_it_stands(thread, said):
    look = Look(thread)
    for _ in range(100):
        look.again("here")
        threading.Event().wait(0.02)
        if look.is_still:
            said["stand"] = stand_of(main_frame(thread), "here", is_idle=look.is_idle).as_dict()
            return


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("reduce", {"collective": "reduce", "name": "loss", "in_step": False, "ranks": ()}),
        ("barrier", {"collective": "barrier", "name": "", "in_step": False, "ranks": (0, 1)}),
        ("backward", {"collective": "backward", "name": "", "in_step": True, "ranks": ()}),
        ("receive", {"collective": "recv", "name": "", "in_step": False, "ranks": ()}),
    ],
)
def test_a_thread_that_waits_for_others(what, expected):
    stand, _ = run_ranks(wait_in, 2, what)
    assert {name: stand[name] for name in expected} == expected
    assert stand["line"].startswith("test_stand.py:")
    assert Stand.from_dict(json.loads(json.dumps(stand))).as_dict() == stand


def test_who_misses_whom():
    barrier, reduce = Stand("barrier", place="a"), Stand("all_reduce", "loss", place="a")
    assert barrier.misses(reduce)
    assert not barrier.misses(Stand("barrier", line="another.py:3", place="a"))
    assert barrier.misses(Stand("barrier", place="b"))
    assert not Stand("backward", in_step=True).misses(Stand("unshard", in_step=True))
    assert not Stand("send").misses(Stand("recv"))
    assert barrier.waits_for(3)
    assert not Stand("barrier", ranks=(0, 1)).waits_for(3)
    assert not Stand().waits_for(0)


def spin(wait, until):
    wait()
    while not until.is_set():
        pass


def test_a_look_counts_what_it_sees():
    with InAThread(compute) as thread:
        look = Look(thread)
        for number in range(STILL_LOOKS):
            assert not look.is_still
            look.again("batch 1")
            assert look.is_still == (number == STILL_LOOKS - 1)
        assert look.is_idle
        look.again("batch 2")  # the same instruction, in the next batch
        assert not look.is_still
    look.again("batch 2")
    assert not look.is_still  # it has ended


def test_a_thread_that_computes_is_not_idle(monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr("fulmen.fabric.watch.look._processor_seconds", lambda thread: 0.1 * next(seconds))
    with InAThread(compute) as thread:
        look = Look(thread)
        for _ in range(STILL_LOOKS):
            look.again("")
        assert look.is_still
        assert not look.is_idle
