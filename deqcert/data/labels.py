"""Which class an image belongs to where its folder does not tell: mappings, tables and the devkit of ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from scipy.io import loadmat

from deqcert.data.decoding import EXTENSIONS, demand_file
from deqcert.errors import DataError, reason


class StatedLabels(NamedTuple):
    """Labels that a file states."""

    labels: list[str]
    """The class folder of each image, or its number."""
    classes: list[str]
    """All class folders that the file knows, sorted; of numbers none."""


def read_class_map(path: Path) -> dict[str, str]:
    """Return the class of each folder, from lines ``FOLDER<TAB>CLASS``; a line ``FOLDER`` is its own class.

    Raises:
        DataError: The file cannot be read, a line has another form, or a folder stands there twice.
    """
    classes: dict[str, str] = {}
    for number, line in _lines(path):
        folder, *rest = line.split("\t")
        name = rest[0] if rest else folder
        if len(rest) > 1 or not folder or not name:
            raise DataError(f"{path}, line {number}: {line!r}: must be FOLDER<TAB>CLASS, or FOLDER alone")
        if folder in classes:
            raise DataError(f"{path}, line {number}: the folder {folder!r} stands there twice")
        classes[folder] = name
    return classes


def read_labels(path: Path, names: Sequence[str]) -> StatedLabels:
    """Return the labels of images from a ground-truth file.

    It is the devkit's ILSVRC2012_validation_ground_truth.txt (a number per image, meta.mat beside it), or a table of
    names and classes.

    Args:
        path: The file.
        names: The images, sorted.

    Raises:
        DataError: The file cannot be read, is neither, or does not fit the images.
    """
    lines = _lines(path)
    if all(line.strip().isdecimal() for _, line in lines):
        return _devkit(path, [line.strip() for _, line in lines], len(names))
    return _table(path, lines, names)


def _devkit(path: Path, numbers: list[str], images: int) -> StatedLabels:
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise DataError(f"{path}: numbers alone need the devkit's meta.mat to name their classes; {meta}: no such file")
    if len(numbers) != images:
        raise DataError(f"{path}: has labels of {len(numbers)} images, but there are {images}")
    try:
        synsets = np.atleast_1d(loadmat(meta, squeeze_me=True)["synsets"])
        leaves = synsets[synsets["num_children"].astype(np.int64) == 0]
        folders = {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in leaves}
    except Exception as error:  # scipy raises whatever the damage leads to
        raise DataError(f"{meta}: damaged, or not the devkit's: {str(error) or type(error).__name__}") from error
    if unknown := set(numbers) - folders.keys():
        raise DataError(f"{path}: {min(unknown)[:20]} is not the number of a class in {meta}")
    return StatedLabels([folders[number] for number in numbers], sorted(folders.values()))


def _table(path: Path, lines: list[tuple[int, str]], names: Sequence[str]) -> StatedLabels:
    """Read names with or without suffix and classes, separated by comma, tab or blanks; further columns are ignored."""
    wanted = {_key(name): name for name in names}
    if len(wanted) < len(names):
        (twice, *_) = (name for name in names if wanted[_key(name)] != name)
        raise DataError(f"{path}: cannot tell {twice!r} from {wanted[_key(twice)]!r} by their names")
    found: dict[str, str] = {}
    for number, line in lines:
        separator = next((each for each in "\t," if each in line), None)
        name, label, *_ = (*(field.strip() for field in line.strip().split(separator)), "", "")
        if separator == ",":
            label = label.partition(" ")[0]  # Kaggle's have boxes behind the class
        if not (name and label):
            raise DataError(f"{path}, line {number}: {line!r}: must be the name of an image and its class")
        if found.setdefault(_key(name), label) != label:
            raise DataError(f"{path}, line {number}: {name!r} stands there twice, with different classes")
    if missing := [name for key, name in wanted.items() if key not in found]:
        raise DataError(f"{path}: has no label of {len(missing)} of {len(names)} images, e.g. {missing[0]!r}")
    labels = [found[_key(name)] for name in names]
    numbers = all(label.isdecimal() for label in labels)
    return StatedLabels(labels, [] if numbers else sorted(set(labels)))


def _key(name: str) -> str:
    """Return the name of an image without folders and suffix."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in EXTENSIONS else path.name


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that are not empty, with their numbers; names of files need not be UTF-8."""
    demand_file(path, str(path))
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: is empty")
    return [(number, line.rstrip("\r")) for number, line in lines]
