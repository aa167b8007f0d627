"""ImageNet, or any other data set of color images with one folder per class, decoded when they are asked for."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from deqcert.data.base import ImageDataModule, Split
from deqcert.data.decoding import EXTENSIONS, demand_pixels, opened_image
from deqcert.data.images import Batch, Example, IndexedImages
from deqcert.data.streams import DataPurpose, raw_stream
from deqcert.errors import DataError, require, require_count

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
    """

    channels = 3

    def __init__(
        self, root: str, image_size: int = 224, resize: int = 256, num_classes: int = 1000, **settings: Any
    ) -> None:
        super().__init__(**settings)
        require_count("image_size", image_size, 1)
        require(resize >= image_size, "resize", resize, f"must be >= image_size = {image_size}")
        require_count("num_classes", num_classes, 1)
        self.root = root
        self.image_size = image_size
        self.resize = resize
        self.num_classes = num_classes

    def prepare_data(self) -> None:
        """Raise :class:`DataError` if ``root`` holds neither train nor val."""
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
        other = Path(self.root) / _FOLDERS["train" if split == "test" else "test"]
        if other.is_dir() and (odd := set(images.classes) ^ {path.name for path in other.iterdir() if path.is_dir()}):
            raise DataError(f"{folder} and {other}: only one has the class folder {min(odd)!r}; both must have it")
        return images


class FolderImages(IndexedImages):
    """Files ``folder/<class>/*``, as uint8 (3, S, S); the original index is the position in the sorted list.

    The shorter side is resized to ``resize`` and the center is cropped to S = ``image_size``, pixels. :meth:`augmented`
    images are cropped, resized and flipped at random instead, as a function of (seed, epoch, index). Pixels are taken
    as they are stored: an orientation in the EXIF data is not applied. Files whose names do not end as those of images
    are left out with a warning, hidden ones without.

    Raises:
        DataError: There is no such folder, no class folder in it, a class folder without images, or links lead to
            a folder twice.
    """

    def __init__(self, folder: Path, image_size: int, resize: int) -> None:
        others = []

        def is_image(path: str) -> bool:
            found = path.lower().endswith(EXTENSIONS)
            if not (found or Path(path).name.startswith(".")):
                others.append(path)
            return found

        try:
            listing = torchvision.datasets.ImageFolder(str(folder), is_valid_file=is_image)
        except OSError as error:
            raise DataError(f"{folder}: {error}") from error
        self.files = [Path(path) for path, _ in listing.samples]
        listed: dict[Path, Path] = {}  # in a loop of links every image would count 40 times
        for parent in dict.fromkeys(file.parent for file in self.files):
            if (first := listed.setdefault(parent.resolve(), parent)) != parent:
                raise DataError(f"{parent}: is {first} again; every folder must be listed once")
        if others:
            names = f"names of images end in {' '.join(EXTENSIONS)}"
            warnings.warn(f"{folder}: left out {len(others)} files, e.g. {others[0]}; {names}", stacklevel=2)
        labels = torch.tensor(listing.targets, dtype=torch.int64)
        super().__init__(labels, tuple(listing.classes), "image_folder", torch.arange(len(labels)))
        self.folder = folder
        self.epoch = 0
        self.seed: int | None = None
        self._resize = resize
        self.preprocessing = {"resize": resize, "center_crop": image_size, "interpolation": "bilinear"}
        self._evaluation = v2.Compose([v2.Resize(resize), v2.CenterCrop(image_size), v2.PILToTensor()])
        self._training = v2.Compose([v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def __getitem__(self, position: int) -> Example:
        index = int(self.indices[position])
        image = self._read(self.files[position])
        if self.seed is None:
            pixels: Tensor = self._evaluation(image)
        else:
            # The transforms draw from torch's global CPU generator; those of the accelerators are left alone.
            with torch.random.fork_rng(devices=[]):
                word = raw_stream(1, self.seed, DataPurpose.FILE_AUGMENTATION, self.epoch, index)[0]
                torch.default_generator.manual_seed(int(word) % 2**32)
                pixels = self._training(image)
        return pixels, int(self.labels[position]), index

    def __getitems__(self, positions: list[int]) -> Batch:
        images, labels, indices = zip(*(self[position] for position in positions), strict=True)
        return torch.stack(images), torch.tensor(labels), torch.tensor(indices)

    def subset(self, positions: Sequence[int]) -> FolderImages:
        """Return the images at ``positions``, in that order, with their original indices."""
        chosen = copy.copy(self)
        chosen.__dict__.pop("sha256", None)
        chosen.files = [self.files[position] for position in positions]
        chosen.labels = self.labels[list(positions)]
        chosen.indices = self.indices[list(positions)]
        return chosen

    def augmented(self, seed: int) -> FolderImages:
        """Return the same images with random crops and flips that belong to ``seed``."""
        chosen = copy.copy(self)
        chosen.seed = seed
        return chosen

    @cached_property
    def sha256(self) -> str:
        """Digest of file names, sizes and labels; the pixels are not read: that takes an hour for ImageNet."""
        digest = hashlib.sha256()
        for file, label in zip(self.files, self.labels.tolist(), strict=True):
            try:
                size = file.stat().st_size
            except OSError as error:
                raise DataError(f"{file}: {error.strerror}") from error
            # Names of files need not be UTF-8.
            line = f"{file.relative_to(self.folder).as_posix()}\0{size}\0{label}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _read(self, file: Path) -> Image.Image:
        with opened_image(file, str(file)) as image:
            shorter, longer = sorted(image.size)
            # Images that are augmented are not resized, but a file is either usable or not.
            resized = self._resize * longer // shorter
            demand_pixels(self._resize, resized, f"{file}: resized to {self._resize} pixels on its shorter side")
            return image.convert("RGB")
