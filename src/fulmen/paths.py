"""Paths and URLs alike: a path is one of the local disk, a URL is for fsspec."""

from __future__ import annotations

import os
import posixpath
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from fulmen.extras import need

__all__ = [
    "absolute",
    "exists",
    "filesystem",
    "is_url",
    "join",
    "local",
    "modified",
    "names_in",
    "read_bytes",
    "remove",
    "write_problem",
]

_LOCAL_SCHEME = "file://"


def is_url(path: Any) -> bool:
    """Whether `path` is for fsspec: it has a scheme, and that is not the one of local files."""
    return "://" in str(path) and not str(path).startswith(_LOCAL_SCHEME)


def local(path: str | Path) -> str:
    """A path as it is, without the scheme of local files; a URL as it is."""
    return os.fspath(path).removeprefix(_LOCAL_SCHEME)


def absolute(path: str | Path) -> str:
    """A path from the root on, with links and "~" resolved; a URL as it is."""
    return str(path) if is_url(path) else os.path.realpath(os.path.expanduser(local(path)))


def join(folder: str | Path, *names: str) -> str:
    """`names` below `folder`."""
    return posixpath.join(str(folder), *names) if is_url(folder) else os.path.join(local(folder), *names)


def filesystem(url: str | Path) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the location in it.

    Raises:
        ModuleNotFoundError: fsspec is not installed.
    """
    found, location = need("fsspec.core").url_to_fs(str(url))
    return found, location


def exists(path: str | Path) -> bool:
    """Whether there is a file, a directory or a link at `path`."""
    if is_url(path):
        remote, location = filesystem(path)
        return bool(remote.exists(location))
    return os.path.lexists(local(path))


def names_in(folder: str | Path) -> list[str]:
    """The names of what is in `folder`; none if there is no such directory."""
    if is_url(folder):
        remote, location = filesystem(folder)
        remote.invalidate_cache()  # of listings, which another process may have outdated
        entries = remote.ls(location, detail=False) if remote.isdir(location) else []
        return [posixpath.basename(entry.rstrip("/")) for entry in entries]
    return os.listdir(local(folder)) if os.path.isdir(local(folder)) else []


def read_bytes(path: str | Path) -> bytes:
    """What is in the file at `path`."""
    if not is_url(path):
        return Path(local(path)).read_bytes()
    remote, location = filesystem(path)
    return bytes(remote.cat_file(location))


def remove(path: str | Path) -> None:
    """Removes the file, link or directory at `path`; one that is not there is fine."""
    if is_url(path):
        remote, location = filesystem(path)
        if remote.exists(location):
            remote.rm(location, recursive=True)
        return
    place = Path(local(path))
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def modified(path: str | Path) -> float:
    """When `path`, which may be a link, was written, in seconds since 1970; 0 where the filesystem does not tell."""
    if not is_url(path):
        return os.lstat(local(path)).st_mtime
    remote, location = filesystem(path)
    try:
        return float(remote.modified(location).timestamp())
    except NotImplementedError:
        return 0.0


def write_problem(folder: str | Path) -> str | None:
    """Why nothing can be written to `folder` (which need not exist yet), or None; found out by writing something."""
    if is_url(folder):
        return _remote_write_problem(folder)
    place = Path(local(folder))
    while not os.path.lexists(place):
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"{error.strerror} ({str(place)!r})"


def _remote_write_problem(folder: str | Path) -> str | None:
    remote, location = filesystem(folder)
    probe = posixpath.join(location, f".fulmen-{secrets.token_hex(8)}")
    try:
        remote.makedirs(location, exist_ok=True)
        remote.pipe_file(probe, b"")
    except Exception as error:  # whatever the filesystem raises
        return f"{type(error).__name__}: {error}"
    with suppress(Exception):  # where nothing may be removed, an empty file stays
        remote.rm_file(probe)
    return None
