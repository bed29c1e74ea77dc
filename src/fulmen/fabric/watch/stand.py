"""Where a thread stands: read from its frames by another thread, so that the one that is watched pays nothing."""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

_FULMEN = str(Path(__file__).parent.parent.parent) + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep
_DISTRIBUTED = _TORCH + "distributed" + os.sep
_COLLECTIVES = os.path.join(_FULMEN, "fabric", "distributed.py")
_C10D = os.path.join(_DISTRIBUTED, "distributed_c10d.py")
_DDP = os.path.join(_TORCH, "nn", "parallel", "distributed.py")
_BACKWARD = os.path.join(_TORCH, "autograd", "graph.py")
# torch's own exchanges within a step. Not its checkpoints: they write files, while others wait for them.
_IN_A_STEP = tuple(
    _DISTRIBUTED + part
    for part in ("_functional_collectives.py", "fsdp" + os.sep, "tensor" + os.sep, "optim" + os.sep, "nn" + os.sep)
)
_NOT_THE_USERS = (_FULMEN, _TORCH, sysconfig.get_paths()["stdlib"] + os.sep, sysconfig.get_paths()["purelib"] + os.sep)
_POINT_TO_POINT = ("send", "recv", "send_object_list", "recv_object_list", "batch_isend_irecv")


@dataclass(frozen=True)
class Stand:
    """Where a process stands.

    Args:
        collective: What it exchanges with the others, and waits in: "all_reduce", "barrier", "backward", ...; "" if it
            does something by itself.
        name: What is exchanged, if it has a name: that of a metric, or of a barrier.
        line: The innermost line of the user's, "train.py:57 in training_step"; "" if there is none.
        place: Where the run is, "epoch 0, batch 3"; "" outside of one.
        in_step: Whether the exchange is torch's own, of gradients or weights, whose names say little.
        ranks: Who takes part; empty for all.
    """

    collective: str = ""
    name: str = ""
    line: str = ""
    place: str = ""
    in_step: bool = False
    ranks: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, stand: dict[str, Any]) -> Stand:
        """From what `as_dict` gave, also after a way through JSON."""
        return cls(**stand | {"ranks": tuple(stand["ranks"])})

    @property
    def meeting(self) -> tuple[str, str, str]:
        """What has to be equal on all processes for them to meet."""
        return "step" if self.in_step else self.collective, self.name, self.place

    def misses(self, other: Stand) -> bool:
        """Whether the other will not come here: all wait, and it waits for something else."""
        return self.meeting != other.meeting and not {self.collective, other.collective} & set(_POINT_TO_POINT)

    def waits_for(self, rank: int) -> bool:
        """Whether it waits for the process of that rank."""
        return bool(self.collective) and (not self.ranks or rank in self.ranks)

    def describe(self) -> str:
        """In a few words."""
        what = f"{self.collective} {self.name!r}" if self.name else self.collective
        parts = [self.place, f"in {what}" if what else "", f"at {self.line}" if self.line else ""]
        return ", ".join(part for part in parts if part) or "outside of a run"

    def as_dict(self) -> dict[str, Any]:
        """In plain types."""
        return asdict(self)


def stand_of(frame: FrameType | None, place: str = "", syncs_backward: bool = True, is_idle: bool = True) -> Stand:
    """Where a thread stands, by its innermost frame.

    A thread waits in an exchange only if nothing but torch's frames lie between: code that torch calls back does
    something by itself.

    Args:
        frame: From `sys._current_frames()`.
        place: Where the run is.
        syncs_backward: Whether a backward pass exchanges gradients.
        is_idle: Whether the thread does not compute. The frames of a step look the same while it computes.
    """
    line = ""
    innermost, may_wait, only_exchanges = frame, True, True
    found: dict[str, Any] = {}
    while frame is not None:
        file = frame.f_code.co_filename
        if not line and not file.startswith(_NOT_THE_USERS) and not file.startswith("<"):
            line = f"{os.path.basename(file)}:{frame.f_lineno} in {frame.f_code.co_name}"
        if may_wait and file == _COLLECTIVES:
            found |= {"collective": frame.f_code.co_name, "name": str(frame.f_locals.get("name") or "")}
        elif may_wait and not file.startswith(_TORCH):
            may_wait = False
        elif may_wait and not found:
            only_exchanges = only_exchanges and file.startswith((_DISTRIBUTED, _DDP))
            alone = frame is innermost or only_exchanges
            found = _exchange(frame, file, alone, syncs_backward, is_idle)
        frame = frame.f_back
    return Stand(line=line, place=place, **found)


def main_frame(thread_id: int) -> FrameType | None:
    """The innermost frame of a thread; None if it has ended."""
    return sys._current_frames().get(thread_id)


def _exchange(frame: FrameType, file: str, alone: bool, syncs_backward: bool, is_idle: bool) -> dict[str, Any]:
    """The exchange that a frame of torch's waits in, as arguments of a `Stand`; empty if it is none.

    Args:
        frame: The frame.
        file: Its file.
        alone: Whether no computing of torch's runs below it.
        syncs_backward: Whether a backward pass exchanges gradients.
        is_idle: Whether the thread does not compute.
    """
    name = frame.f_code.co_name
    if file == _C10D and not name.startswith("_"):
        return {"collective": name, "ranks": _ranks_of(frame)}
    if not is_idle:
        return {}
    if file == _BACKWARD and name == "_engine_run_backward":
        return {"collective": "backward", "in_step": True} if alone and syncs_backward else {}
    if file == _DDP:
        return {"collective": "DistributedDataParallel", "in_step": True} if alone else {}
    if file.startswith(_IN_A_STEP) and not name.startswith("_"):
        return {"collective": name, "in_step": True}
    return {}


def _ranks_of(frame: FrameType) -> tuple[int, ...]:
    group = frame.f_locals.get("group")
    if group is None or group is dist.group.WORLD:
        return ()
    try:
        return tuple(dist.get_process_group_ranks(group))
    except (RuntimeError, ValueError, TypeError, KeyError):  # something of another kind, or a group that has ended
        return ()
