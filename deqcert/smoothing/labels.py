"""Labels and their counts; logits that are not finite vote for nobody."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

INVALID = -1


def labels_of(logits: Tensor) -> Tensor:
    """Return the class of each row, or ``INVALID`` where a logit is NaN or infinite; shape (B, C) to (B,)."""
    return torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), INVALID)


def count_labels(labels: NDArray[np.int64], num_classes: int) -> tuple[int, ...]:
    """Count each class in ``labels``, shape (N,); ``INVALID`` is not counted."""
    return tuple(np.bincount(labels[labels != INVALID], minlength=num_classes).tolist())
