"""Who starts the processes: nobody (torchrun, SLURM, ... did), the script again, or a function in new processes."""

from __future__ import annotations

from fulmen.fabric.launch.base import Launcher
from fulmen.fabric.launch.processes import ProcessLauncher
from fulmen.fabric.launch.script import ScriptLauncher

__all__ = ["Launcher", "ProcessLauncher", "ScriptLauncher"]
