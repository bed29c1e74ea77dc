"""Instruments: what watches a run, such as a profiler or a stopwatch.

This is the one place that knows what can be watched. The bound functions of a run (listeners on hooks, the parts of a
step, what feeds it) are swapped for watched ones while somebody watches, and put back afterwards. When nobody does,
nothing is swapped, and nothing is asked in the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from fulmen.hooks import HOOKS, Hook

if TYPE_CHECKING:
    from fulmen.data.feed import Feed
    from fulmen.loops.step import Step
    from fulmen.trainer import Trainer

_ABSENT: Any = object()
_END: Any = object()
_FETCHES = {
    "train": "[_TrainingEpochLoop].train_dataloader_next",
    "validate": "[_EvaluationLoop].val_next",
    "test": "[_EvaluationLoop].test_next",
    "predict": "[_PredictionLoop].predict_next",
}
_SHORT = {"validate": "val"}


class Instrument(Protocol):
    """Something that watches the parts of a run."""

    def wrap(self, kind: str, action: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """What is called instead of a part of the run.

        Args:
            kind: What the part does: "hook", "train_fetch", "fetch", "training_step", "backward", "zero_grad",
                "optimizer_step", "save_checkpoint", ...
            action: The part's full name, e.g. "[Callback]EarlyStopping.on_train_end".
            function: The part.

        Returns:
            A function of the same arguments and result; ``function`` itself if the part is of no interest.
        """


class Instruments:
    """Those who watch a Trainer's runs.

    Args:
        trainer: Whose runs they are.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._watching: list[Instrument] = []
        self._profile_ends: list[Callable[[], None]] = []
        # owner -> attribute -> what it was (or that there was none), and what stands there now
        self._swapped: WeakKeyDictionary[Any, dict[str, tuple[Any, Any]]] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what was swapped, which belongs to this process."""
        return self.__dict__ | {"_swapped": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_swapped": WeakKeyDictionary()})

    def add(self, instrument: Instrument) -> Callable[[], None]:
        """Lets ``instrument`` watch from now on, also in the middle of a run.

        Returns:
            A function that ends it; harmless when called twice.
        """
        self._watching.append(instrument)
        self._swap_all()

        def remove() -> None:
            if instrument in self._watching:
                self._watching.remove(instrument)
                self._swap_all()

        return remove

    def watched(self, kind: str, action: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` as those who watch want it called."""
        for instrument in self._watching:
            function = instrument.wrap(kind, action, function)
        return function

    def begin_profile(self) -> None:
        """Lets the trainer's profiler watch the run that begins; nothing is done for the one that records nothing."""
        from fulmen.profilers.base import PassThroughProfiler

        trainer, profiler = self.trainer, self.trainer.profiler
        if type(profiler) is PassThroughProfiler:
            return
        profiler.attach(trainer)
        local_rank = trainer.local_rank if trainer.world_size > 1 else None
        profiler.setup(stage=trainer.state.fn, local_rank=local_rank, log_dir=trainer.log_dir)
        self._profile_ends = [profiler.describe, self.add(_Profiling(profiler.profile))]

    def end_profile(self) -> None:
        """The run has ended: the profiler describes what it saw, if there is one. Harmless when called twice."""
        while self._profile_ends:
            self._profile_ends.pop()()

    # ------------------------------------------------------------------------------------------------ swapping

    def _replace(self, owner: Any, name: str, change: Callable[[Any], Any]) -> None:
        """Changes an attribute of an object, so that ``_put_back`` can undo it; the last change counts."""
        swapped = self._swapped.setdefault(owner, {})
        _restore(owner, name, swapped)
        before = owner.__dict__.get(name, _ABSENT)
        now = change(getattr(owner, name))
        setattr(owner, name, now)
        swapped[name] = (before, now)

    def _watch(self, owner: Any, name: str, kind: str, action: str | None = None) -> None:
        """Swaps a method for a watched one."""
        self._replace(owner, name, partial(self.watched, kind, action or kind))

    def _after(self, owner: Any, name: str, change: Callable[..., Any]) -> None:
        """Lets ``change(result, *arguments)`` decide what a method returns."""

        def changed(method: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *arguments, **keywords: change(method(*arguments, **keywords), *arguments)

        self._replace(owner, name, changed)

    def _put_back(self) -> None:
        for owner, swapped in list(self._swapped.items()):
            for name in swapped:
                _restore(owner, name, swapped)
        self._swapped.clear()

    def _swap_all(self) -> None:
        """Puts everything back as it was, and swaps it for those who watch now."""
        self._put_back()
        if not self._watching:
            return
        trainer, fit, data = self.trainer, self.trainer.fit_loop, self.trainer.data
        self._watch(trainer, "log_metrics", "log_metrics")
        self._watch(trainer, "save_checkpoint", "save_checkpoint")
        self._replace(trainer, "_call_module", self._module_caller)
        self._after(trainer, "recompile_hooks", lambda _: self._watch_hooks())
        self._watch(fit, "run", "run_training")
        self._watch(fit, "epoch", "run_training_epoch")
        self._watch(fit, "validate", "run_validation")
        self._after(fit, "bind_step", self._watch_step)
        for name, loop in self._evaluations():
            self._after(loop, "bind_step", partial(self._watch_evaluation_step, name))
        self._after(data, "transfer", lambda transfer: self.watched("transfer", self._of("batch_to_device"), transfer))
        self._replace(data, "request", self._requester)
        self._replace(data, "feed", partial(self._feeder, lambda feed: [feed]))
        self._replace(data, "evaluation_feeds", partial(self._feeder, lambda result: result[0]))
        self._swap_bound()

    def _swap_bound(self) -> None:
        """What a run under way has bound already."""
        fit = self.trainer.fit_loop
        self._watch_hooks()
        if "step" in fit.__dict__:
            self._watch_step(fit.step)
        if fit.feed is not None:
            self._watch_feeds("train", [fit.feed])
        for name, loop in self._evaluations():
            self._watch_feeds(name, loop.feeds or ())

    def _evaluations(self) -> list[tuple[str, Any]]:
        trainer = self.trainer
        loops = {"test": trainer.test_loop, "predict": trainer.predict_loop}
        return [("validate", trainer.fit_loop.val_loop), ("validate", trainer.validate_loop), *loops.items()]

    # ------------------------------------------------------------------------------------------------ parts

    def _of(self, name: str, owner: str = "Strategy") -> str:
        """The action of a method of the strategy or the module."""
        trainer = self.trainer
        instance = trainer.strategy if owner == "Strategy" else trainer.strategy.lightning_module
        return f"[{owner}]{type(instance).__name__}.{name}"

    def _module_caller(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def caller(name: str, *arguments: Any) -> Any:
            return self.watched("hook", self._of(name, "LightningModule"), call)(name, *arguments)

        return caller

    def _watch_hooks(self) -> None:
        for hook in HOOKS:
            if getattr(self.trainer.hooks, hook.name):
                self._replace(self.trainer.hooks, hook.name, partial(self._watched_listeners, hook))

    def _watched_listeners(self, hook: Hook, listeners: Iterable[Callable[..., Any]]) -> tuple[Callable[..., Any], ...]:
        actions = [(self._action_of(hook, listener), listener) for listener in listeners]
        return tuple(
            listener if action is None else self.watched("hook", action, listener) for action, listener in actions
        )

    def _action_of(self, hook: Hook, listener: Callable[..., Any]) -> str | None:
        """Whose method a listener is; None for what opens the book's page, which nobody wants to see."""
        trainer = self.trainer
        owners: dict[str, list[Any]] = {
            "C": trainer.callbacks,
            "M": [trainer.strategy.lightning_module],
            "S": [trainer.strategy],
            "D": [trainer.data.datamodule],
        }
        # the table binds callbacks with partial(method, trainer, module)
        functions = (listener, getattr(listener, "func", listener))
        for letter, title in (
            ("C", "Callback"),
            ("M", "LightningModule"),
            ("S", "Strategy"),
            ("D", "LightningDataModule"),
        ):
            for owner in owners[letter] if letter in hook.who else ():
                if getattr(owner, hook.name, _ABSENT) in functions:
                    name = getattr(owner, "state_key", None) if letter == "C" else None
                    return f"[{title}]{name or type(owner).__name__}.{hook.name}"
        return None

    def _watch_step(self, step: Step) -> Step:
        module = "LightningModule"
        self._watch(step, "train", "run_training_batch")
        self._watch(step, "training_step", "training_step", self._of("training_step"))
        self._watch(step, "run_backward", "backward", self._of("backward"))
        if hasattr(step, "clear_gradients"):
            self._watch(step, "clear_gradients", "zero_grad", self._of("optimizer_zero_grad", module))
            self._watch(step, "update", "optimizer_step", self._of("optimizer_step"))
            clip = partial(self.watched, "clip", self._of("configure_gradient_clipping", module))
            self._replace(step, "clip", lambda calls: tuple(map(clip, calls)))
        if hasattr(step, "user_step"):
            self._watch(step, "user_step", "optimizer_step", self._of("optimizer_step", module))
        name = self._of("optimizer_step") if hasattr(step, "user_step") else "optimizer_step"
        for optimizer in self.trainer.lightning_optimizers:
            if optimizer.__dict__.get("_run_step") is not None:
                self._watch(optimizer, "_run_step", "optimizer_step", name)
        schedulers = self.trainer.fit_loop.schedulers
        if schedulers.__dict__.get("_step") is not None:
            self._watch(schedulers, "_step", "hook", self._of("lr_scheduler_step", module))
        return step

    def _watch_evaluation_step(self, stage: str, step: Callable[..., Any]) -> Callable[..., Any]:
        name = "validation_step" if stage == "validate" else f"{stage}_step"
        return self.watched(name, self._of(name), step)

    # ------------------------------------------------------------------------------------------------ data

    def _requester(self, request: Callable[[str], Any]) -> Callable[[str], Any]:
        """Asking module or datamodule for their loaders."""
        data = self.trainer.data

        def ask(stage: str) -> Any:
            if stage in data.given or data.owner(stage) is None:
                return request(stage)
            name, owner = f"{_SHORT.get(stage, stage)}_dataloader", data.owner(stage)
            title = "LightningModule" if data.datamodule is None else "LightningDataModule"
            return self.watched("hook", f"[{title}]{type(owner).__name__}.{name}", request)(stage)

        return ask

    def _feeder(self, feeds_of: Callable[[Any], list[Feed]], make: Callable[..., Any]) -> Callable[..., Any]:
        """Making the feeds of a loop."""

        def made(stage: str, *arguments: Any) -> Any:
            action = f"setup_{_SHORT.get(stage, stage)}_dataloader"
            result = self.watched("setup_data", action, make)(stage, *arguments)
            self._watch_feeds(stage, feeds_of(result))
            return result

        return made

    def _watch_feeds(self, stage: str, feeds: Iterable[Feed]) -> None:
        for feed in feeds:
            self._replace(feed, "start", partial(self._watched_start, stage, feed))

    def _watched_start(self, stage: str, feed: Feed, start: Callable[[int], Iterator[Any]]) -> Callable[..., Any]:
        kind = "train_fetch" if stage == "train" else "fetch"
        begin = self.watched(kind, f"start_{_SHORT.get(stage, stage)}_epoch", start)

        def started(epoch: int) -> Iterator[Any]:
            iterator = begin(epoch)
            fetch = self.watched(kind, _FETCHES[stage], lambda: next(iterator, _END))

            def batches() -> Iterator[Any]:
                while (batch := fetch()) is not _END:
                    yield batch
                    if feed.is_last:
                        break
                yield from iterator  # the feed comes to its end; there is no batch to wait for

            return batches()

        return started


def _restore(owner: Any, name: str, swapped: dict[str, tuple[Any, Any]]) -> None:
    """Undoes a swap, unless somebody else has put something there since."""
    before, ours = swapped.get(name, (_ABSENT, _ABSENT))
    if ours is _ABSENT or owner.__dict__.get(name, _ABSENT) is not ours:
        return
    if before is _ABSENT:
        del owner.__dict__[name]
    else:
        owner.__dict__[name] = before


class _Profiling:
    """A profiler as an instrument: it is told of every part."""

    def __init__(self, profile: Callable[[str], AbstractContextManager[Any]]) -> None:
        self._profile = profile

    def wrap(self, kind: str, action: str, function: Callable[..., Any]) -> Callable[..., Any]:
        profile = self._profile

        def call(*arguments: Any, **keywords: Any) -> Any:
            with profile(action):
                return function(*arguments, **keywords)

        return call
