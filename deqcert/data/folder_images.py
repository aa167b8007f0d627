"""Images that stay in files: one folder per class, decoded when they are asked for."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import find_classes
from torchvision.transforms import v2

from deqcert.data.decoding import EXTENSIONS, demand_pixels, opened_image
from deqcert.data.images import Batch, Example, IndexedImages
from deqcert.data.streams import DataPurpose, raw_stream
from deqcert.errors import DataError


class FolderImages(IndexedImages):
    """Files ``folder/<class>/*``, as uint8 (3, S, S); the original index is the position in the sorted list.

    The shorter side is resized to ``resize`` and the center is cropped. :meth:`augmented` images are cropped,
    resized and flipped at random instead, as a function of (seed, epoch, index). Pixels are taken as they are stored:
    an orientation in the EXIF data is not applied. Files whose names do not end as those of images are left out with a
    warning, hidden ones without.

    Args:
        folder: Folder of the split.
        image_size: Side S of the images that come out, pixels.
        resize: Shorter side before the center is cropped, pixels.

    Raises:
        DataError: There is no such folder, no class folder in it, a class folder without images or a hidden one, or
            links lead to a folder twice.
    """

    def __init__(self, folder: Path, image_size: int, resize: int) -> None:
        if hidden := [path for path in folder.glob(".*") if path.is_dir()]:
            raise DataError(f"{min(hidden)}: a hidden folder cannot be a class; remove or rename it")
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
        _demand_each_folder_once(self.files)
        if others:
            names = f"names of images end in {' '.join(EXTENSIONS)}"
            warnings.warn(f"{folder}: left out {len(others)} files, e.g. {others[0]}; {names}", stacklevel=2)
        super().__init__(
            torch.tensor(listing.targets, dtype=torch.int64),
            tuple(listing.classes),
            "image_folder",
            torch.arange(len(self.files)),
        )
        self.folder = folder
        self.epoch = 0
        self.seed: int | None = None
        self._resize = resize
        self.preprocessing = {"resize": resize, "center_crop": image_size, "interpolation": "bilinear"}
        self._evaluation = v2.Compose([v2.Resize(resize), v2.CenterCrop(image_size), v2.PILToTensor()])
        self._training = v2.Compose([v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def __getitem__(self, position: int) -> Example:
        """Return the image, its label and its original index.

        Raises:
            DataError: The file is damaged, or is not an image that can be used.
        """
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
            relative = file.relative_to(self.folder).as_posix()
            # Names of files need not be UTF-8.
            digest.update(f"{relative}\0{_size(file)}\0{label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _read(self, file: Path) -> Image.Image:
        with opened_image(file, str(file)) as image:
            shorter, longer = sorted(image.size)
            # Images that are augmented are not resized, but a file is either usable or not.
            resized = self._resize * longer // shorter
            demand_pixels(self._resize, resized, f"{file}: resized to {self._resize} pixels on its shorter side")
            color: Image.Image = image.convert("RGB")
            return color


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders of a split, in the order of their numbers.

    Raises:
        DataError: There is none.
    """
    try:
        return tuple(find_classes(str(folder))[0])
    except OSError as error:
        raise DataError(f"{folder}: {error}") from error


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error


def _demand_each_folder_once(files: Sequence[Path]) -> None:
    """Refuse links to a folder that is listed anyway: in a loop of them every image would count 40 times."""
    seen: dict[Path, Path] = {}
    for folder in dict.fromkeys(file.parent for file in files):
        first = seen.setdefault(folder.resolve(), folder)
        if first != folder:
            raise DataError(f"{folder}: is {first} again; every folder must be listed once")
