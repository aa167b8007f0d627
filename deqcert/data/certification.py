"""The images to certify: a regular selection of one split, in the form in which strategies take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deqcert.data.images import Example, IndexedImages, to_unit_interval
from deqcert.errors import DataError


class CertificationSet:
    """A sequence of ``(image, label, index)`` with images float32 (C, H, W) in [0, 1].

    Args:
        images: The whole split.
        positions: Positions in ``images`` to certify.
        split: Name of the split.
        num_classes: Number of classes of the classifier.

    Attributes:
        indices: Original indices of the selected images.
        classes: Names of the classes.

    Raises:
        DataError: Nothing is selected, or the label of a selected image is not in ``[0, num_classes)``.
    """

    def __init__(self, images: IndexedImages, positions: Sequence[int], split: str, num_classes: int) -> None:
        if not positions:
            raise DataError(f"{images.name}, {split} split: no image of {len(images)} is selected")
        self.num_classes = num_classes
        self.classes = images.classes
        self._images = images
        self._positions = list(positions)
        self._split = split
        labels = images.labels[self._positions].tolist()
        self.indices: list[int] = images.indices[self._positions].tolist()
        for index, label in zip(self.indices, labels, strict=True):
            if not 0 <= label < num_classes:
                raise DataError(f"image {index} has label {label}, which is not in [0, {num_classes})")

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: int) -> Example:
        """Return ``(image, label, original index)``.

        Raises:
            DataError: A pixel is NaN or outside of [0, 1].
        """
        image, label, index = self._images[self._positions[position]]
        if image.dtype == torch.uint8:
            image = to_unit_interval(image)
        # One comparison finds NaN too: every comparison with NaN is false.
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise DataError(f"image {index} has pixels that are NaN or outside of [0, 1]")
        return image, label, index

    def identity(self) -> dict[str, object]:
        """Return, JSON-able, what determines the pixels and labels.

        The selection is no part of it, so that a run can be extended to more images of the same split.
        """
        return {"split": self._split, **self._images.identity()}
