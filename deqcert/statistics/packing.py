"""Predictions of noisy samples as text: 1 to 4 bytes each, compressed, so that a line of a ledger can hold them."""

from __future__ import annotations

import base64
import bz2

import numpy as np
from numpy.typing import NDArray

# bzip2, whose output is the same everywhere: the digests of votes are of this text. That of zlib depends on the build.


def packed(classes: NDArray[np.int64], num_classes: int) -> str:
    """Return predictions, shape (n,), each in [-1, num_classes), as text; -1 is a prediction of no class."""
    return base64.b64encode(bz2.compress(classes.astype(_kind(num_classes)).tobytes())).decode()


def unpacked(text: str, n: int, num_classes: int) -> NDArray[np.int64]:
    """Return the predictions in a text, shape (n,).

    Raises:
        ValueError: The text is not what :func:`packed` returns for ``n`` predictions of so many classes.
    """
    kind = _kind(num_classes)
    decompressor = bz2.BZ2Decompressor()
    try:
        # One byte more than there should be is enough to see that there are too many.
        content = decompressor.decompress(base64.b64decode(text, validate=True), n * kind.itemsize + 1)
    except (OSError, EOFError) as error:
        raise ValueError(str(error)) from error
    if len(content) != n * kind.itemsize or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"does not hold {n} predictions")
    classes = np.frombuffer(content, kind).astype(np.int64)
    if len(classes) and not -1 <= classes.min() <= classes.max() < num_classes:
        raise ValueError(f"holds predictions outside of [-1, {num_classes})")
    return classes


def _kind(num_classes: int) -> np.dtype[np.signedinteger]:
    """Return the smallest type of the predictions."""
    kind: np.dtype[np.signedinteger] = np.min_scalar_type(-num_classes).newbyteorder("<")
    return kind
