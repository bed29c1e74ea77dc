"""Checkpoints from a model registry, by the package litmodels.

`ckpt_path` may be "registry", for the Trainer's own `model_registry`, or "registry:NAME", either of them followed by
":version:VERSION".
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fulmen.extras import need

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

__all__ = ["download_model_from_registry", "find_model_local_ckpt_path", "is_registry_path"]

_PATH = re.compile(r"registry(?::(?!version:)(?P<name>[^:]+))?(?::version:(?P<version>[^:]+))?")


def is_registry_path(ckpt_path: str | Path | None) -> bool:
    """Whether a `ckpt_path` means a model of a registry."""
    return _PATH.fullmatch(str(ckpt_path)) is not None


def find_model_local_ckpt_path(
    ckpt_path: str | Path | None, default_model_registry: str | None, default_root_dir: str | Path
) -> str:
    """The file that a model of the registry has been downloaded to.

    Args:
        ckpt_path: "registry[:NAME][:version:VERSION]".
        default_model_registry: The model's name if the path has none.
        default_root_dir: Where models are downloaded to.

    Raises:
        ValueError: The path is not of this form, or names no model and there is no default.
        FileNotFoundError: Nothing has been downloaded.
    """
    folder = _folder(*_parse(ckpt_path, default_model_registry), default_root_dir)
    files = [path for path in folder.glob("**/*") if path.suffix in (".ckpt", ".pt", ".pth")] if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(f"There is no checkpoint of {str(ckpt_path)!r} in {str(folder)!r}.")
    return str(max(files, key=os.path.getmtime))


def download_model_from_registry(ckpt_path: str | Path | None, trainer: Trainer) -> None:
    """Downloads a model into the `default_root_dir` of a Trainer; on rank 0, while the others wait.

    Args:
        ckpt_path: "registry[:NAME][:version:VERSION]".
        trainer: Its `model_registry` is the model's name if the path has none.

    Raises:
        ModuleNotFoundError: litmodels is not installed.
        ValueError: The path is not of this form, or names no model and there is no default.
    """
    litmodels = need("litmodels")
    name, version = _parse(ckpt_path, trainer.model_registry)
    if trainer.is_global_zero:
        folder = _folder(name, version, trainer.default_root_dir)
        litmodels.download_model(name if version is None else f"{name}:{version}", str(folder))
    trainer.strategy.barrier("download_model_from_registry")


def _parse(ckpt_path: str | Path | None, default: str | None) -> tuple[str, str | None]:
    """The name and the version of the model that a path means."""
    match = _PATH.fullmatch(str(ckpt_path))
    if match is None:
        raise ValueError(
            f"`ckpt_path={str(ckpt_path)!r}` is no path of a model registry. Type, for instance:"
            ' ckpt_path="registry:organisation/space/model:version:v1"'
        )
    name = match["name"] or (default or "").partition(":")[0]
    if not name:
        raise ValueError(
            f"`ckpt_path={str(ckpt_path)!r}` names no model. Name it, `registry:NAME`, or give the Trainer a"
            ' default: `Trainer(model_registry="NAME")`.'
        )
    return name, match["version"]


def _folder(name: str, version: str | None, root: str | Path) -> Path:
    plain = name.replace("/", "_")
    return Path(root, plain if version is None else f"{plain}_{version}")
