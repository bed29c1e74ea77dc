"""Images of digits.

Nothing is downloaded: the images are the 1,797 scans of 8 x 8 pixels that come with scikit-learn, enlarged to the
28 x 28 of MNIST. Where MNIST itself lies in the folder, in the files of ``torchvision.datasets.MNIST``, that is read,
if torchvision is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, random_split

from fulmen.datamodule import LightningDataModule
from fulmen.extras import available, need

__all__ = ["MNIST", "Digits", "MNISTDataModule"]

_NUM_TEST = 297
_MEAN, _STD = 0.1307, 0.3081


class Digits(Dataset[tuple[Any, int]]):
    """Scans of handwritten digits in the size of MNIST: images of (1, 28, 28) from 0 to 1, with the digit.

    Args:
        train: The first 1,500; False: the other 297.
        transform: Called on each image.
    """

    def __init__(self, train: bool = True, transform: Callable[[Tensor], Any] | None = None) -> None:
        scans: Any = need("sklearn.datasets").load_digits()
        place = slice(None, -_NUM_TEST) if train else slice(-_NUM_TEST, None)
        images = torch.from_numpy(scans.images[place]).float().div(16).unsqueeze(1)
        self.data = F.interpolate(images, size=(28, 28), mode="bilinear", align_corners=False)
        self.targets: list[int] = scans.target[place].tolist()
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.data[index]
        return image if self.transform is None else self.transform(image), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


def MNIST(*args: Any, **kwargs: Any) -> Dataset[Any]:  # noqa: N802
    """The dataset of digits: MNIST if it is in the folder, else the scans that come with scikit-learn.

    Args:
        *args: Arguments of ``torchvision.datasets.MNIST``; the first is the folder.
        **kwargs: The same by name: ``root``, ``train``, ``transform``.
    """
    root = Path(args[0] if args else kwargs["root"])
    if available("torchvision") and (root / "MNIST" / "raw").is_dir():
        dataset: Dataset[Any] = need("torchvision.datasets").MNIST(*args, **{**kwargs, "download": False})
        return dataset
    return Digits(kwargs.get("train", True), kwargs.get("transform"))


class MNISTDataModule(LightningDataModule):
    """Images of digits in batches.

    Args:
        data_dir: Folder in which MNIST may lie.
        val_split: Images for validation, taken from those for training; at most half of these.
        num_workers: Worker processes of each loader.
        normalize: Whether images are shifted and scaled to mean 0 and deviation 1, as MNIST's are.
        seed: For the choice of the images for validation.
        batch_size: Images in a batch.
    """

    name = "mnist"

    def __init__(
        self,
        data_dir: str = "./data",
        val_split: int = 5000,
        num_workers: int = 16,
        normalize: bool = False,
        seed: int = 42,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.data_dir = data_dir
        self.val_split = val_split
        self.num_workers = num_workers
        self.normalize = normalize
        self.seed = seed
        self.batch_size = batch_size

    @property
    def num_classes(self) -> int:
        """10."""
        return 10

    def prepare_data(self) -> None:
        """Reads the images, so that it shows at once if they cannot be read."""
        self._dataset(train=True)

    def setup(self, stage: str) -> None:
        """Splits the images."""
        dataset: Any = self._dataset(train=True)
        num_val = min(self.val_split, len(dataset) // 2)
        generator = torch.Generator().manual_seed(self.seed)
        self.dataset_train, self.dataset_val = random_split(dataset, [len(dataset) - num_val, num_val], generator)
        self.dataset_test = self._dataset(train=False)

    def train_dataloader(self) -> DataLoader[Any]:
        """The images for training, shuffled."""
        return self._loader(self.dataset_train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The images for validation."""
        return self._loader(self.dataset_val)

    def test_dataloader(self) -> DataLoader[Any]:
        """The images for the test."""
        return self._loader(self.dataset_test)

    @property
    def default_transforms(self) -> Callable[[Any], Any]:
        """From what the dataset has to a tensor of (1, 28, 28)."""
        return self._to_tensor

    def _to_tensor(self, image: Any) -> Tensor:
        if not isinstance(image, Tensor):
            image = need("torchvision.transforms.functional").to_tensor(image)
        tensor: Tensor = (image - _MEAN) / _STD if self.normalize else image
        return tensor

    def _dataset(self, train: bool) -> Dataset[Any]:
        return MNIST(self.data_dir, train=train, transform=self.default_transforms)

    def _loader(self, dataset: Dataset[Any], shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            drop_last=True,
            pin_memory=True,
        )
