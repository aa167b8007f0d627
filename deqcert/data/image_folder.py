"""ImageNet, or any other data set of color images with one folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deqcert.data.base import ImageDataModule, Split
from deqcert.data.folder_images import FolderImages, class_folders
from deqcert.errors import DataError, require

_FOLDERS: dict[Split, str] = {"train": "train", "test": "val"}


class ImageFolder(ImageDataModule):
    """Images in ``root/train/<class>/*`` and ``root/val/<class>/*``; the test split is ``val``.

    Classes are numbered in the sorted order of their folders, images in the sorted order of their files.
    Both splits must have the same class folders, or a label of one would be another class in the other; where only one
    of them is there, it cannot be compared. Training images are cropped, resized and flipped at random.

    Args:
        root: Folder that holds train and val.
        image_size: Side of the images the model sees, pixels, >= 1.
        resize: Shorter side to which evaluation images are resized before cropping, pixels, >= image_size.
        num_classes: Number of class folders, >= 1.
        **settings: Settings of every data module, see :class:`ImageDataModule`.

    Raises:
        SettingError: A setting is outside of what is allowed.
    """

    channels = 3

    def __init__(
        self, root: str, image_size: int = 224, resize: int = 256, num_classes: int = 1000, **settings: Any
    ) -> None:
        super().__init__(**settings)
        require(image_size >= 1, "image_size", image_size, "must be >= 1")
        require(resize >= image_size, "resize", resize, f"must be >= image_size = {image_size}")
        require(num_classes >= 1, "num_classes", num_classes, "must be >= 1")
        self.root = root
        self.image_size = image_size
        self.resize = resize
        self.num_classes = num_classes

    def prepare_data(self) -> None:
        """Check that there is something to read.

        Raises:
            DataError: ``root`` holds neither train nor val.
        """
        if not any((Path(self.root) / folder).is_dir() for folder in _FOLDERS.values()):
            raise DataError(f"root = {self.root!r}: must be a folder with {{train,val}}/<class>/<images>")

    def load_split(self, split: Split) -> FolderImages:
        """List the files of one whole split, sorted.

        Raises:
            DataError: The folder is missing, has another number of classes or, if both are there, other class folders
                than the other split.
        """
        folder = Path(self.root) / _FOLDERS[split]
        images = FolderImages(folder, self.image_size, self.resize)
        if len(images.classes) != self.num_classes:
            raise DataError(f"{folder}: has {len(images.classes)} class folders, but num_classes = {self.num_classes}")
        for other in (Path(self.root) / name for name in _FOLDERS.values()):
            if other.is_dir():
                _demand_same_classes(folder, images.classes, other)
        return images


def _demand_same_classes(folder: Path, classes: tuple[str, ...], other: Path) -> None:
    """Refuse a split whose class folders are not those of another one: each would number its own."""
    theirs = class_folders(other)
    if theirs != classes:
        odd = min(set(classes) ^ set(theirs))
        has, lacks = (folder, other) if odd in classes else (other, folder)
        raise DataError(f"{has}: has the class folder {odd!r}, but {lacks} has not; both must have the same ones")
