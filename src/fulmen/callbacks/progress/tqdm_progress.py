"""A progress bar drawn by tqdm."""

from __future__ import annotations

import math
import os
import sys
from typing import TYPE_CHECKING, Any

from fulmen.callbacks.progress.drawn import DrawnBar
from fulmen.extras import need

if TYPE_CHECKING:
    from fulmen.callbacks.progress.tqdm_bar import Tqdm
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["TQDMProgressBar", "convert_inf"]


class TQDMProgressBar(DrawnBar):
    """Shows training, validation, test and prediction with tqdm, on standard output.

    Override the `init_*_tqdm` methods to change the bars, `get_metrics` to change what stands behind them.

    Args:
        refresh_rate: The bar is drawn after multiples of this number of batches, and at the end. 0 switches it off. The
            variable TQDM_MINITERS raises it; on Colab, where drawing is slow, 1 becomes 20.
        process_position: Lines to leave free above the bars, in pairs, for other processes in the same terminal.
        leave: Whether the bar of each epoch stays on the screen.

    Raises:
        ModuleNotFoundError: `tqdm` is not installed.
        MisconfigurationException: If `refresh_rate` is negative.

    Example::

        class Green(TQDMProgressBar):
            def init_train_tqdm(self):
                bar = super().init_train_tqdm()
                bar.colour = "green"
                return bar
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"

    def __init__(self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False) -> None:
        need("tqdm")
        super().__init__(_effective(refresh_rate), leave)
        self._process_position = process_position
        self._shown_epoch: int | None = None
        self._train_progress_bar: Tqdm | None = None
        self._val_progress_bar: Tqdm | None = None
        self._test_progress_bar: Tqdm | None = None
        self._predict_progress_bar: Tqdm | None = None
        self._evaluation = "_val_progress_bar"

    listens = DrawnBar.listens  # what a class says about its hooks binds none of its subclasses

    @property
    def process_position(self) -> int:
        """Pairs of lines left free above the bars."""
        return self._process_position

    # ---------------------------------------------------------------------------------------------- bars

    @property
    def train_progress_bar(self) -> Tqdm:
        """The training bar.

        Raises:
            TypeError: There is none yet.
        """
        return _there(self._train_progress_bar, "train_progress_bar")

    @train_progress_bar.setter
    def train_progress_bar(self, bar: Tqdm) -> None:
        self._train_progress_bar = bar

    @property
    def val_progress_bar(self) -> Tqdm:
        """The bar of validation, or of the sanity check.

        Raises:
            TypeError: There is none yet.
        """
        return _there(self._val_progress_bar, "val_progress_bar")

    @val_progress_bar.setter
    def val_progress_bar(self, bar: Tqdm) -> None:
        self._val_progress_bar = bar

    @property
    def test_progress_bar(self) -> Tqdm:
        """The test bar.

        Raises:
            TypeError: There is none yet.
        """
        return _there(self._test_progress_bar, "test_progress_bar")

    @test_progress_bar.setter
    def test_progress_bar(self, bar: Tqdm) -> None:
        self._test_progress_bar = bar

    @property
    def predict_progress_bar(self) -> Tqdm:
        """The prediction bar.

        Raises:
            TypeError: There is none yet.
        """
        return _there(self._predict_progress_bar, "predict_progress_bar")

    @predict_progress_bar.setter
    def predict_progress_bar(self, bar: Tqdm) -> None:
        self._predict_progress_bar = bar

    def init_sanity_tqdm(self) -> Tqdm:
        """Makes the bar of the sanity check."""
        return self._make(self.sanity_check_description, leave=False)

    def init_train_tqdm(self) -> Tqdm:
        """Makes the training bar."""
        return self._make(self.train_description, leave=True, smoothing=0)

    def init_validation_tqdm(self) -> Tqdm:
        """Makes the validation bar: below the training bar, and gone at the end, if there is one."""
        inside = self._trainer is not None and self._trainer.state.fn == "fit"
        return self._make(self.validation_description, leave=not inside, below=int(inside))

    def init_test_tqdm(self) -> Tqdm:
        """Makes the test bar."""
        return self._make(self.test_description, leave=True)

    def init_predict_tqdm(self) -> Tqdm:
        """Makes the prediction bar."""
        return self._make(self.predict_description, leave=True, smoothing=0)

    def _make(self, title: str, leave: bool, below: int = 0, **options: Any) -> Tqdm:
        from fulmen.callbacks.progress.tqdm_bar import Tqdm

        position = 2 * self._process_position + below
        return Tqdm(
            desc=title,
            position=position,
            disable=self.is_disabled,
            leave=leave,
            dynamic_ncols=True,
            file=sys.stdout,
            bar_format=self.BAR_FORMAT,
            **options,
        )

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bars.

        Args:
            *args: What to print.
            sep: What stands between them.
            **kwargs: Arguments of `tqdm.write`: `file` and `end`.
        """
        from fulmen.callbacks.progress.tqdm_bar import Tqdm

        Tqdm.write(sep.join(map(str, args)), **kwargs)

    # ---------------------------------------------------------------------------------------------- training

    def on_train_start(self, *_: Any) -> None:
        """Training begins."""
        self._train_progress_bar = self.init_train_tqdm()
        self._shown_epoch = None

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """A new epoch begins."""
        if self.is_disabled:
            return
        if self._leave and self._shown_epoch is not None:
            self._close("_train_progress_bar")
            self._train_progress_bar = self.init_train_tqdm()
        self._begin_epoch(trainer)

    def _begin_epoch(self, trainer: Trainer) -> None:
        if self._train_progress_bar is None:
            self._train_progress_bar = self.init_train_tqdm()
        bar, self._shown_epoch = self._train_progress_bar, trainer.current_epoch
        _restart(bar, self.total_train_batches)
        # in an epoch that is resumed, its first batches are no part of the speed
        bar.n = bar.initial = max(trainer.fit_loop.batch_idx, 0)
        bar.set_description(f"Epoch {trainer.current_epoch}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch, and draws when it is due."""
        if self.is_disabled:
            return
        if self._train_progress_bar is None or self._shown_epoch != trainer.current_epoch:
            # An epoch that is resumed in its middle, or a bar that is enabled there, has no `on_train_epoch_start`.
            self._begin_epoch(trainer)
        bar, count = self.train_progress_bar, batch_idx + 1
        if self._due(count, bar):
            bar.n = count
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch has ended, and its metrics are known."""
        if self._train_progress_bar is not None:
            self._train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_train_end(self, *_: Any) -> None:
        """Training has ended."""
        self._close("_train_progress_bar")

    # ---------------------------------------------------------------------------------------------- evaluation

    def on_sanity_check_start(self, *_: Any) -> None:
        """The sanity check begins."""
        self._val_progress_bar = self.init_sanity_tqdm()

    def on_sanity_check_end(self, *_: Any) -> None:
        """The bar of the sanity check is gone."""
        self._close("_val_progress_bar")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation, or the sanity check, begins."""
        if not trainer.sanity_checking:
            self._val_progress_bar = self.init_validation_tqdm()
        self._evaluation = "_val_progress_bar"
        super().on_validation_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation has ended, and its metrics are known."""
        if not trainer.sanity_checking:
            if self._train_progress_bar is not None and trainer.state.fn == "fit":
                self._train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))
            self._close("_val_progress_bar")
        self.reset_dataloader_idx_tracker()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Testing begins."""
        self._test_progress_bar = self.init_test_tqdm()
        self._evaluation = "_test_progress_bar"
        super().on_test_start(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Testing has ended."""
        self._close("_test_progress_bar")
        self.reset_dataloader_idx_tracker()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prediction begins."""
        self._predict_progress_bar = self.init_predict_tqdm()
        self._evaluation = "_predict_progress_bar"
        super().on_predict_start(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prediction has ended."""
        self._close("_predict_progress_bar")
        self.reset_dataloader_idx_tracker()

    def __getstate__(self) -> dict[str, Any]:
        # Bars hold the terminal; the copy, in another process perhaps, opens its own.
        return self.__dict__ | dict.fromkeys(_BARS)

    # ---------------------------------------------------------------------------------------------- drawing

    def _due(self, count: int, bar: Tqdm) -> bool:
        return self.is_enabled and (count % self._refresh_rate == 0 or count == bar.total)

    def _begin_evaluation(self, trainer: Trainer, dataloader_idx: int) -> None:
        self._current_eval_dataloader_idx = dataloader_idx
        title, _, total = self._evaluated(trainer)
        bar = getattr(self, self._evaluation)
        if bar is not None:
            _restart(bar, total)
            bar.set_description(f"{title} DataLoader {dataloader_idx}")

    def _count(self, batch_idx: int) -> None:
        bar, count = getattr(self, self._evaluation), batch_idx + 1
        if bar is not None and self._due(count, bar):
            bar.n = count
            bar.refresh()

    def _close(self, name: str) -> None:
        bar = getattr(self, name)
        if bar is not None:
            bar.close()

    def _stop(self) -> None:
        for name in reversed(_BARS):
            self._close(name)
        if not self._enabled:
            self.__dict__.update(dict.fromkeys(_BARS))


_BARS = ("_train_progress_bar", "_val_progress_bar", "_test_progress_bar", "_predict_progress_bar")


def convert_inf(x: int | float | None) -> int | float | None:
    """A total as tqdm wants it: None if it is unknown (infinite, or not a number)."""
    return None if x is None or math.isinf(x) or math.isnan(x) else x


def _restart(bar: Tqdm, total: int | float) -> None:
    bar.reset()
    bar.total = convert_inf(total)  # reset(None) would keep the total that was
    bar.initial = 0


def _effective(rate: int) -> int:
    """The refresh rate in this environment."""
    if rate == 1 and "COLAB_JUPYTER_IP" in os.environ:
        rate = 20
    return max(rate, int(os.environ.get("TQDM_MINITERS", 1))) if rate > 0 else rate


def _there(bar: Tqdm | None, name: str) -> Tqdm:
    if bar is None:
        raise TypeError(f"`TQDMProgressBar.{name}` is not there yet: it is made when what it shows begins.")
    return bar


def __getattr__(name: str) -> Any:
    # A subclass of tqdm's, which is imported only when it draws.
    if name == "Tqdm":
        from fulmen.callbacks.progress.tqdm_bar import Tqdm

        return Tqdm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
