from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulmen
from fulmen.hooks import HOOKS, LOG_RULES, overrides
from fulmen.strategies import Strategy


class Net(fulmen.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.calls: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).pow(2).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(number: int = 2) -> Any:
    return DataLoader(torch.ones(number, 2), batch_size=1)  # type: ignore[arg-type]


@pytest.fixture
def quiet(tmp_path: Path) -> Any:
    def make(*callbacks: Any, **arguments: Any) -> fulmen.Trainer:
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        chosen = {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": tmp_path, **dict.fromkeys(off, False)}
        return fulmen.Trainer(callbacks=list(callbacks), **{**chosen, **arguments})

    return make


# ---------------------------------------------------------------------------------------------------- the table


def test_every_hook_of_the_table_is_a_documented_method_of_who_has_it() -> None:
    owners: dict[str, type] = {
        "C": fulmen.Callback,
        "M": fulmen.LightningModule,
        "D": fulmen.LightningDataModule,
        "S": Strategy,
    }
    for hook in HOOKS:
        for who in hook.who:
            method = getattr(owners[who], hook.name)
            assert method.__doc__, f"{owners[who].__name__}.{hook.name}"
            if who == "S":
                continue
            parameters = list(inspect.signature(method).parameters)[3 if who == "C" else 1 :]
            assert parameters == list(hook.arguments), f"{owners[who].__name__}.{hook.name}"


def test_every_hook_of_callbacks_and_modules_is_in_the_table() -> None:
    table = {who: {hook.name for hook in HOOKS if who in hook.who} for who in "CM"}
    of_callbacks = {name for name in vars(fulmen.Callback) if name.startswith("on_")}
    of_modules = {name for name in dir(fulmen.LightningModule) if name.startswith("on_")}
    transfer = {"on_gpu", "on_before_batch_transfer", "on_after_batch_transfer"}
    assert of_callbacks == {name for name in table["C"] if name.startswith("on_")}
    assert of_modules - transfer == {name for name in table["M"] if name.startswith("on_")}


def test_names_are_unique_and_have_a_rule() -> None:
    names = [hook.name for hook in HOOKS]
    assert len(set(names)) == len(names)
    assert set(names) <= set(LOG_RULES)


# ---------------------------------------------------------------------------------------------------- overriding


class Base:
    def hook(self) -> None: ...


class Heir(Base):
    def hook(self) -> None: ...


class Duck:
    def hook(self) -> None: ...


def test_overrides() -> None:
    assert not overrides(Base(), "hook", Base)
    assert overrides(Heir(), "hook", Base)
    assert overrides(Duck(), "hook", Base)
    assert not overrides(object(), "hook", Base)
    plain = Base()
    plain.hook = lambda: None  # type: ignore[method-assign]
    assert overrides(plain, "hook", Base)


def test_nobody_listens_until_somebody_overrides(quiet: Any) -> None:
    trainer = quiet(fulmen.Callback())
    trainer.fit(Net(), batches())
    listened = {name for name, calls in vars(trainer.hooks).items() if calls}
    assert listened == {
        f"on_{stage}_model_{what}"
        for stage, what in [("validation", "eval"), ("validation", "zero_grad"), ("test", "eval"), ("predict", "eval")]
    }


def test_a_duck_is_a_callback(quiet: Any) -> None:
    class Quack:
        """Has the hooks it needs, and inherits from nothing."""

        def __init__(self) -> None:
            self.calls: list[str] = []

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.calls.append(f"start {trainer.current_epoch}")

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.calls.append(f"batch {batch_idx}")

    duck = Quack()
    quiet(duck).fit(Net(), batches())
    assert duck.calls == ["start 0", "batch 0", "batch 1"]


def test_hooks_given_to_the_instance_are_seen(quiet: Any) -> None:
    module, callback, calls = Net(), fulmen.Callback(), []
    module.on_train_batch_start = lambda batch, batch_idx: calls.append(("module", batch_idx))
    callback.on_train_batch_start = lambda trainer, pl_module, batch, batch_idx: calls.append(("callback", batch_idx))
    quiet(callback).fit(module, batches())
    assert calls == [("callback", 0), ("module", 0), ("callback", 1), ("module", 1)]


def test_hooks_assigned_in_the_middle_of_a_run_are_seen_after_recompiling(quiet: Any) -> None:
    class Assigns(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 0:
                self.on_after_backward = lambda: self.calls.append("late")
                self.on_train_epoch_end = lambda: self.calls.append("epoch")
            if batch_idx == 2:
                self.trainer.recompile_hooks()
            return super().training_step(batch, batch_idx)

    module = Assigns()
    quiet().fit(module, batches(4))
    assert module.calls == ["late", "epoch"]  # from the batch after that one on
    module.calls.clear()
    quiet().fit(module, batches(4))
    assert module.calls == ["late"] * 4 + ["epoch"]


def test_callbacks_assigned_later_are_seen_at_the_next_run(quiet: Any) -> None:
    class Counts(fulmen.Callback):
        batches = 0

        def on_train_batch_end(self, *arguments: Any) -> None:
            self.batches += 1

    trainer, counts, module = quiet(max_epochs=1), Counts(), Net()
    trainer.fit(module, batches())
    trainer.callbacks.append(counts)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, batches())
    assert counts.batches == 2


# ---------------------------------------------------------------------------------------------------- order


def named(name: str, calls: list[str], **attributes: Any) -> Any:
    """A callback that writes its name when batches start and epochs end."""

    def note(self: Any, *arguments: Any) -> None:
        calls.append(name)

    methods = {"on_train_batch_start": note, "on_train_epoch_end": note, "state_key": name}
    return type(name, (fulmen.Callback,), {**methods, **attributes})()


def test_callbacks_go_by_their_order_and_the_module_comes_after(quiet: Any) -> None:
    calls: list[str] = []
    module = Net()
    module.on_train_batch_start = lambda *arguments: calls.append("module")
    module.on_train_epoch_end = lambda: calls.append("module end")
    callbacks = [
        named("last", calls, order=1),
        named("plain", calls),
        named("late", calls, after_module=frozenset({"on_train_epoch_end"})),
        named("first", calls, order=-1),
    ]
    trainer = quiet(*callbacks)
    assert [type(callback).__name__ for callback in trainer.callbacks] == ["first", "plain", "late", "last"]
    trainer.fit(module, batches(1))
    assert calls == ["first", "plain", "late", "last", "module", "first", "plain", "last", "module end", "late"]


class Switched(fulmen.Callback):
    """Listens on batches only if it is told to."""

    def __init__(self, on: bool) -> None:
        self.on = on
        self.calls: list[str] = []
        self.asked: list[str] = []

    def listens(self, hook: str, trainer: Any) -> bool:
        self.asked.append(hook)
        return self.on

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.calls.append("end")


@pytest.mark.parametrize("on", [True, False])
def test_a_callback_may_say_that_it_does_not_listen(quiet: Any, on: bool) -> None:
    callback = Switched(on)
    trainer = quiet(callback)
    trainer.fit(Net(), batches())
    assert callback.calls == (["end", "end"] if on else [])
    assert bool(trainer.hooks.on_train_batch_end) is on
    assert set(callback.asked) == {"on_train_batch_end"}


def test_what_a_class_says_does_not_silence_its_heirs(quiet: Any) -> None:
    class Overrides(Switched):
        def on_train_batch_end(self, *arguments: Any) -> None:
            self.calls.append("own")

    class Adds(Switched):
        def on_train_batch_start(self, *arguments: Any) -> None:
            self.calls.append("added")

    class Says(Overrides):
        def listens(self, hook: str, trainer: Any) -> bool:
            return False

    overriding, adding, saying = Overrides(False), Adds(False), Says(False)
    quiet(overriding, adding, saying).fit(Net(), batches(1))
    assert (overriding.calls, adding.calls, saying.calls) == (["own"], ["added"], [])


# ---------------------------------------------------------------------------------------------------- misspelt


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("on_train_batch_ends", "on_train_batch_end"),
        ("on_validaton_epoch_end", "on_validation_epoch_end"),
        ("on_fit_begin", None),
        ("on_my_own_event", None),
        ("_on_train_batch_end", None),
        ("train_batch_end", None),
    ],
)
@pytest.mark.parametrize("of", ["callback", "module"])
def test_misspelt_hooks_are_pointed_out(quiet: Any, name: str, meant: str | None, of: str) -> None:
    base: Any = fulmen.Callback if of == "callback" else Net
    odd = type("Odd", (base,), {name: lambda self, *arguments: None})()
    trainer = quiet(*([odd] if of == "callback" else []))
    module = odd if of == "module" else Net()
    if meant is None:
        trainer.fit(module, batches(1))
        return
    with pytest.warns(UserWarning, match=f"`Odd.{name}` looks like a hook.* Did you mean `{meant}`") as warned:
        trainer.fit(module, batches(1))
    assert len([warning for warning in warned if "looks like a hook" in str(warning.message)]) == 1


def test_hooks_of_batch_transfer_are_no_mistakes(quiet: Any) -> None:
    class Transfers(Net):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

        on_after_batch_transfer = on_before_batch_transfer

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet().fit(Transfers(), batches(1))


# ---------------------------------------------------------------------------------------------------- describe


def test_describe_says_who_listens_in_which_order(quiet: Any) -> None:
    calls: list[str] = []
    module = Net()
    module.on_train_epoch_end = lambda: None
    trainer = quiet(
        named("Early", calls, after_module=frozenset({"on_train_epoch_end"})),
        named("Plain", calls),
        max_epochs=3,
        gradient_clip_val=0.5,
        accumulate_grad_batches=2,
    )
    text = trainer.describe(module)
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.startswith("  ")}
    assert [line for line in text.splitlines() if not line.startswith(" ")] == ["plan", "run", "hooks"]
    assert rows["on_train_batch_start"] == "Early, Plain"
    assert rows["on_train_epoch_end"] == "Plain, Net, Early"
    assert rows["epochs"] == "0 to 3"
    assert rows["accumulate"] == "2 batches a step"
    assert rows["clipping"] == "norm 0.5"
    assert rows["validation"] == "at the end of every epoch"
    order = [line.split()[0] for line in text.split("hooks\n")[1].splitlines()]
    assert order == [hook.name for hook in HOOKS if hook.name in order]


def test_describe_knows_the_last_run(quiet: Any) -> None:
    trainer = quiet(val_check_interval=10, check_val_every_n_epoch=None)
    assert "hooks" not in trainer.describe().splitlines()
    trainer.fit(Net(), batches())
    text = trainer.describe()
    assert "hooks" in text.splitlines()
    assert "every 10 batches, over epochs" in text
    assert "AutomaticStep" in text
