"""Which operators the time of the steps goes to, on the CPU and on the device, by PyTorch's profiler."""

from __future__ import annotations

import inspect
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerAction

from fulmen.errors import MisconfigurationException
from fulmen.profilers.profiler import Profiler, local
from fulmen.ranks import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

__all__ = ["PyTorchProfiler", "RegisterRecordFunction", "ScheduleWrapper"]

_WAIT, _WARMUP, _ACTIVE = 1, 1, 3
_CYCLE = _WAIT + _WARMUP + _ACTIVE
# What an operator's row in the report may be sorted by; torch reads "cuda" as the device of the run.
_SORT_KEYS = {
    "cpu_time",
    "cuda_time",
    "cpu_time_total",
    "cuda_time_total",
    "cpu_memory_usage",
    "cuda_memory_usage",
    "self_cpu_memory_usage",
    "self_cuda_memory_usage",
    "count",
}


class PyTorchProfiler(Profiler):
    """Records the operators of a few steps of training, validation, test and prediction each, with `torch.profiler`.

    For each of them a trace is written, which opens in https://ui.perfetto.dev and in TensorBoard, with the names of
    the hooks and of the model's parts in it, and the report has a table of the operators.

    Args:
        dirpath: Folder of the files. Default: the `log_dir` of the Trainer.
        filename: Name of the report's file, without its ending. None writes the report to the log instead.
        group_by_input_shapes: Whether calls with inputs of other shapes have rows of their own.
        emit_nvtx: Marks the operators for NVIDIA's `nsys` instead of recording them. Run it as
            `nsys profile --capture-range=cudaProfilerApi python train.py`.
        export_to_chrome: Whether traces are written.
        row_limit: Rows of a table; -1 for all.
        sort_by_key: Order of a table, one of `AVAILABLE_SORT_KEYS`. Default: the total time on the device.
        record_module_names: Whether the parts of the model are named in traces and tables.
        table_kwargs: Further arguments of `torch.autograd.profiler_util.EventList.table`.
        **profiler_kwargs: Arguments of `torch.profiler.profile`, such as `profile_memory=True`, `with_stack=True`, or
            `schedule`, which counts the steps of training, validation, test and prediction separately. Default:
            `torch.profiler.schedule(wait=1, warmup=1, active=3, repeat=1)`.

    Attributes:
        profiler: The `torch.profiler.profile` in use, None before the first step.
        function_events: The events of the last trace, None before there is one.

    Raises:
        MisconfigurationException: The sort key or the schedule does not fit.
        KeyError: `table_kwargs` has a key that a table does not take.
        TypeError: `torch.profiler.profile` does not take an argument.
    """

    STEP_FUNCTIONS: ClassVar[set[str]] = {"training_step", "validation_step", "test_step", "predict_step"}
    AVAILABLE_SORT_KEYS: ClassVar[set[str]] = _SORT_KEYS

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        group_by_input_shapes: bool = False,
        emit_nvtx: bool = False,
        export_to_chrome: bool = True,
        row_limit: int = 20,
        sort_by_key: str | None = None,
        record_module_names: bool = True,
        table_kwargs: dict[str, Any] | None = None,
        **profiler_kwargs: Any,
    ) -> None:
        super().__init__(dirpath, filename)
        self._group_by_input_shapes = group_by_input_shapes
        self._emit_nvtx = emit_nvtx
        self._export_to_chrome = export_to_chrome
        self._row_limit = row_limit
        self._sort_by_key = sort_by_key or f"{'cuda' if torch.cuda.is_available() else 'cpu'}_time_total"
        self._record_module_names = record_module_names
        self._table_kwargs = table_kwargs or {}
        self._profiler_kwargs = profiler_kwargs
        if group_by_input_shapes:
            profiler_kwargs.setdefault("record_shapes", True)
        self._check(self._sort_by_key, self._table_kwargs, profiler_kwargs)
        self.profiler: torch.profiler.profile | None = None
        self.function_events: EventList | None = None
        self._trainer: Callable[[], Trainer | None] = _no_trainer
        self._forget()

    def _forget(self) -> None:
        self._windows: dict[str, _Window] = {}
        self._tables: dict[str, str] = {}
        self._records: dict[str, record_function] = {}
        self._in_batch = False
        self._due: str | None = None
        self._done: set[str] = set()
        self._surroundings: ExitStack | None = None

    def _check(self, sort_by_key: str, table_kwargs: dict[str, Any], profiler_kwargs: dict[str, Any]) -> None:
        if sort_by_key not in self.AVAILABLE_SORT_KEYS:
            raise MisconfigurationException(
                f"`PyTorchProfiler(sort_by_key={sort_by_key!r})`: expected one of {sorted(self.AVAILABLE_SORT_KEYS)}."
            )
        known = set(inspect.signature(EventList.table).parameters) - {"self", "sort_by", "row_limit"}
        for key in table_kwargs:
            if key in ("sort_by", "row_limit"):
                own = {"sort_by": "sort_by_key"}.get(key, key)
                raise KeyError(f"`PyTorchProfiler(table_kwargs=...)` has {key!r}: give it as `{own}=...`.")
            if key not in known:
                raise KeyError(f"`PyTorchProfiler(table_kwargs=...)` has {key!r}; expected some of {sorted(known)}.")
        schedule = profiler_kwargs.get("schedule")
        if schedule is not None and not callable(schedule):
            raise MisconfigurationException(
                f"`PyTorchProfiler(schedule={schedule!r})`: expected a function of the step's number, e.g."
                " `torch.profiler.schedule(wait=1, warmup=1, active=3)`."
            )
        if schedule is not None and not isinstance(action := schedule(0), ProfilerAction):
            raise MisconfigurationException(
                f"`PyTorchProfiler(schedule=...)`: the schedule returned {action!r} for step 0, expected a"
                " `torch.profiler.ProfilerAction`."
            )
        inspect.signature(torch.profiler.profile).bind(**profiler_kwargs)

    # ---------------------------------------------------------------------------------------------- a run

    def attach(self, trainer: Trainer) -> None:
        """Remembers the Trainer, which knows the model and the number of batches."""
        self._trainer = weakref.ref(trainer)

    def start(self, action_name: str) -> None:
        """An action begins: from the first step on it has a name in the trace."""
        if action_name == "run_training_batch":
            self._in_batch = True
            self._close_other("training_step")
        if self._is_step(action_name) and not self._sanity_checking():
            self._begin_step(action_name)
        if self._surroundings is not None:
            record = self._records[action_name] = record_function(action_name)
            record.__enter__()  # type: ignore[no-untyped-call]

    def stop(self, action_name: str) -> None:
        """An action has ended; with a step, or the batch it is part of, the schedule goes on."""
        record = self._records.pop(action_name, None)
        if record is not None:
            record.__exit__(None, None, None)
        if self._is_step(action_name):
            self._due = action_name
        if action_name == "run_training_batch":
            self._in_batch = False
        if self._due is not None and not self._in_batch:
            step, self._due = self._due, None
            self._advance(step)

    def summary(self) -> str:
        """A table of operators for each kind of step that was recorded."""
        if not self._tables:
            return ""
        parts = [f"Profile stats for: {action_name}\n{table}" for action_name, table in self._tables.items()]
        return "\n".join([self._title(), *parts])

    def describe(self) -> None:
        """Ends the recording, so that a trace that was begun is written, and reports."""
        self._close_all()
        super().describe()

    def teardown(self, stage: str | None) -> None:
        """Ends the recording; a trace that was begun is written."""
        self._close_all()
        self._forget()
        self.profiler = None

    def __getstate__(self) -> dict[str, Any]:
        kept = super().__getstate__()
        for name in ("profiler", "function_events", "_surroundings"):
            kept[name] = None
        return kept | {"_trainer": _no_trainer, "_windows": {}, "_records": {}}

    # ---------------------------------------------------------------------------------------------- recording

    def _sanity_checking(self) -> bool:
        trainer = self._trainer()
        return trainer is not None and trainer.sanity_checking

    def _is_step(self, action_name: str) -> bool:
        return action_name.rpartition(".")[2] in self.STEP_FUNCTIONS

    def _begin_step(self, action_name: str) -> None:
        """The first call of a kind of step begins its schedule; what another kind was recording ends here."""
        if self._surroundings is None:
            self._surroundings = self._surround()
        if self._emit_nvtx:
            return
        self._close_other(action_name.rpartition(".")[2])
        if action_name not in self._windows and action_name not in self._done:
            window = self._windows[action_name] = _Window(self._make_profile(action_name))
            self.profiler = window.profile
            window.profile.start()

    def _surround(self) -> ExitStack:
        """What lasts from the first step to the end of the run."""
        stack, trainer = ExitStack(), self._trainer()
        if self._record_module_names and trainer is not None:
            stack.enter_context(RegisterRecordFunction(trainer.lightning_module))
        if self._emit_nvtx:
            stack.enter_context(torch.cuda.profiler.profile())
            stack.enter_context(torch.autograd.profiler.emit_nvtx())  # type: ignore[no-untyped-call]
        return stack

    def _make_profile(self, action_name: str) -> torch.profiler.profile:
        arguments = {"schedule": self._schedule(action_name), **self._profiler_kwargs}
        user = arguments.get("on_trace_ready")
        return torch.profiler.profile(**{**arguments, "on_trace_ready": partial(self._take, action_name, user)})

    def _schedule(self, action_name: str) -> Callable[[int], ProfilerAction] | None:
        """The default schedule; None, which records everything, if there are too few steps for it."""
        trainer, step = self._trainer(), action_name.rpartition(".")[2]
        count = float("inf") if trainer is None else count_steps(trainer, step)
        if count >= _CYCLE or "schedule" in self._profiler_kwargs:
            return torch.profiler.schedule(wait=_WAIT, warmup=_WARMUP, active=_ACTIVE, repeat=1)
        rank_zero_warn(
            f"`PyTorchProfiler` waits for {_WAIT + _WARMUP} steps and then records {_ACTIVE}, but `{step}` is called"
            f" {count} times in a row only: these are recorded. Give a `schedule` to have it otherwise."
        )
        return None

    def _advance(self, action_name: str) -> None:
        """A step has ended, and its schedule goes on."""
        window = self._windows.get(action_name)
        if window is None:
            return
        action = window.profile.current_action
        window.recorded += action in (ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE)
        if action is ProfilerAction.RECORD_AND_SAVE:
            self._end_records()
        try:
            window.step()
        except BaseException:
            del self._windows[action_name]  # torch crashes when a recorder is stopped after it failed
            raise
        if action_name in self._done:
            self._close(action_name)

    def _take(self, action_name: str, user: Callable[..., None] | None, profile: torch.profiler.profile) -> None:
        """A recording has ended."""
        window = self._windows[action_name]
        if not window.recorded:
            return
        window.recorded = 0
        if "schedule" not in self._profiler_kwargs:
            self._done.add(action_name)
        self.function_events = profile.events()  # type: ignore[no-untyped-call]
        averages = profile.key_averages(group_by_input_shape=self._group_by_input_shapes)
        self._tables[action_name] = averages.table(
            sort_by=self._sort_by_key, row_limit=self._row_limit, **self._table_kwargs
        )
        if user is not None:
            user(profile)
        elif self._export_to_chrome:
            path = self._path(f".{time.time_ns()}.pt.trace.json", action_name)
            profile.export_chrome_trace(str(local(path)))

    def _close(self, action_name: str) -> None:
        """Ends a schedule; what was recorded so far is taken. The next call begins it anew unless it is done."""
        self._end_records()
        self._windows[action_name].profile.stop()
        del self._windows[action_name]

    def _close_other(self, step: str) -> None:
        """Ends what is being recorded of other kinds of steps than this one."""
        for action_name, window in list(self._windows.items()):
            if window.recording and action_name.rpartition(".")[2] != step:
                self._close(action_name)

    def _end_records(self) -> None:
        """Ends the names in the trace before the recording ends.

        torch writes the end of a name to where it noted its beginning, and that memory is gone with the recording.
        """
        while self._records:
            self._records.popitem()[1].__exit__(None, None, None)

    def _close_all(self) -> None:
        for action_name in list(self._windows):
            self._close(action_name)
        if self._surroundings is not None:
            self._surroundings.close()
            self._surroundings = None


class _Window:
    """The recording of one kind of step.

    Attributes:
        profile: Records it, when its schedule says so.
        recorded: Steps recorded since the last trace.
    """

    def __init__(self, profile: torch.profiler.profile) -> None:
        self.profile = profile
        self.recorded = 0

    @property
    def recording(self) -> bool:
        """Whether PyTorch's recorder, of which there is one, is in use by it."""
        return self.profile.current_action is not ProfilerAction.NONE

    def step(self) -> None:
        """Goes on with the schedule."""
        with warnings.catch_warnings():
            # the events are taken at the end of each cycle, before torch forgets them
            warnings.filterwarnings("ignore", message=".*Profiler clears events", category=UserWarning)
            self.profile.step()


class ScheduleWrapper:
    """A schedule for one `torch.profiler.profile` over steps of several kinds: it counts each kind for itself.

    Kinds are training, validation, test and prediction. The first cycle of a kind that is recorded to its end is its
    last. (`PyTorchProfiler` has no need of it: there, each kind has a recording of its own.)

    Args:
        schedule: What to do in a step of this number, as `torch.profiler.schedule` makes it.

    Example::

        schedule = ScheduleWrapper(torch.profiler.schedule(wait=1, warmup=1, active=3))
        with torch.profiler.profile(schedule=schedule) as profile:
            for batch in batches:
                module.training_step(batch)
                schedule.pre_step("training_step")
                profile.step()
    """

    def __init__(self, schedule: Callable[[int], ProfilerAction]) -> None:
        self._schedule = schedule
        self.reset()

    def reset(self) -> None:
        """Forgets all counts, and which kind it is."""
        self._kind = ""
        self._steps: dict[str, int] = {}
        self._finished: set[str] = set()

    def setup(self, start_action_name: str) -> None:
        """Says of which kind the first steps are.

        Args:
            start_action_name: Name of an action that ends in one of `PyTorchProfiler.STEP_FUNCTIONS`.
        """
        self.pre_step(start_action_name)

    def pre_step(self, current_action: str) -> None:
        """Says of which kind the step is that has just been made; to be called before `profile.step()`."""
        self._kind = current_action.rpartition(".")[2]

    @property
    def num_step(self) -> int:
        """Steps of the current kind so far."""
        return self._steps.get(self._kind, 0)

    @property
    def has_finished(self) -> bool:
        """Whether the current kind has been recorded."""
        return self._kind in self._finished

    @property
    def is_training(self) -> bool:
        """Whether steps are those of training."""
        return self._kind == "training_step"

    @property
    def is_validating(self) -> bool:
        """Whether steps are those of validation."""
        return self._kind == "validation_step"

    @property
    def is_testing(self) -> bool:
        """Whether steps are those of a test."""
        return self._kind == "test_step"

    @property
    def is_predicting(self) -> bool:
        """Whether steps are those of a prediction."""
        return self._kind == "predict_step"

    def __call__(self, num_step: int) -> ProfilerAction:
        """What to do in the next step; the number that PyTorch counts over all kinds is not used."""
        if not self._kind:
            return self._schedule(0)  # asked when the profile is made, before any step
        if self.has_finished:
            return ProfilerAction.NONE
        self._steps[self._kind] = self.num_step + 1
        action = self._schedule(self.num_step)
        if action is ProfilerAction.RECORD_AND_SAVE:
            self._finished.add(self._kind)
        return action


class RegisterRecordFunction:
    """Context in which each call of a part of a model has a name in the trace: "[module]<class>: <name>".

    Args:
        model: The model.

    Example::

        with RegisterRecordFunction(model), torch.profiler.profile() as profile:
            model(batch)
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> RegisterRecordFunction:
        for name, part in self._model.named_modules():
            if not name:
                continue
            title = f"[module]{type(part).__module__}.{type(part).__name__}: {name}"
            running: list[record_function] = []
            self._handles.append(part.register_forward_pre_hook(partial(_begin, title, running)))
            self._handles.append(part.register_forward_hook(partial(_end, running), always_call=True))
        return self

    def __exit__(
        self, type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _begin(title: str, running: list[record_function], *_: Any) -> None:
    record = record_function(title)
    record.__enter__()  # type: ignore[no-untyped-call]
    running.append(record)


def _end(running: list[record_function], *_: Any) -> None:
    if running:
        running.pop().__exit__(None, None, None)


def count_steps(trainer: Trainer, step: str) -> int | float:
    """How often a step will be called in a row, before another kind of step or the end of the run; inf if unknown."""
    if step == "validation_step":
        return sum(trainer.num_val_batches)
    if step != "training_step":
        return sum(trainer.num_test_batches if step == "test_step" else trainer.num_predict_batches)
    batches = trainer.num_training_batches
    if trainer.enable_validation:
        return min(batches, trainer.val_check_batch)
    epochs = float("inf") if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = float("inf") if trainer.max_steps == -1 else trainer.max_steps * trainer.accumulate_grad_batches
    return min(batches * epochs, steps)


def _no_trainer() -> None:
    return None
