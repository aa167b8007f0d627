"""Reading CIFAR-10 from each of the forms in which it is found on disk."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision

from deqcert.data.decoding import opened_image
from deqcert.data.images import TensorImages
from deqcert.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = {"train": 50_000, "test": 10_000}

_BATCHES_FOLDER = "cifar-10-batches-py"
_MAXIMUM_BYTES = 2**30  # all pixels of CIFAR-10 take 184 MB
_FORMATS = ("JPEG", "PNG")
_SUFFIXES = (".jpg", ".jpeg", ".png")

Reader = Callable[[Path, str], TensorImages]
"""Reads the split of the given name below (or out of) a path."""


def download_batches(root: Path) -> None:
    """Download and unpack CIFAR-10 below ``root``, unless it is there already.

    Raises:
        DataError: The download fails or arrives damaged.
    """
    try:
        torchvision.datasets.CIFAR10(root=str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"root = {str(root)!r}: CIFAR-10 cannot be downloaded: {error}") from error


def find_reader(root: Path) -> Reader:
    """Return the reader for what is found at ``root``.

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
    """Read the python version of CIFAR-10 (lossless) through torchvision.

    Raises:
        DataError: A file is missing or its checksum is wrong.
    """
    try:
        source = torchvision.datasets.CIFAR10(root=str(root), train=split == "train")
    except (OSError, RuntimeError) as error:
        raise DataError(f"{root / _BATCHES_FOLDER}: {error}") from error
    return _assemble(source.data, source.targets)


def read_tree(root: Path, split: str) -> TensorImages:
    """Read ``root/<split>/<class>/<index>.jpg`` (or .png); any part of the 60 000 images may be absent.

    Raises:
        DataError: A folder or file has an unknown name, an index occurs twice, an image is damaged, or
            there is no image.
    """
    folder = root / split
    files: dict[int, tuple[Path, int]] = {}
    for class_folder in _visible(folder):
        if class_folder.name not in CLASSES or not class_folder.is_dir():
            raise DataError(f"{class_folder}: not one of the class folders {', '.join(CLASSES)}")
        for file in _visible(class_folder):
            index = _original_index(file, split)
            if index in files:
                raise DataError(f"{file}: index {index} occurs twice, see {files[index][0]}")
            files[index] = file, CLASSES.index(class_folder.name)
    if not files:
        raise DataError(f"{folder}: holds no image")
    indices = sorted(files)
    pixels = np.empty((len(files), 32, 32, 3), np.uint8)
    for row, index in enumerate(indices):
        file = files[index][0]
        pixels[row] = _decode(file, str(file))
    return _assemble(pixels, [files[index][1] for index in indices], indices)


def read_packed(path: Path, split: str) -> TensorImages:
    """Read one split of ``cifar10_jpeg.npz``: JPEGs that share one header, cut apart at offsets.

    JPEG ``i`` is ``header + scan[offsets[i]:offsets[i + 1]] + trailer``. The JPEGs are lossy: what is
    measured on them is not exactly comparable with published numbers, robustness radii least of all.

    Raises:
        DataError: The file is damaged or is something else.
    """
    classes, header, trailer, labels, offsets, scan = _read_arrays(path, split)
    if tuple(classes.tolist()) != CLASSES:
        raise DataError(f"{path}: holds the classes {classes.tolist()[:20]}, not those of CIFAR-10")
    if len(labels) > SIZES[split]:
        raise DataError(f"{path}: holds {len(labels)} {split} images; CIFAR-10 has {SIZES[split]}")
    bounds = offsets.astype(np.int64)
    if len(bounds) != len(labels) + 1 or bounds[0] != 0 or bounds[-1] != len(scan) or (bounds[1:] < bounds[:-1]).any():
        raise DataError(f"{path}: damaged: the {split} offsets do not match its labels and data")
    head, data, tail = header.tobytes(), memoryview(scan.tobytes()), trailer.tobytes()
    pixels = np.empty((len(labels), 32, 32, 3), np.uint8)
    for index, (begin, end) in enumerate(pairwise(bounds.tolist())):
        pixels[index] = _decode(b"".join((head, data[begin:end], tail)), f"{path}: {split} image {index}")
    return _assemble(pixels, labels.tolist())


def _read_arrays(path: Path, split: str) -> list[npt.NDArray[Any]]:
    """Return the classes and what else belongs to ``split``, of the right kind and with one dimension each."""
    kinds = {
        "classes": "U",
        "header": "u",
        "trailer": "u",
        f"{split}_labels": "iu",
        f"{split}_offsets": "iu",
        f"{split}_scan": "u",
    }
    try:
        with path.open("rb") as stream:  # numpy leaves a damaged file open that it opened itself
            content = sum(member.file_size for member in zipfile.ZipFile(stream).infolist())
            if content > _MAXIMUM_BYTES:
                raise DataError(f"{path}: holds {content} bytes when unpacked; allowed are {_MAXIMUM_BYTES}")
            stream.seek(0)
            archive = np.load(stream, allow_pickle=False)
            arrays = [archive[name] for name in kinds]
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise whatever the damage leads to
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: damaged, or not a packed CIFAR-10 file: {reason}") from error
    for (name, kind), array in zip(kinds.items(), arrays, strict=True):
        if array.ndim != 1 or array.dtype.kind not in kind or (kind == "u" and array.itemsize != 1):
            raise DataError(f"{path}: damaged: {name} is {array.dtype} with {array.ndim} dimensions")
    return arrays


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _original_index(file: Path, split: str) -> int:
    if file.suffix.lower() in _SUFFIXES and file.stem.isdecimal() and int(file.stem) < SIZES[split]:
        return int(file.stem)
    raise DataError(f"{file}: must be named <index>.jpg or .png with an index in [0, {SIZES[split]})")


def _decode(source: Path | bytes, origin: str) -> npt.NDArray[np.uint8]:
    with opened_image(source, origin, _FORMATS) as image:
        if image.size != (32, 32) or image.mode != "RGB":
            raise DataError(f"{origin}: must be 32 x 32 RGB, not {image.size} {image.mode}")
        return np.asarray(image)


def _assemble(pixels: npt.NDArray[np.uint8], labels: list[int], indices: list[int] | None = None) -> TensorImages:
    outside = [label for label in labels if not 0 <= label < len(CLASSES)]
    if outside:
        raise DataError(f"CIFAR-10 has no label {outside[0]}")
    return TensorImages(
        torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))),
        torch.tensor(labels, dtype=torch.int64),
        classes=CLASSES,
        name="cifar10",
        indices=None if indices is None else torch.tensor(indices, dtype=torch.int64),
    )
