"""LightningDataModule: the data of an experiment, apart from the model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from torch.utils.data import DataLoader, Dataset, IterableDataset

from fulmen.datahooks import DataHooks
from fulmen.errors import MisconfigurationException
from fulmen.hparams import HyperparametersMixin, load_datamodule, restricted_classmethod

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

__all__ = ["LightningDataModule"]

_STAGES = {"Train": "train", "Validation": "val", "Test": "test", "Predict": "predict"}


class LightningDataModule(DataHooks, HyperparametersMixin):
    """Downloads, splits and loads data, so that they can be shared and swapped.

    Override `prepare_data`, `setup` and the loaders you need. The Trainer calls them in this order, `setup` and
    `teardown` in every run and on every process.

    Example:
        >>> class Squares(LightningDataModule):
        ...     def __init__(self, batch_size=32):
        ...         super().__init__()
        ...         self.save_hyperparameters()
        ...     def setup(self, stage):
        ...         self.data = [(x, x * x) for x in range(1000)]
        ...     def train_dataloader(self):
        ...         return DataLoader(self.data, batch_size=self.hparams.batch_size, shuffle=True)
    """

    name: str | None = None
    CHECKPOINT_HYPER_PARAMS_KEY = "datamodule_hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "datamodule_hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "datamodule_hparams_type"

    trainer: Trainer | None = None
    """The trainer that uses it, from the moment it is given to one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def on_exception(self, exception: BaseException) -> None:
        """Called when a run ends with an exception."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint shall hold of it; nothing is written if it is empty."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state that `state_dict` gave."""

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Any | None = None,
        val_dataset: Any | None = None,
        test_dataset: Any | None = None,
        predict_dataset: Any | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> Self:
        """Makes a datamodule whose loaders read datasets, with pinned memory; the training data are shuffled.

        Args:
            train_dataset: A dataset, or a nesting of lists, tuples and dicts of them. Iterable ones keep their order.
            val_dataset: As above, never shuffled.
            test_dataset: As above, never shuffled.
            predict_dataset: As above, never shuffled.
            batch_size: Samples in a batch; also passed to the class if it has such an argument.
            num_workers: Worker processes of each loader; also passed to the class if it has such an argument.
            **datamodule_kwargs: Further arguments of the class.

        Returns:
            The datamodule, with a `*_dataloader` for each dataset that was given.
        """
        sizes = {"batch_size": batch_size, "num_workers": num_workers}
        datamodule = cls(**{name: value for name, value in sizes.items() if _takes(cls, name)}, **datamodule_kwargs)
        datasets = {"train": train_dataset, "val": val_dataset, "test": test_dataset, "predict": predict_dataset}
        for stage, dataset in datasets.items():
            if dataset is not None:
                loaders = functools.partial(_loaders_for, dataset, shuffle=stage == "train", **sizes)
                setattr(datamodule, f"{stage}_dataloader", loaders)
        return datamodule

    @restricted_classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Builds the datamodule from a checkpoint: its saved hyperparameters, then its state if there is one.

        Args:
            checkpoint_path: Path, URL or open binary file.
            map_location: Where tensors go, as for `torch.load`.
            hparams_file: A .yaml, .yml or .csv file whose values replace the saved hyperparameters.
            weights_only: As for `torch.load`; False unpickles anything, so only for files you trust.
            **kwargs: Arguments of the class, over the saved ones.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: It cannot be read.
        """
        return load_datamodule(cls, checkpoint_path, map_location, hparams_file, weights_only, **kwargs)  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the trainer, which does not belong into a file or another process."""
        return {name: value for name, value in self.__dict__.items() if name != "trainer"}

    def __str__(self) -> str:
        """Four lines: the loaders of each stage and the sizes of their datasets."""
        return "\n".join(f"{{{title} dataloader: {self._sizes_of(stage)}}}" for title, stage in _STAGES.items())

    def _sizes_of(self, stage: str) -> str:
        try:
            loaders = getattr(self, f"{stage}_dataloader")()
        except (MisconfigurationException, AttributeError):  # not there, or `setup` has not been called
            return "None"
        if loaders is None:
            return "None"
        sizes = _sizes(loaders)
        if len(sizes) == 1:
            return f"size={sizes[0]}"
        return " ; ".join(f"{place}. size={size}" for place, size in enumerate(sizes, 1))


def _takes(cls: type[LightningDataModule], name: str) -> bool:
    """Whether the class has an argument of that name, or takes any."""
    if cls.__init__ is LightningDataModule.__init__:
        return False
    parameters = inspect.signature(cls.__init__).parameters
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def _loaders_for(dataset: Any, *, shuffle: bool, batch_size: int, num_workers: int) -> Any:
    """One loader for each dataset, in the same nesting."""
    again: Callable[[Any], Any] = functools.partial(
        _loaders_for, shuffle=shuffle, batch_size=batch_size, num_workers=num_workers
    )
    if isinstance(dataset, Mapping):
        return {name: again(each) for name, each in dataset.items()}
    if isinstance(dataset, (list, tuple)) and not isinstance(dataset, Dataset):
        return [again(each) for each in dataset]
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle and not isinstance(dataset, IterableDataset),
        num_workers=num_workers,
        pin_memory=True,
    )


def _sizes(loaders: Any) -> list[str]:
    """The number of samples behind each loader, depth first."""
    if isinstance(loaders, Mapping):
        return [size for each in loaders.values() for size in _sizes(each)]
    if isinstance(loaders, Sequence) and not hasattr(loaders, "dataset"):
        return [size for each in loaders for size in _sizes(each)]
    try:
        return [str(len(getattr(loaders, "dataset", loaders)))]
    except (TypeError, NotImplementedError):
        return ["NA"]
