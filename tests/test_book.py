from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fulmen.book import Book, SilentBook
from fulmen.entry import BLOCK, Options
from fulmen.errors import MisconfigurationException


class Writer:
    """A book that is open at a page, to be written in as in a module."""

    def __init__(self, hook: str = "training_step", batch: Any = None) -> None:
        self.book = Book()
        self.turn(hook)
        self.batch(torch.ones(1) if batch is None else batch)

    def turn(self, hook: str, loader: int | None = None) -> None:
        self.book.dataloader_idx = loader
        self.book.page = self.book.page_of(hook, loader)

    def batch(self, batch: Any) -> None:
        self.book.batch, self.book.batch_size = batch, None
        self.book.stamp += 1

    def log(self, name: str, value: Any, batch_size: int | None = None, **arguments: Any) -> None:
        self.book.log(name, value, tuple(Options(**arguments)), batch_size)

    def epoch(self, phase: str = "train") -> dict[str, float]:
        """The reduced values under their keys, as at the end of an epoch."""
        results = {entry.epoch_key: float(entry.result) for entry in self.book.end(phase)}
        self.book.clear(phase)
        return results


BOTH = {"on_step": True, "on_epoch": True}


# -------------------------------------------------------------------------------------------------- what may be logged


class Real:
    """Something that only looks like a number."""

    def __float__(self) -> float:
        return 1.0


@pytest.mark.parametrize("value", ["1.0", None, {"a": 1.0}, {"a": {"b": 1.0}}, [1.0], (1.0,), Real(), object(), 1j])
def test_other_values_are_refused(value):
    with pytest.raises(
        ValueError, match=rf"`self.log\('x', ...\)` was given {type(value).__name__}; expected a number"
    ):
        Writer().log("x", value)


def test_a_dictionary_is_sent_to_log_dict():
    with pytest.raises(ValueError, match=r"Use `self\.log_dict` for several values"):
        Writer().log("x", {"a": 1.0})


@pytest.mark.parametrize("form", [int, float, bool, torch.tensor, lambda v: torch.tensor([[v]])])
@pytest.mark.filterwarnings("ignore:.*it is averaged as a float")
def test_every_number_becomes_a_float(form):
    writer = Writer()
    writer.log("x", form(True), prog_bar=True, **BOTH)
    assert writer.epoch() == {"x_epoch": 1.0}
    assert {type(value) for value in writer.book.progress_bar_metrics.values()} == {float}
    for metrics in (writer.book.callback_metrics, writer.book.logged_metrics):
        assert {value.dtype for value in metrics.values()} == {torch.float32}


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    writer = Writer()
    writer.log("x", numpy.float32(1.5))
    writer.log("y", numpy.int64(3))
    assert writer.book.step_metrics("train") == {"x": 1.5, "y": 3.0}


def test_an_integer_tensor_warns_once():
    writer = Writer()
    with pytest.warns(UserWarning, match=r"'x'.*torch.int64; it is averaged as a float. Pass `value.float\(\)`"):
        writer.log("x", torch.tensor(3))
    writer.log("x", torch.tensor(4))  # a second warning would be an error
    kept = writer.book.step_metrics("train")["x"]
    assert (type(kept), kept) == (float, 4.0)
    assert writer.book.callback_metrics["x"].dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_dictionaries_hold_tensors_of_the_precision_that_was_logged(dtype):
    writer = Writer()
    value = torch.tensor(0.1, dtype=dtype)
    writer.log("x", value, **BOTH)
    writer.epoch()
    published = torch.promote_types(dtype, torch.float32)
    for metrics in (writer.book.callback_metrics, writer.book.logged_metrics):
        assert {"x_step", "x_epoch"} <= metrics.keys()
        for kept in metrics.values():
            assert (kept.dtype, kept.item()) == (published, value.item())


def test_changing_a_value_afterwards_does_not_change_what_was_logged():
    writer = Writer()
    value = torch.ones(1)
    writer.log("x", value, **BOTH)
    value += 100
    writer.log("y", value, **BOTH)
    value.zero_()
    assert writer.book.step_metrics("train") == {"x_step": 1, "y_step": 101}
    assert writer.epoch() == {"x_epoch": 1, "y_epoch": 101}


def test_no_graph_is_kept():
    writer = Writer()
    writer.log("x", torch.ones((), requires_grad=True) * 2, enable_graph=True, **BOTH)
    writer.epoch()
    assert not any(value.requires_grad for value in writer.book.callback_metrics.values())


# -------------------------------------------------------------------------------------------------- flags


def refused(match: str) -> Any:
    return pytest.raises(MisconfigurationException, match=match)


def test_neither_step_nor_epoch_is_refused():
    with refused(r"`self.log\('x', ..., on_step=False, on_epoch=False\)` logs nothing. Set one of them to True"):
        Writer().log("x", 1.0, on_step=False, on_epoch=False)
    with refused("logs nothing"):
        Writer("validation_step").log("x", 1.0, on_epoch=False)


def test_unknown_reduction_is_refused():
    with refused("reduce_fx='median'.*'mean', 'min', 'max', 'sum'"):
        Writer().log("x", 1.0, reduce_fx="median")


def test_the_suffix_of_loaders_is_refused_in_names():
    with refused("'/dataloader_idx_' is appended by itself.*add_dataloader_idx=False"):
        Writer("validation_step").log("x/dataloader_idx_0", 1.0)
    Writer("validation_step").log("x/dataloader_idx_0", 1.0, add_dataloader_idx=False)


@pytest.mark.parametrize(
    "other",
    [
        {"prog_bar": True},
        {"logger": False},
        {"on_step": False, "on_epoch": True},
        {"on_epoch": True},
        {"reduce_fx": max},
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_other_arguments_for_the_same_name_are_refused(other, later):
    writer = Writer()
    writer.log("x", 1.0)
    if later:
        writer.batch(torch.ones(1))
    name = next(iter(other)).replace("reduce_fx", "reduction")
    with refused(rf"'x'.*called before in `training_step` with other arguments:.*{name} was .*, is .*another name"):
        writer.log("x", 1.0, **other)


def test_the_same_arguments_said_in_other_words_are_fine():
    writer = Writer()
    for arguments in ({}, {"on_step": True}, {"logger": True}, {"reduce_fx": "avg"}, {"reduce_fx": torch.mean}, {}):
        writer.log("x", 1.0, **arguments)
    assert writer.book.step_metrics("train") == {"x": 1.0}


def test_a_batch_size_may_differ_from_call_to_call():
    writer = Writer()
    writer.log("x", 1.0, batch_size=1, **BOTH)
    writer.log("x", 4.0, batch_size=2, **BOTH)
    assert writer.epoch() == {"x_epoch": 3.0}


def test_asking_for_a_logger_that_is_not_there_warns_once():
    writer = Writer()
    writer.book.has_loggers = False
    with pytest.warns(UserWarning, match=r"logger=True.*the Trainer has no logger"):
        writer.log("x", 1.0, logger=True)
    writer.log("x", 1.0, logger=True)  # a second warning would be an error
    writer.log("y", 1.0)  # not asked for: no warning


def test_the_same_name_in_two_hooks_is_two_entries():
    writer = Writer()
    writer.log("x", 1.0, **BOTH)
    writer.turn("on_train_batch_end")
    writer.log("x", 5.0, prog_bar=True)
    assert writer.book.step_metrics("train") == {"x_step": 1.0, "x": 5.0}
    assert writer.book.callback_metrics == {"x": 5.0, "x_step": 1.0}  # the later one has the name
    assert writer.epoch() == {"x_epoch": 1.0}


# -------------------------------------------------------------------------------------------------- several loaders


def test_one_name_without_suffix_from_two_loaders_is_refused():
    writer = Writer()
    writer.turn("validation_step", 0)
    writer.log("x", 1.0, add_dataloader_idx=False)
    writer.log("y", 1.0)
    writer.turn("validation_step", 1)
    writer.log("y", 1.0)
    writer.log("other", 1.0, add_dataloader_idx=False)
    with refused("'x'.*add_dataloader_idx=False.* several loaders.*a different name for each"):
        writer.log("x", 1.0, add_dataloader_idx=False)


def test_values_of_a_loader_are_final_when_it_is_through():
    writer = Writer()
    writer.turn("validation_step", 0)
    writer.log("x", 1.0)
    assert writer.book.callback_metrics == {}
    writer.book.end_loader("validate")
    assert writer.book.callback_metrics == {"x/dataloader_idx_0": 1.0}
    writer.turn("validation_step", 1)
    writer.log("x", 3.0)
    assert writer.book.callback_metrics == {"x/dataloader_idx_0": 1.0}
    writer.book.end_loader("validate")
    writer.turn("on_validation_epoch_end")
    writer.log("end", 7.0)
    expected = {"x/dataloader_idx_0": 1.0, "x/dataloader_idx_1": 3.0, "end": 7.0}
    assert writer.epoch("validate") == expected
    writer.turn("validation_step", 0)
    writer.log("x", 9.0)
    assert writer.epoch("validate") == {"x/dataloader_idx_0": 9.0}


# -------------------------------------------------------------------------------------------------- batch sizes


@dataclasses.dataclass
class Sample:
    label: str
    image: Tensor


BATCHES = {
    "tensor": torch.ones(4, 2),
    "scalar": torch.tensor(1.0),
    "tuple": (torch.ones(4, 2), torch.ones(4)),
    "mapping": {"name": "x", "image": torch.ones(4, 2)},
    "nested": {"a": ["text", {"b": (1, torch.ones(4))}]},
    "dataclass": Sample("x", torch.ones(4)),
    "empty first": [[], {}, torch.ones(4)],
}


@pytest.mark.parametrize("kind", BATCHES)
def test_the_batch_size_is_found_in_the_batch(kind):
    writer = Writer(batch=BATCHES[kind])
    writer.log("x", 1.0, on_epoch=True)
    writer.batch(torch.ones(2))
    writer.log("x", 4.0, on_epoch=True)
    size = 1 if kind == "scalar" else 4
    assert writer.epoch()["x_epoch"] == pytest.approx((size + 8) / (size + 2))


def test_tensors_of_several_sizes_warn_and_the_first_counts(monkeypatch):
    from fulmen import tree
    from fulmen.ranks import WarningCache

    monkeypatch.setattr(tree, "_warned", WarningCache())
    writer = Writer(batch=(torch.ones(4), torch.ones(5)))
    with pytest.warns(UserWarning, match="ambiguous"):
        writer.log("x", 1.0, on_epoch=True)
    writer.batch((torch.ones(4), torch.ones(5)))
    writer.log("x", 1.0, on_epoch=True)  # a second warning would be an error
    assert writer.book.batch_size == 4


def test_no_batch_counts_as_one() -> None:
    writer = Writer("validation_step")
    for value in (1.0, 2.0):
        writer.batch(None)
        writer.log("a", value)
    writer.book.end("validate")
    assert writer.book.callback_metrics["a"] == 1.5


@pytest.mark.parametrize("batch", ["text", ["a", "b"], 3, [None], {"a": 1}])
def test_a_batch_without_size_needs_it_given(batch):
    writer = Writer()
    writer.batch(batch)
    with refused(rf"'x'.*on_epoch=True.*\({type(batch).__name__}\) holds no tensor.*batch_size=\.\.\."):
        writer.log("x", 1.0, on_epoch=True)
    writer.log("x", 2.0, batch_size=3, on_epoch=True)
    assert writer.epoch() == {"x_epoch": 2.0}  # and the refused value left nothing behind


def test_a_batch_that_contains_itself():
    batch: list[Any] = []
    batch.append(batch)
    writer = Writer()
    writer.batch(batch)
    with pytest.raises(RecursionError):
        writer.log("x", 1.0, on_epoch=True)


@pytest.mark.parametrize("arguments", [{"on_step": True}, {"on_epoch": True, "reduce_fx": "max"}])
def test_the_batch_is_only_asked_for_a_mean(arguments):
    writer = Writer()
    writer.batch("nothing in here")
    writer.log("x", 1.0, **arguments)


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_epoch_end", "on_validation_epoch_end"])
def test_hooks_of_an_epoch_have_no_batch(hook):
    writer = Writer(hook, batch="nothing in here")
    writer.log("x", 1.0)
    writer.log("x", 3.0)
    assert writer.epoch("validate" if "validation" in hook else "train") == {"x": 2.0}


@pytest.mark.parametrize("reduce_fx", ["sum", "min", "max"])
def test_a_given_batch_size_does_not_scale_other_reductions(reduce_fx):
    writer = Writer()
    writer.log("x", 2.0, batch_size=8, on_epoch=True, reduce_fx=reduce_fx)
    assert writer.epoch() == {"x_epoch": 2.0}


def test_a_batch_size_of_zero_counts_as_none():
    writer = Writer(batch=torch.ones(4))
    writer.log("x", 100.0, batch_size=0, on_epoch=True)
    writer.log("x", 1.0, batch_size=1, on_epoch=True)
    assert writer.epoch() == {"x_epoch": 1.0}


@given(
    st.lists(
        st.lists(st.tuples(st.floats(-100, 100, width=32), st.booleans()), min_size=1, max_size=3),
        min_size=1,
        max_size=2 * BLOCK,
    ),
    st.lists(st.integers(1, 9), min_size=2 * BLOCK, max_size=2 * BLOCK),
)
def test_the_mean_of_an_epoch_is_weighted_by_batch_size(batches, sizes):
    """Any number of calls in each batch, tensors and numbers mixed."""
    writer = Writer()
    weighted = []
    for values, size in zip(batches, sizes, strict=False):
        writer.batch(torch.ones(size, 2))
        for value, as_tensor in values:
            writer.log("x", torch.tensor(value) if as_tensor else value, on_epoch=True)
            weighted.append((value, size))
    expected = sum(value * size for value, size in weighted) / sum(size for _, size in weighted)
    assert writer.epoch()["x_epoch"] == pytest.approx(expected, rel=1e-4, abs=1e-3)


# -------------------------------------------------------------------------------------------------- reading


def test_dictionaries_by_step_and_by_epoch():
    writer = Writer()
    book = writer.book
    writer.log("t", 1.0, prog_bar=True, **BOTH)
    writer.log("hidden", 5.0, logger=False)
    assert book.callback_metrics == {"t": 1, "t_step": 1, "hidden": 5}
    assert book.logged_metrics == {"t_step": 1}
    assert book.progress_bar_metrics == {"t_step": 1.0}
    writer.batch(torch.ones(1))
    writer.log("t", 2.0, prog_bar=True, **BOTH)
    assert book.callback_metrics == {"t": 2, "t_step": 2, "hidden": 5}
    writer.epoch()
    assert book.callback_metrics == {"t": 1.5, "t_step": 2, "hidden": 5, "t_epoch": 1.5}
    assert book.logged_metrics == {"t_step": 2, "t_epoch": 1.5}
    assert book.progress_bar_metrics == {"t_step": 2.0, "t_epoch": 1.5}
    assert all(isinstance(value, Tensor) for value in (*book.callback_metrics.values(), *book.logged_metrics.values()))


def test_step_values_of_evaluation_are_not_for_callbacks():
    writer = Writer("validation_step")
    writer.log("v", 1.0, prog_bar=True, **BOTH)
    assert writer.book.callback_metrics == {}
    assert writer.book.logged_metrics == {"v_step": 1}
    assert writer.book.progress_bar_metrics == {"v_step": 1}


def test_the_latest_batch_has_the_name_even_if_nobody_read_before():
    writer = Writer()
    writer.log("x", 1.0)
    writer.turn("on_train_batch_end")
    writer.log("x", 2.0, prog_bar=True)
    writer.turn("validation_step")
    writer.batch(torch.ones(1))
    writer.log("x", 3.0, on_step=True, on_epoch=False, prog_bar=True)
    writer.batch(torch.ones(1))
    writer.turn("training_step")
    writer.log("x", 4.0)
    assert writer.book.callback_metrics == writer.book.logged_metrics == {"x": 4.0}
    assert writer.book.progress_bar_metrics == {"x": 3.0}


def test_reading_an_epoch_s_value_before_its_end_gives_nothing():
    writer = Writer()
    writer.log("t", 1.0, on_step=False, on_epoch=True)
    assert writer.book.callback_metrics == {}


def test_what_is_logged_while_an_epoch_ends_is_read_at_once():
    writer = Writer()
    writer.book.end("train")
    writer.turn("on_train_epoch_end")
    writer.log("late", 3.0)
    assert writer.book.callback_metrics == {"late": 3.0}


def test_a_value_that_was_not_logged_in_this_batch_is_not_repeated():
    """Lightning sends the last value of every key again with every due step; here a row holds what belongs to it."""
    writer = Writer()
    writer.log("now and then", 1.0)
    assert writer.book.step_metrics("train") == {"now and then": 1.0}
    writer.batch(torch.ones(1))
    writer.log("always", 2.0)
    assert writer.book.step_metrics("train") == {"always": 2.0}
    assert writer.book.callback_metrics == {"now and then": 1.0, "always": 2.0}


def test_an_epoch_without_values_publishes_none():
    writer = Writer()
    writer.log("x", 1.0, on_epoch=True)
    assert writer.epoch() == {"x_epoch": 1.0}
    assert writer.epoch() == {}
    assert writer.book.callback_metrics["x_epoch"] == 1.0  # the last one stays readable


def test_a_new_run_forgets_everything():
    writer = Writer("validation_step")
    writer.turn("validation_step", 1)
    writer.log("x", 1.0, on_step=True)
    writer.book.end("validate")
    writer.book.forget()
    assert writer.book.callback_metrics == writer.book.logged_metrics == writer.book.progress_bar_metrics == {}
    assert writer.book.dataloader_idx is None
    writer.turn("validation_step", 1)
    writer.log("x", 1.0, prog_bar=True)  # other arguments than before


def test_the_silent_book_takes_nothing():
    book = SilentBook()
    with pytest.warns(UserWarning, match=r"barebones=True"):
        book.log("x", object(), ())
    book.log("x", object(), ())
    assert book.callback_metrics == {}


def test_what_is_logged_once_an_epoch_has_no_weight_of_a_batch():
    book = Book()
    book.page = book.page_of("training_step")
    book.stamp, book.batch = 1, torch.ones(5)
    book.log("x", 1.0, tuple(Options(on_epoch=True)))
    book.opener("on_train_epoch_end")()
    book.log("y", 1.0, tuple(Options()))
    book.log("y", 5.0, tuple(Options()), batch_size=3)
    book.end("train")
    assert book.callback_metrics["y"] == 4
