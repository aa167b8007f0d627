"""CIFAR-10."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from deqcert.data.augmentation import CropAndFlip
from deqcert.data.base import ImageDataModule, Split
from deqcert.data.cifar10_files import CLASSES, SIZES, download_batches, find_reader
from deqcert.data.images import TensorImages
from deqcert.errors import SettingError


class CIFAR10(ImageDataModule):
    """CIFAR-10: 50 000 training and 10 000 test color images of 32 x 32, ten classes.

    Args:
        root: Folder with cifar-10-batches-py or {train,test}/<class>/<index>.jpg, or the packed .npz file.
        download: Whether to download CIFAR-10 into the folder root if it is not there.
        augment: Whether to crop (4 pixels of zero padding) and flip training images at random.
        **settings: Settings of every data module, see :class:`ImageDataModule`.
    """

    num_classes = len(CLASSES)
    image_size = 32
    channels = 3

    def __init__(self, root: str = "data", download: bool = False, augment: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = root
        self.download = download
        self.augment = augment
        self._crop_and_flip = CropAndFlip(self.seed, count=SIZES["train"])

    def prepare_data(self) -> None:
        """Download if asked, and check that there is something to read.

        Raises:
            DataError: There is nothing at ``root``.
            SettingError: ``download`` is asked for while ``root`` is a file.
        """
        root = Path(self.root)
        if self.download:
            if root.is_file():
                raise SettingError("download", True, f"must be false: root = {self.root!r} is a file")
            download_batches(root)
        find_reader(root)

    def load_split(self, split: Split) -> TensorImages:
        """Read one whole split, sorted by original index."""
        root = Path(self.root)
        return find_reader(root)(root, split)

    def augment_batch(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Crop and flip ``images`` (B, C, H, W) at random, unless that is switched off."""
        return self._crop_and_flip(images, indices, epoch) if self.augment else images
