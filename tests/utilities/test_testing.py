import sys

import pytest

from fulmen.fabric.utilities import testing as fabric_testing
from fulmen.utilities.testing import _runif_reasons


def test_a_test_without_needs_runs():
    assert fabric_testing._runif_reasons() == ([], {})
    assert _runif_reasons(min_torch="2.0", min_python="3.8", max_torch="99", rich=True) == ([], {})


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        ({"min_cuda_gpus": 1000}, "GPUs>=1000"),
        ({"min_torch": "99.0"}, "torch>=99.0"),
        ({"max_torch": "2.0"}, "torch<2.0"),
        ({"min_python": "4.0"}, "python>=4.0"),
        ({"standalone": True}, "Standalone execution"),
        ({"omegaconf": True}, "omegaconf"),
    ],
)
def test_what_is_missing_is_named(needs, reason, monkeypatch):
    monkeypatch.delenv("PL_RUN_STANDALONE_TESTS", raising=False)
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    (found,), _ = _runif_reasons(**needs)
    assert found.startswith(reason)


def test_versions_are_compared_as_numbers():
    assert fabric_testing._is_before("2.9.1", "2.13")
    assert not fabric_testing._is_before("2.13.0+cpu", "2.13.0")


def test_the_marks_of_a_test(monkeypatch):
    monkeypatch.setenv("PL_RUN_STANDALONE_TESTS", "1")
    assert _runif_reasons(standalone=True) == ([], {"standalone": True})
