"""One split of a labeled image data set, read by the batch.

Every image keeps its *original index* within the split, whatever is held out or left out, because noise,
augmentation and certificates belong to that index.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import Self

from deqcert.errors import DataError

Example = tuple[Tensor, int, int]
"""Image (C, H, W), label, original index."""

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (B, C, H, W), labels (B,) int64, original indices (B,) int64."""


def to_unit_interval(images: Tensor) -> Tensor:
    """Return uint8 ``images`` of any shape as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


class IndexedImages(Dataset[Example], ABC):
    """Images of one split with labels, class names and original indices.

    Args:
        labels: int64 (N,).
        classes: Class names; label ``k`` is ``classes[k]``.
        name: Name of the data set.
        indices: Original indices, int64 (N,).
    """

    preprocessing: Mapping[str, object] = {"scale": "1/255"}
    """How stored pixels become those that a model sees."""

    def __init__(self, labels: Tensor, classes: tuple[str, ...], name: str, indices: Tensor) -> None:
        self.labels = labels
        self.classes = classes
        self.name = name
        self.indices = indices

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def __getitem__(self, position: int) -> Example: ...

    @abstractmethod
    def __getitems__(self, positions: list[int]) -> Batch: ...

    @abstractmethod
    def subset(self, positions: Sequence[int]) -> Self:
        """Return the images at ``positions``, in that order, with their original indices."""

    def usable(self, positions: Sequence[int]) -> Sequence[int]:
        """Return the ``positions`` without those of images that are to be skipped."""
        return positions

    def augmented(self, seed: int) -> Self:
        """Return the same images, augmented on reading if they are not held in memory."""
        return self

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Digest of all that determines the images and their labels."""

    def identity(self) -> dict[str, object]:
        """Return, JSON-able, what determines every pixel and label: name, number of images, digest, preprocessing."""
        return {"name": self.name, "images": len(self), "sha256": self.sha256, "preprocessing": self.preprocessing}


class TensorImages(IndexedImages):
    """Images that are held in memory, as uint8 (N, C, H, W); original indices are ``0 .. N - 1`` unless given.

    Raises:
        DataError: A tensor has another type or shape.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, classes: tuple[str, ...], name: str, indices: Tensor | None = None
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(f"{name}: images must be uint8 (N, C, H, W), not {images.dtype} {tuple(images.shape)}")
        count = len(images)
        if indices is None:
            indices = torch.arange(count)
        for role, tensor in (("labels", labels), ("indices", indices)):
            if tensor.dtype != torch.int64 or tensor.shape != (count,):
                raise DataError(f"{name}: {role} must be int64 ({count},), not {tensor.dtype} {tuple(tensor.shape)}")
        super().__init__(labels, classes, name, indices)
        self.images = images

    def __getitem__(self, position: int) -> Example:
        return self.images[position], int(self.labels[position]), int(self.indices[position])

    def __getitems__(self, positions: list[int]) -> Batch:
        return self.images[positions], self.labels[positions], self.indices[positions]

    def subset(self, positions: Sequence[int]) -> TensorImages:
        """Return the images at ``positions``, in that order, with their original indices."""
        images, labels, indices = self.__getitems__(list(positions))
        return TensorImages(images, labels, self.classes, self.name, indices)

    @cached_property
    def sha256(self) -> str:
        """Digest of all pixels, labels and indices."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (self.labels, self.indices, self.images):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


class CertificationSet:
    """The images to certify: a sequence of ``(image, label, original index)``, images float32 (C, H, W) in [0, 1].

    They are those at ``positions`` in the ``images`` of a whole split.

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
        self.indices: list[int] = images.indices[self._positions].tolist()
        for index, label in zip(self.indices, images.labels[self._positions].tolist(), strict=True):
            if not 0 <= label < num_classes:
                raise DataError(f"image {index} has label {label}, which is not in [0, {num_classes})")

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: int) -> Example:
        image, label, index = self._images[self._positions[position]]
        if image.dtype == torch.uint8:
            image = to_unit_interval(image)
        # One comparison finds NaN too: every comparison with NaN is false.
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise DataError(f"image {index} has pixels that are NaN or outside of [0, 1]")
        return image, label, index

    def __iter__(self) -> Iterator[Example]:
        return (self[position] for position in range(len(self)))

    def identity(self) -> dict[str, object]:
        """Return, JSON-able, what determines pixels and labels of the whole split: a run can be extended within it."""
        return {"split": self._split, **self._images.identity()}
