"""Exceptions and warnings of fulmen, each carrying the object it is about.

```
Exception
├── MisconfigurationException        a setting of the user's that cannot work       .subject
│   └── LossError (also RuntimeError)  a loss autograd cannot use                   .subject
└── RuntimeError
    ├── CheckpointError              a checkpoint that is unreadable or does not fit  .path
    └── TrainingSpikeException       the loss jumped away from its recent values    .batch_idx
SystemExit
└── SIGTERMException                 the process was asked to end; exit code 143

UserWarning
└── PossibleUserWarning              advice that may not apply; can be silenced as a group
DeprecationWarning
└── LightningDeprecationWarning      a feature that will go away
```

Wrong values of plain arguments raise `ValueError`, wrong kinds of objects `TypeError`, as everywhere in Python.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = [
    "CheckpointError",
    "LightningDeprecationWarning",
    "LossError",
    "MisconfigurationException",
    "PossibleUserWarning",
    "SIGTERMException",
    "TrainingSpikeException",
]

SIGTERM_EXIT_CODE = 143  # 128 + SIGTERM, what a shell reports for a process ended by that signal


class MisconfigurationException(Exception):
    """A setting of the user's that cannot work, alone or together with the others.

    Args:
        *args: The message: what was given, what is possible, what to type.
        subject: The object the message is about, kept for whoever catches the exception.
    """

    def __init__(self, *args: object, subject: object = None) -> None:
        super().__init__(*args)
        self.subject = subject


class LossError(MisconfigurationException, RuntimeError):
    """A loss that autograd cannot use: of the wrong type, not a scalar, or cut off from the parameters.

    `subject` is what the step returned.
    """


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or that does not fit the model it is loaded into.

    Args:
        *args: The message.
        path: The file or directory of the checkpoint, None if it never was on disk.
    """

    def __init__(self, *args: object, path: str | Path | None = None) -> None:
        super().__init__(*args)
        self.path = path


class TrainingSpikeException(RuntimeError):
    """The loss jumped away from its recent values.

    Args:
        batch_idx: Index of the batch that showed the spike.
        *args: The message; without one a message naming the batch is made.
    """

    def __init__(self, batch_idx: int, *args: Any) -> None:
        super().__init__(*(args or (f"Training spike detected in batch {batch_idx}.",)))
        self.batch_idx = batch_idx

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.batch_idx, *self.args)


class SIGTERMException(SystemExit):
    """The process received SIGTERM and leaves the run in order; its exit code is 143."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.code = SIGTERM_EXIT_CODE


class PossibleUserWarning(UserWarning):
    """Advice that may not apply to this run; silence the group with `fulmen.disable_possible_user_warnings()`."""


class LightningDeprecationWarning(DeprecationWarning):
    """A feature that works today and will go away."""
