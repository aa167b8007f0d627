"""Scikit-learn's handwritten digits: embedded, tiny, for tests and first steps."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from deqcert.data.base import ImageDataModule, Split
from deqcert.data.images import TensorImages
from deqcert.data.streams import DataPurpose, permutation

_TRAIN_SIZE = 1297
_SPLIT_SEED = 1797


class Digits(ImageDataModule):
    """The 1797 gray 8 x 8 digits that come with scikit-learn; nothing is downloaded, nothing augmented.

    A fixed permutation (independent of ``seed``) puts 1297 digits into the training split and 500 into the
    test split. Original indices are those of scikit-learn. Its values 0..16 are scaled to 0..255.

    The settings are those of every :class:`ImageDataModule`.
    """

    num_classes = 10
    image_size = 8
    channels = 1

    def load_split(self, split: Split) -> TensorImages:
        """Read one whole split, sorted by original index."""
        values, labels = load_digits(return_X_y=True)
        shuffled = permutation(len(labels), _SPLIT_SEED, DataPurpose.FIXED_SPLIT)
        indices = np.sort(shuffled[:_TRAIN_SIZE] if split == "train" else shuffled[_TRAIN_SIZE:])
        pixels = np.rint(values[indices].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
        targets = torch.from_numpy(labels[indices].astype(np.int64))
        return TensorImages(torch.from_numpy(pixels), targets, tuple("0123456789"), "digits", torch.from_numpy(indices))
