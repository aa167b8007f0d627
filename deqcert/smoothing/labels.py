"""Labels and their counts; logits that are not finite vote for nobody."""

from __future__ import annotations

import torch
from torch import Tensor

INVALID = -1


def labels_of(logits: Tensor) -> Tensor:
    """Return the class of each row, or ``INVALID`` where a logit is NaN or infinite; shape (B, C) to (B,)."""
    return torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), INVALID)


def count_labels(labels: Tensor, num_classes: int) -> tuple[int, ...]:
    """Count each class in ``labels``, shape (N,); ``INVALID`` is not counted."""
    counts = torch.bincount(labels[labels != INVALID], minlength=num_classes)
    return tuple(int(count) for count in counts.tolist())
