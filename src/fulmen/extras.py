"""Optional packages: imported where they are needed, and named with the command that installs them if missing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

__all__ = ["available", "need"]

# import name -> the extra of fulmen that brings it
_EXTRAS = {
    "deepspeed": "deepspeed",
    "fastapi": "serve",
    "fsspec": "remote",
    "jsonargparse": "cli",
    "mpi4py": "mpi",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "sklearn": "demo",
    "tensorboard": "tensorboard",
    "torchao": "fp8",
    "tqdm": "tqdm",
    "psutil": "stats",
    "uvicorn": "serve",
}
# import name -> name on the package index, where the two differ
_DISTRIBUTIONS = {
    "comet_ml": "comet-ml",
    "transformer_engine": '"transformer-engine[pytorch]"',
    "yaml": "PyYAML",
}


def need(name: str) -> ModuleType:
    """Import and return the optional module `name`.

    Args:
        name: Import name, dotted if a submodule is wanted: `"tensorboard"`, `"torch.utils.tensorboard"`.

    Raises:
        ModuleNotFoundError: It, or something it imports, is not installed; the message says what to type.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).partition(".")[0]
        raise ModuleNotFoundError(
            f"`{name}` needs the package `{missing}`, which is not installed. Type: {_install_command(missing)}",
            name=missing,
        ) from error


def available(name: str) -> bool:
    """Whether the module `name` could be imported, found out without importing it."""
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is missing
        return False


def _install_command(missing: str) -> str:
    if extra := _EXTRAS.get(missing):
        return f'pip install "fulmen[{extra}]"'
    return f"pip install {_DISTRIBUTIONS.get(missing, missing)}"
