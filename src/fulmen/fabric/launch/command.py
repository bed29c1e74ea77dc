"""The command line that runs this program again."""

from __future__ import annotations

import os
import subprocess
import sys

__all__ = ["command_of"]


def command_of(local_rank: int) -> tuple[list[str], str | None]:
    """The command line that runs this program again as another process, and where to; None for this directory.

    Args:
        local_rank: Rank of the other process on this machine.

    Raises:
        RuntimeError: There is no program: the interpreter was started with `-c`, or reads standard input.
    """
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    arguments, directory = _under_hydra(local_rank)
    return [sys.executable, *flags, *_program(), *arguments], directory


def _program() -> list[str]:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return ["-m", spec.name.removesuffix(".__main__")]
    script = getattr(main, "__file__", None)
    if spec is not None and script is not None:
        script = os.path.dirname(script)  # a folder or an archive with a file `__main__.py`
    if script is None or not os.path.exists(script):
        raise RuntimeError(
            "Several processes start by running the script again, and there is none (an interactive interpreter, `-c`,"
            " or standard input). Put the code into a file, or type: strategy='ddp_fork'"
        )
    return [os.path.abspath(script)]


def _under_hydra(local_rank: int) -> tuple[list[str], str | None]:
    """The arguments, and the directory; under hydra those of its job, which is written down by one process only."""
    given = sys.argv[1:]
    if "hydra.core.hydra_config" not in sys.modules:
        return given, None
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return given, None
    config = HydraConfig.get()
    if config.mode.name == "MULTIRUN":  # all jobs run one after the other in this process, and so they do in the other
        folder = f'hydra.sweep.dir="{os.path.join(config.runtime.cwd, config.sweep.dir)}"'
    else:
        folder = f'hydra.run.dir="{config.runtime.output_dir}"'
    own = [folder, f"hydra.job.name={config.job.name}_{local_rank}", "hydra.output_subdir=null"]
    return [*given, *own], config.runtime.cwd
