"""CIFAR-10, from each of the forms in which it is found on disk."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import Tensor

from deqcert.data.augmentation import CropAndFlip
from deqcert.data.base import ImageDataModule, Split
from deqcert.data.decoding import opened_image
from deqcert.data.images import TensorImages
from deqcert.data.packed import INTEGER, demand_offsets, read_arrays
from deqcert.errors import DataError, require

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = {"train": 50_000, "test": 10_000}

_BATCHES_FOLDER = "cifar-10-batches-py"


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
            DataError: There is nothing at ``root``, or the download fails or arrives damaged.
            SettingError: ``download`` is asked for while ``root`` is a file.
        """
        root = Path(self.root)
        if self.download:
            require(not root.is_file(), "download", True, f"must be false: root = {self.root!r} is a file")
            _torchvision(root, download=True)
        find_reader(root)

    def load_split(self, split: Split) -> TensorImages:
        """Read one whole split, sorted by original index."""
        root = Path(self.root)
        return find_reader(root)(root, split)

    def augment_batch(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Crop and flip ``images`` (B, C, H, W) at random, unless that is switched off."""
        return self._crop_and_flip(images, indices, epoch) if self.augment else images


def find_reader(root: Path) -> Callable[[Path, str], TensorImages]:
    """Return the function that reads a split out of what is found at ``root``.

    Raises:
        DataError: Nothing that holds CIFAR-10 is found.
    """
    if root.is_file():
        return read_packed
    if (root / _BATCHES_FOLDER).is_dir():
        return read_batches
    if any((root / split).is_dir() for split in SIZES):
        return read_tree
    found = "no CIFAR-10 in it" if root.is_dir() else "no such file or folder"
    raise DataError(
        f"root = {str(root)!r}: {found}; allowed are: "
        f"a folder with torchvision's {_BATCHES_FOLDER} (download: true fetches it), "
        "a folder with {train,test}/<class>/<index>.jpg, "
        "or the packed file cifar10_jpeg.npz"
    )


def read_batches(root: Path, split: str) -> TensorImages:
    """Read the python version of CIFAR-10 (lossless) through torchvision, which compares checksums."""
    source = _torchvision(root, train=split == "train")
    return _assemble(source.data, source.targets)


def read_tree(root: Path, split: str) -> TensorImages:
    """Read ``root/<split>/<class>/<index>.jpg`` (or .png); any part of the 60 000 images may be absent.

    Raises:
        DataError: A file has an unknown name, an index occurs twice, an image is damaged, or there is no image.
    """
    files: dict[int, Path] = {}
    for file in (root / split).glob("[!.]*/[!.]*"):
        index = int(file.stem) if file.stem.isdecimal() else SIZES[split]
        if file.parent.name not in CLASSES or file.suffix not in (".jpg", ".png") or index >= SIZES[split]:
            allowed = f"must be <class>/<index>.jpg or .png, of one of {', '.join(CLASSES)}; index < {SIZES[split]}"
            raise DataError(f"{file}: {allowed}")
        if files.setdefault(index, file) != file:
            raise DataError(f"{file}: index {index} occurs twice, see {files[index]}")
    if not files:
        raise DataError(f"{root / split}: holds no image")
    indices = sorted(files)
    pixels = np.stack([_decode(files[index], str(files[index])) for index in indices])
    return _assemble(pixels, [CLASSES.index(files[index].parent.name) for index in indices], torch.tensor(indices))


def read_packed(path: Path, split: str) -> TensorImages:
    """Read one split of ``cifar10_jpeg.npz``: JPEGs that share one header, cut apart at offsets.

    JPEG ``i`` is ``header + scan[offsets[i]:offsets[i + 1]] + trailer``. The JPEGs are lossy: what is
    measured on them is not exactly comparable with published numbers, robustness radii least of all.

    Raises:
        DataError: The file is damaged or is something else.
    """
    kinds = {"classes": "U", "header": "B", "trailer": "B"}
    kinds |= {f"{split}_labels": INTEGER, f"{split}_offsets": INTEGER, f"{split}_scan": "B"}
    classes, header, trailer, labels, offsets, scan = read_arrays(path, kinds, "packed CIFAR-10")
    if tuple(classes.tolist()) != CLASSES:
        raise DataError(f"{path}: holds the classes {classes.tolist()[:20]}, not those of CIFAR-10")
    if len(labels) > SIZES[split]:
        raise DataError(f"{path}: holds {len(labels)} {split} images; CIFAR-10 has {SIZES[split]}")
    if outside := [label for label in labels.tolist() if not 0 <= label < len(CLASSES)]:
        raise DataError(f"{path}: holds the label {outside[0]}; CIFAR-10 has 0 to 9")
    bounds = demand_offsets(path, split, offsets, len(labels), len(scan))
    head, data, tail = header.tobytes(), memoryview(scan.tobytes()), trailer.tobytes()
    pixels = np.empty((len(labels), 32, 32, 3), np.uint8)
    for index, (begin, end) in enumerate(pairwise(bounds.tolist())):
        pixels[index] = _decode(b"".join((head, data[begin:end], tail)), f"{path}: {split} image {index}")
    return _assemble(pixels, labels.tolist())


def _torchvision(root: Path, **settings: bool) -> torchvision.datasets.CIFAR10:
    try:
        return torchvision.datasets.CIFAR10(str(root), **settings)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{root / _BATCHES_FOLDER}: cannot be read or downloaded: {error}") from error


def _decode(source: Path | bytes, origin: str) -> npt.NDArray[np.uint8]:
    with opened_image(source, origin, ("JPEG", "PNG")) as image:
        if image.size != (32, 32) or image.mode != "RGB":
            raise DataError(f"{origin}: must be 32 x 32 RGB, not {image.size} {image.mode}")
        return np.asarray(image)


def _assemble(pixels: npt.NDArray[np.uint8], labels: list[int], indices: Tensor | None = None) -> TensorImages:
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return TensorImages(images, torch.tensor(labels, dtype=torch.int64), CLASSES, "cifar10", indices)
