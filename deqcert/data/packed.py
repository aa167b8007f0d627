"""Arrays of a packed .npz file that may be damaged, hostile or something else."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deqcert.errors import DataError

INTEGER = np.typecodes["AllInteger"]
"""Type characters of the arrays that hold labels and offsets."""

_MAXIMUM_BYTES = 2**30  # all pixels of CIFAR-10 take 184 MB, all JPEGs of Tiny-ImageNet 240 MB


def read_arrays(path: Path, kinds: Mapping[str, str], what: str) -> list[npt.NDArray[Any]]:
    """Return arrays of one dimension each.

    Args:
        path: The .npz file.
        kinds: Name of each array, and the type characters (``dtype.char``) that it may have.
        what: What the file is called in errors, e.g. "packed CIFAR-10".

    Raises:
        DataError: The file is damaged, lacks an array, has one of another kind, or unpacks to more than a GiB.
    """
    try:
        with path.open("rb") as stream:  # numpy leaves a damaged file open that it opened itself
            unpacked = sum(member.file_size for member in zipfile.ZipFile(stream).infolist())
            if unpacked <= _MAXIMUM_BYTES:
                stream.seek(0)
                archive = np.load(stream, allow_pickle=False)
                arrays = [archive[name] for name in kinds]
    except Exception as error:  # numpy and zipfile raise whatever the damage leads to
        cause = str(error) or type(error).__name__
        raise DataError(f"{path}: damaged, or not a {what} file: {cause}") from error
    if unpacked > _MAXIMUM_BYTES:
        raise DataError(f"{path}: holds {unpacked} bytes when unpacked; allowed are {_MAXIMUM_BYTES}")
    for (name, kind), array in zip(kinds.items(), arrays, strict=True):
        if array.ndim != 1 or array.dtype.char not in kind:
            raise DataError(f"{path}: damaged: {name} is {array.dtype} with {array.ndim} dimensions")
    return arrays


def demand_offsets(path: Path, split: str, offsets: npt.NDArray[Any], count: int, length: int) -> npt.NDArray[np.int64]:
    """Return ``offsets`` as int64 (count + 1,) if they cut ``length`` bytes into ``count`` images.

    Raises:
        DataError: They do not.
    """
    bounds = offsets.astype(np.int64)
    if len(bounds) != count + 1 or bounds[0] != 0 or bounds[-1] != length or (bounds[1:] < bounds[:-1]).any():
        raise DataError(f"{path}: damaged: the {split} offsets do not match its labels and data")
    return bounds
