import sys

import pytest

from fulmen.fabric.utilities.cloud_io import get_filesystem


def test_by_path_or_url(tmp_path):
    pytest.importorskip("fsspec")
    assert get_filesystem(tmp_path).protocol == ("file", "local")
    assert get_filesystem("memory://bucket/file").protocol == "memory"


def test_fsspec_is_named_when_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ModuleNotFoundError, match=r"fulmen\[remote\]"):
        get_filesystem("s3://bucket")
