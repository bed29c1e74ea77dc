import functools

import pytest

from fulmen.utilities.signature_utils import is_param_in_hook_signature


class Hooks:
    def plain(self, batch, batch_idx): ...
    def variadic(self, batch, *args): ...
    def by_name(self, *, batch_idx): ...

    @functools.wraps(plain)
    def wrapped(self, *args): ...


@pytest.mark.parametrize(
    ("name", "param", "arguments", "expected"),
    [
        ("plain", "batch_idx", {}, True),
        ("plain", "dataloader_idx", {}, False),
        ("plain", "self", {}, False),
        ("plain", "dataloader_idx", {"min_args": 2}, True),
        ("plain", "dataloader_idx", {"min_args": 3}, False),
        ("variadic", "batch_idx", {}, True),
        ("variadic", "batch_idx", {"explicit": True}, False),
        ("by_name", "batch_idx", {}, False),
        ("wrapped", "batch_idx", {"explicit": True}, True),
    ],
)
def test_which_parameters_count(name, param, arguments, expected):
    assert is_param_in_hook_signature(getattr(Hooks, name), param, **arguments) is expected
    assert is_param_in_hook_signature(getattr(Hooks(), name), param, **arguments) is expected
