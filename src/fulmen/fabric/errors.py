"""Errors about settings, each of them both of the kinds that a Trainer and that a `Fabric` are known to raise.

```
MisconfigurationException
├── PlanError (also ValueError)              a setting, or settings together, that cannot work   .subject
├── ClusterError (also ValueError, RuntimeError)
│                                            what a cluster says is missing, unreadable or    .subject
│                                            does not fit the settings
├── UnavailableError (also RuntimeError)     this machine does not have what was asked for       .subject
└── PluginTypeError (also TypeError)         an object of a kind that fits nowhere               .subject
```
"""

from __future__ import annotations

from fulmen.errors import MisconfigurationException

__all__ = ["ClusterError", "PlanError", "PluginTypeError", "UnavailableError"]


class PlanError(MisconfigurationException, ValueError):
    """A setting that cannot work, alone or together with the others; `subject` is what was given."""


class ClusterError(MisconfigurationException, ValueError, RuntimeError):
    """What a cluster says, mostly by environment variables, is missing, unreadable or does not fit the settings.

    `subject` is the name of the variable, or what else it is about.
    """


class UnavailableError(MisconfigurationException, RuntimeError):
    """This machine does not have what was asked for; `subject` is what was given."""


class PluginTypeError(MisconfigurationException, TypeError):
    """An object of a kind that fits nowhere; `subject` is the object."""
