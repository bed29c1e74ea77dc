from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fulmen.book import Page, resolve
from fulmen.entry import BLOCK, Entry, Options, combine, own_scalar, reduction_of, scalar_copy
from fulmen.errors import MisconfigurationException

NUMBERS = st.floats(-1000, 1000, width=32)
WEIGHTS = st.integers(1, 64)
FORMS = st.sampled_from(["number", "float32", "float64"])


def make_entry(reduce_fx: Any = "mean", name: str = "loss", loader: int | None = None, **arguments: Any) -> Entry:
    page = Page("training_step", "step", "train", loader)
    options = Options(reduce_fx=reduce_fx, **{"on_step": True, "on_epoch": True, **arguments})
    return Entry(name, options, resolve(name, page, options), loader)


def in_form(value: float, form: str) -> Any:
    return value if form == "number" else torch.tensor(value, dtype=getattr(torch, form))


def logged(values: list[Any], weights: list[float], reduce_fx: str = "mean") -> Any:
    entry = make_entry(reduce_fx)
    for value, weight in zip(values, weights, strict=True):
        entry.add(value, weight)
    return entry.compute()


@given(st.lists(st.tuples(NUMBERS, WEIGHTS, FORMS), min_size=1, max_size=3 * BLOCK))
def test_mean_is_the_plain_weighted_mean(rows):
    result = logged([in_form(value, form) for value, _, form in rows], [weight for _, weight, _ in rows])
    expected = math.fsum(value * weight for value, weight, _ in rows) / sum(weight for _, weight, _ in rows)
    assert float(result) == pytest.approx(expected, rel=1e-4, abs=1e-2)


@given(st.lists(st.tuples(NUMBERS, FORMS), min_size=1, max_size=3 * BLOCK), st.sampled_from(["sum", "min", "max"]))
def test_the_other_reductions_do_not_know_weights(rows, reduce_fx):
    result = logged([in_form(value, form) for value, form in rows], [1] * len(rows), reduce_fx)
    expected = {"sum": math.fsum, "min": min, "max": max}[reduce_fx](value for value, _ in rows)
    assert float(result) == pytest.approx(expected, rel=1e-4, abs=1e-2)


@given(st.integers(1, 5 * BLOCK), st.integers(1, BLOCK))
def test_folding_in_between_changes_nothing(count, every):
    entry, other = make_entry(), make_entry()
    for place in range(count):
        value = torch.tensor(float(place))
        entry.add(value, 2)
        other.add(value, 2)
        if place % every == 0:
            other.compute()
    assert entry.compute() == pytest.approx(float(other.compute()))


def test_so_many_values_are_kept_and_no_more():
    entry = make_entry()
    lengths = []
    for _ in range(3 * BLOCK):
        entry.add(torch.ones(()), 1)
        lengths.append(len(entry.pending))
    assert max(lengths) == BLOCK - 1
    assert entry.compute() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_float32(dtype):
    count = 5000  # in bfloat16 a sum of ones ends at 256, in float16 at 2048
    result = logged([scalar_copy(torch.ones((), dtype=dtype))] * count, [1] * count, "sum")
    assert result.dtype is torch.float32
    assert result == count


def test_float64_stays_float64():
    value = torch.tensor(1 + 1e-12, dtype=torch.float64)
    for reduce_fx in ("mean", "sum", "min", "max"):
        count = BLOCK + 1
        result = logged([value] * count, [1] * count, reduce_fx)
        assert result.dtype is torch.float64
        assert float(result) == pytest.approx(1 + 1e-12 if reduce_fx != "sum" else count + count * 1e-12, abs=1e-13)


@pytest.mark.parametrize("reduce_fx", ["mean", "sum", "min", "max"])
@pytest.mark.parametrize("place", [0, 1, BLOCK, 2 * BLOCK])
@pytest.mark.parametrize("form", ["number", "float32", "mixed"])
def test_not_a_number_is_not_lost(reduce_fx, place, form):
    values: list[Any] = [1.0] * (2 * BLOCK + 1)
    values[place] = math.nan
    if form != "number":
        values = [
            in_form(value, "number" if form == "mixed" and i % 2 else "float32") for i, value in enumerate(values)
        ]
    assert math.isnan(logged(values, [1] * len(values), reduce_fx))


def test_no_weight_at_all_is_not_a_number():
    assert math.isnan(logged([1.0, 2.0], [0, 0]))
    assert math.isnan(logged([torch.ones(())], [0]))


def test_values_without_weight_do_not_count():
    assert logged([5.0, torch.ones(()), torch.tensor(9.0)], [0, 2, 0]) == 1


def test_values_of_several_dtypes_are_reduced_together():
    values = [torch.tensor(1.0), torch.tensor(2.0, dtype=torch.float64), 3.0]
    assert float(logged(values, [1, 1, 2])) == 2.25
    assert float(logged(values, [1, 1, 1])) == 2


def test_tensors_of_another_device_are_brought_together():
    values = [torch.ones((), device="meta"), torch.ones(())]
    assert logged(list(reversed(values)), [1, 1]).device.type == "meta"


@given(NUMBERS, NUMBERS, st.sampled_from(["sum", "min", "max"]))
def test_combine_is_the_same_for_numbers_and_tensors(first, second, reduction):
    plain = combine(reduction, first, second)
    for one in (first, torch.tensor(first)):
        for other in (second, torch.tensor(second)):
            assert float(combine(reduction, one, other)) == pytest.approx(plain, rel=1e-6)


def test_keys():
    def keys(**arguments: Any) -> tuple[str, str, str]:
        entry = make_entry(**arguments)
        return entry.key, entry.step_key, entry.epoch_key

    one = {"on_epoch": False}
    assert keys() == ("loss", "loss_step", "loss_epoch")
    assert keys(**one) == ("loss", "loss", "loss")
    assert keys(loader=1) == ("loss/dataloader_idx_1", "loss_step/dataloader_idx_1", "loss_epoch/dataloader_idx_1")
    assert keys(loader=1, **one) == ("loss/dataloader_idx_1",) * 3
    assert keys(loader=1, add_dataloader_idx=False) == ("loss", "loss_step", "loss_epoch")


SPELLINGS = {
    "mean": ["mean", "avg", "MEAN", "Avg", torch.mean],
    "min": ["min", "Min", torch.min, min],
    "max": ["max", "MAX", torch.max, max],
    "sum": ["sum", "SUM", torch.sum, sum],
}


@pytest.mark.parametrize(("reduction", "spelling"), [(k, s) for k, spellings in SPELLINGS.items() for s in spellings])
def test_spellings_of_a_reduction(reduction, spelling):
    assert reduction_of(spelling) == reduction


@pytest.mark.parametrize("unknown", ["median", torch.median, [], None, lambda values: values, torch.std])
def test_unknown_reductions_are_refused(unknown):
    with pytest.raises(MisconfigurationException, match="'mean', 'min', 'max', 'sum'"):
        reduction_of(unknown)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (torch.tensor(3), torch.float32),
        (torch.tensor(True), torch.float32),
        (torch.tensor(3, dtype=torch.uint8), torch.float32),
        (torch.tensor(3.0, dtype=torch.float16), torch.float32),
        (torch.tensor(3.0), torch.float32),
        (torch.tensor(3.0, dtype=torch.float64), torch.float64),
        (torch.tensor([[3.0]]), torch.float32),
    ],
)
def test_a_copy_is_a_float_scalar_of_its_own(value: Tensor, dtype: torch.dtype):
    before, value = float(value), value.clone()  # the parameter itself stays as it is
    kept = scalar_copy(value)
    assert kept.dtype is dtype
    assert kept.shape == ()
    value.zero_()
    assert float(kept) == before


def test_a_copy_has_no_graph():
    value = (torch.ones((), requires_grad=True) * 2).reshape(1)
    kept = scalar_copy(value)
    assert not kept.requires_grad
    assert kept.grad_fn is None


@pytest.mark.parametrize("reduce_fx", ["mean", "sum", "min", "max"])
def test_copies_are_reduced_to_a_tensor_without_graph(reduce_fx):
    parameter = torch.ones((), requires_grad=True)
    entry = make_entry(reduce_fx)
    for _ in range(BLOCK + 1):
        entry.add(scalar_copy(parameter * 2), 1)
    entry.fold()
    assert entry.pending == []
    result = entry.compute()
    assert isinstance(result, Tensor)
    assert not result.requires_grad
    assert result == (2 * (BLOCK + 1) if reduce_fx == "sum" else 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool])
def test_elsewhere_than_on_the_cpu_a_copy_is_kept_there(dtype):
    kept = own_scalar("x", torch.ones(1, dtype=dtype, device="meta"))
    assert isinstance(kept, Tensor)
    assert (kept.device.type, kept.dtype, kept.shape) == ("meta", torch.float32, ())


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (torch.tensor(3), 3.0),
        (torch.tensor(True), 1.0),
        (torch.tensor(3, dtype=torch.uint8), 3.0),
        (torch.tensor(1.5, dtype=torch.float16), 1.5),
        (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
        (torch.tensor([[1.5]]), 1.5),
        (torch.tensor(0.1, dtype=torch.float64), 0.1),
        (torch.tensor(1 + 1e-12, dtype=torch.float64), 1 + 1e-12),
        (torch.ones((), requires_grad=True) * 2, 2.0),
    ],
)
def test_on_the_cpu_the_number_is_kept(value: Tensor, number: float):
    value = value.clone()
    kept = own_scalar("x", value)
    assert type(kept) is float
    value.detach().zero_()
    assert kept == number


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("shape", [(2,), (0,), (1, 3)])
def test_more_than_one_element_is_refused(shape, device):
    with pytest.raises(ValueError, match=rf"'x'.*shape \({shape[0]},.*value.mean\(\)"):
        own_scalar("x", torch.ones(shape, device=device))
