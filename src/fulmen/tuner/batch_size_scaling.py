"""The search for the largest batch size that fits into memory."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any

from fulmen.callback import Callback
from fulmen.data.combined import flatten
from fulmen.data.loaders import length_of, samples_in
from fulmen.errors import MisconfigurationException
from fulmen.ranks import rank_zero_info, rank_zero_warn
from fulmen.states import TrainerFn
from fulmen.tuner.probe import Bench, Probe, Task, on_the_bench
from fulmen.utilities.memory import is_oom_error
from fulmen.utilities.parsing import get_value, holders_of, set_value

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["MODES", "check_search", "check_task", "find_batch_size"]

MODES = ("power", "binsearch")


class _Counter(Callback):
    """Counts the steps that went through: in fit those of the optimizer, else batches; ends a fit when they suffice.

    Args:
        steps: So many suffice.

    Attributes:
        count: Steps so far.
        samples: Samples in the first batch, None if that cannot be seen.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.count = 0
        self.samples: int | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A training batch went through."""
        if batch is None:
            return
        self._look_at(batch)
        self.count += trainer.fit_loop.closes
        if self.count >= self.steps:
            trainer.should_stop = True

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A validation batch went through; inside fit these are run, but not counted."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._look_at(batch)
            self.count += 1

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Several loaders are refused: one size would not be the right one for all."""
        if trainer.state.fn != TrainerFn.FITTING and trainer._evaluation_loop().several:
            raise MisconfigurationException(
                f"The batch-size finder works with one dataloader in `{trainer.state.fn}`; there are"
                f" {len(trainer._evaluation_loop().feeds)}. Run it with each of them alone."
            )

    on_test_start = on_predict_start = on_validation_start

    def _look_at(self, batch: Any) -> None:
        if not self.count:
            self.samples = samples_in(batch)


class _Sizes:
    """Batch sizes put to the test, each once.

    Args:
        bench: Where they are tested.
        holders: Objects with the attribute that is the batch size.
        name: That attribute.
        steps: Steps to run with each.

    Attributes:
        available: Samples that there are; a larger batch would only hold the same. Infinity if not known.
        reason: Why the last size did not fit.
    """

    def __init__(self, bench: Bench, holders: list[Any], name: str, steps: int) -> None:
        self.bench, self.holders, self.name, self.steps = bench, holders, name, steps
        self.available: int | float = inf
        self.reason = ""
        self._known: dict[int, bool] = {}
        self._seen: dict[int, int | None] = {}

    def fits(self, size: int) -> bool:
        """Whether ``steps`` steps with this size run through."""
        if size not in self._known:
            self._known[size] = self._try(size)
            rank_zero_info(f"Batch size {size} {'fits' if self._known[size] else f'does not fit: {self.reason}'}.")
        return self._known[size]

    def _try(self, size: int) -> bool:
        counter = _Counter(self.steps)
        filled = None
        try:
            self._run(size, counter)
        except Exception as error:
            if not is_oom_error(error):
                raise
            filled = str(error)  # only its text is kept: its frames hold what filled the memory
        self.bench.free(scarce=filled is not None)
        if filled is not None:
            self.reason = filled.partition("\n")[0].rstrip(".")
            return False
        if counter.count < self.steps:
            self.reason = "no batch is run (an empty dataloader, `drop_last=True`, or a limit of 0 batches)"
            return False
        self._warn_without_effect(size, counter.samples)
        return True

    def _run(self, size: int, counter: _Counter) -> None:
        task = self.bench.task
        with self.bench.probe(counter, **self._limits(task)) as probe:
            for holder in self.holders:
                set_value(holder, self.name, size)
            before = -1
            while before < counter.count < self.steps:  # an evaluation of few batches is run again
                before = counter.count
                probe.run()
            self.available = _num_samples(probe)

    def _limits(self, task: Task) -> dict[str, Any]:
        """As many batches as are needed, in as many epochs as that takes; what the user limits to nothing stays so."""
        limits: dict[str, Any] = {"max_epochs": self.steps}
        limits["max_steps"] = self.steps if task.module.automatic_optimization else -1
        for stage in ("val", "test", "predict"):
            name = f"limit_{stage}_batches"
            limits[name] = self.steps if getattr(task.trainer, name) else 0
        limits["limit_train_batches"] = 1.0 if task.trainer.limit_train_batches else 0
        return limits

    def _warn_without_effect(self, size: int, samples: int | None) -> None:
        same = [other for other, seen in self._seen.items() if seen == samples and other != size]
        if same and samples is not None and max(size, *same) <= self.available:
            rank_zero_warn(
                f"With `{self.name}={same[0]}` as with {size} the first batch has {samples} samples: the dataloader"
                f" does not seem to use it. Write `DataLoader(..., batch_size=self.{self.name})`."
            )
        self._seen[size] = samples


def _num_samples(probe: Probe) -> int | float:
    """Samples of the longest loader of a probe."""
    if probe.state.fn == TrainerFn.FITTING:
        feeds = [probe.fit_loop.feed]
    else:
        feeds = list(probe._evaluation_loop().feeds or ())
    loaders = [leaf for feed in feeds if feed is not None for leaf in flatten(feed.loaders)]
    return max(map(_samples_behind, loaders), default=inf)


def _samples_behind(loader: Any) -> int | float:
    is_batched = getattr(loader, "batch_sampler", None) is not None
    return length_of(loader.sampler) if is_batched else inf


def _bracket(sizes: _Sizes, size: int, max_trials: int, max_val: int) -> tuple[int, int | None]:
    """Doubles what fits, halves what does not.

    Returns:
        The largest size that fitted, and the smallest that did not, None if none was found.

    Raises:
        MisconfigurationException: None fitted.
    """
    best, failed = None, None
    for _ in range(max_trials):
        if sizes.fits(size):
            best = size
            if failed is not None or size >= min(sizes.available, max_val):
                break
            size = min(2 * size, max_val)
        else:
            failed = size
            if best is not None or size == 1:
                break
            size //= 2
    if best is None:
        raise MisconfigurationException(
            f"No batch size fits. The last one tried was {failed}: {sizes.reason}. Start with a smaller one"
            " (`init_val`), or let more be tried (`max_trials`)."
        )
    return best, failed


def _bisect(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest size that fits, between one that does and one that does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _with_margin(sizes: _Sizes, size: int, margin: float) -> int:
    """A size smaller by the margin, which has been run, too."""
    smaller = max(1, int(size * (1 - margin)))
    while not sizes.fits(smaller):
        if smaller == 1:
            raise MisconfigurationException(
                f"Batch size {size} fitted once, and after that not even 1: {sizes.reason}."
            )
        smaller = max(1, int(smaller * (1 - margin)))
    if smaller < size:
        rank_zero_info(f"Batch size {size} fits; {smaller} leaves a margin of {margin:.0%}.")
    return smaller


def find_batch_size(
    task: Task,
    mode: str = "power",
    steps_per_trial: int = 3,
    init_val: int = 2,
    max_trials: int = 25,
    batch_arg_name: str = "batch_size",
    margin: float = 0.05,
    max_val: int = 8192,
) -> int | None:
    """Runs the search; the arguments are those of ``Tuner.scale_batch_size``.

    Args:
        task: What is to be run with the size.
        mode: See there.
        steps_per_trial: See there.
        init_val: See there.
        max_trials: See there.
        batch_arg_name: See there.
        margin: See there.
        max_val: See there.

    Returns:
        The size, which the attribute has now; None in a fast_dev_run.
    """
    check_search(mode, steps_per_trial, init_val, max_trials, margin, max_val)
    if task.trainer.fast_dev_run:
        rank_zero_warn("The batch-size finder does nothing in a `fast_dev_run`.")
        return None
    holders = check_task(task, batch_arg_name)
    before = [get_value(holder, batch_arg_name) for holder in holders]
    found = None
    try:
        with on_the_bench(task) as bench:
            sizes = _Sizes(bench, holders, batch_arg_name, steps_per_trial)
            low, high = _bracket(sizes, init_val, max_trials, max_val)
            if mode == "binsearch":
                low = low if high is None else _bisect(sizes.fits, low, high)
                low = _with_margin(sizes, low, margin)
            found = low
    finally:
        for holder, value in zip(holders, before, strict=True):
            set_value(holder, batch_arg_name, value if found is None else found)
    rank_zero_info(f"Batch size set to {found}.")
    return found


def check_search(mode: str, steps_per_trial: int, init_val: int, max_trials: int, margin: float, max_val: int) -> None:
    """Refuses settings of a search that cannot work.

    Raises:
        ValueError: An unknown mode.
        AssertionError: A margin outside of [0, 1).
        MisconfigurationException: Nothing would be run.
    """
    if mode not in MODES:
        raise ValueError(f"`mode={mode!r}` is not known. Type one of: {', '.join(map(repr, MODES))}")
    if not 0 <= margin < 1:
        raise AssertionError(f"`margin={margin}` is not possible: it is a fraction from 0 to below 1, such as 0.05.")
    for name, value in {"steps_per_trial": steps_per_trial, "init_val": init_val, "max_trials": max_trials}.items():
        if value < 1:
            raise MisconfigurationException(f"`{name}={value}` would run nothing; expected at least 1.")
    if init_val > max_val:
        raise MisconfigurationException(
            f"The search would start at `init_val={init_val}`, above `max_val={max_val}`. Lower one or raise the other."
        )


def check_task(task: Task, batch_arg_name: str) -> list[Any]:
    """The objects that hold the batch size.

    Raises:
        MisconfigurationException: The batch size cannot be changed through an attribute, or there is none.
    """
    if task.loaders:
        raise MisconfigurationException(
            f"The batch-size finder cannot change the batch size of dataloaders passed to `{task.fn.value}`. Make them"
            f" in the module or a datamodule, e.g. `DataLoader(..., batch_size=self.{batch_arg_name})`."
        )
    holders = holders_of(batch_arg_name, task.module, task.datamodule)
    if not holders:
        raise MisconfigurationException(
            f"The batch-size finder found no {batch_arg_name!r} in `{type(task.module).__name__}`, its datamodule, or"
            f" their hyperparameters. Set it (`self.{batch_arg_name} = 2`) and use it in the dataloader, or name"
            " another attribute (`batch_arg_name`).",
            subject=task.module,
        )
    if any(holder is task.module for holder in holders) and any(holder is task.module.hparams for holder in holders):
        rank_zero_warn(
            f"`{batch_arg_name}` is an attribute of `{type(task.module).__name__}` and one of its hyperparameters. Both"
            " are set; use one of them, so that they cannot differ."
        )
    return holders
