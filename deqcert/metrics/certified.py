"""The metrics as torchmetrics classes, for any number of batches and processes.

All take ``update(prediction, radius, label)``. In a ``MetricCollection`` they need ``compute_groups=False``: by default
torchmetrics merges metrics whose states have equal names and, after one batch, equal values.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from deqcert.errors import DataError
from deqcert.metrics import functional as F
from deqcert.statistics import ABSTAIN


class _MeanOverImages(Metric):
    """Mean over images. Only sums are kept: processes may have seen different numbers of images.

    Args:
        size: Shape of the mean.
        **kwargs: Settings of every :class:`torchmetrics.Metric`, e.g. ``sync_on_compute``.
    """

    full_state_update = False
    is_differentiable = False
    total: Tensor
    images: Tensor

    def __init__(self, size: tuple[int, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, radius: Tensor, label: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: ``(B,)`` predicted classes, −1 = abstain.
            radius: ``(B,)`` certified ℓ2 radii, 0 for an abstention.
            label: ``(B,)`` true classes.

        Raises:
            DataError: The batch is empty, the shapes differ, a radius is negative or not finite, or an abstention has
                one.
        """
        if not prediction.shape == radius.shape == label.shape:
            shapes = ", ".join(str(tuple(each.shape)) for each in (prediction, radius, label))
            raise DataError(f"expected prediction, radius and label of one shape (B,), got {shapes}")
        abstained = prediction == ABSTAIN
        if bool((abstained & (radius > 0)).any()):
            raise DataError("an abstention (prediction -1) has a certified radius > 0")
        correct = (prediction == label) & ~abstained
        checked = F.checked(radius.numpy(force=True), correct.numpy(force=True))
        mean = self._mean(prediction.numpy(force=True), *checked)
        self.total += torch.as_tensor(mean, dtype=torch.float64, device=self.total.device) * len(radius)
        self.images += len(radius)

    def compute(self) -> Tensor:
        """Return the mean over all images so far; NaN before the first."""
        return self.total / self.images

    @abstractmethod
    def _mean(self, prediction: Any, radius: Any, correct: Any) -> float | F.FloatArray:
        """Return the mean over the images of a batch, from arrays of shape (B,)."""


class AverageCertifiedRadius(_MeanOverImages):
    """:func:`~deqcert.metrics.average_certified_radius`; ``compute`` gives a float64 scalar.

    Example:
        >>> import torch
        >>> metric = AverageCertifiedRadius()
        >>> metric.update(torch.tensor([3, 1]), torch.tensor([0.5, 0.9]), label=torch.tensor([3, 2]))
        >>> metric.update(torch.tensor([-1]), torch.tensor([0.0]), label=torch.tensor([0]))
        >>> metric.compute()
        tensor(0.1667, dtype=torch.float64)
    """

    higher_is_better = True

    def _mean(self, prediction: Any, radius: Any, correct: Any) -> float:
        return F.average_certified_radius(radius, correct)


class CertifiedAccuracy(_MeanOverImages):
    """:func:`~deqcert.metrics.certified_accuracy`; ``compute`` gives ``(R,)`` float64 fractions, a scalar if R = 1.

    Args:
        radii: The R values of r, in the unit of the radius.
        **kwargs: Settings of every :class:`torchmetrics.Metric`.

    Raises:
        SettingError: ``radii`` is empty or has a negative or non-finite value.
    """

    higher_is_better = True

    def __init__(self, radii: Sequence[float], **kwargs: Any) -> None:
        F.demand_radii(radii)
        super().__init__(size=(len(radii),), **kwargs)
        self.radii = tuple(radii)

    def _mean(self, prediction: Any, radius: Any, correct: Any) -> F.FloatArray:
        return F.certified_accuracy(radius, correct, self.radii)


class AbstentionRate(_MeanOverImages):
    """:func:`~deqcert.metrics.abstention_rate`; ``compute`` gives a float64 scalar in [0, 1]."""

    higher_is_better = False

    def _mean(self, prediction: Any, radius: Any, correct: Any) -> float:
        return F.abstention_rate(prediction)
