"""The same metrics accumulated over batches and processes.

All take ``update(prediction, radius, label)``, so that they fit into one ``MetricCollection``. Only sums
are kept and only sums are reduced: processes may have seen different numbers of images.
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


class _MeanOverImages(Metric):
    """Mean of a per-image score. Subclasses say what the score is.

    Args:
        score: Name of the state that sums the score. No two different metrics may share it: a
            ``MetricCollection`` merges metrics whose states have equal names and, after one batch, equal
            values.
        size: Shape of the score of one image.
        **kwargs: Settings of every :class:`torchmetrics.Metric`, e.g. ``sync_on_compute``.
    """

    full_state_update = False
    is_differentiable = False
    images: Tensor

    def __init__(self, score: str, size: tuple[int, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._score_name = score
        self.add_state(score, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, radius: Tensor, label: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: ``(B,)`` predicted classes, −1 = abstain.
            radius: ``(B,)`` certified ℓ2 radii, 0 for an abstention.
            label: ``(B,)`` true classes.

        Raises:
            DataError: If the shapes differ, a radius is negative or not finite, or an abstention has one.
        """
        F.check_radius(radius, prediction)
        F.check_radius(radius, label)
        abstained = prediction == F.ABSTAIN
        if bool((abstained & (radius > 0)).any()):
            raise DataError("an abstention (prediction -1) has a certified radius > 0")
        score = self._score(prediction, radius, correct=(prediction == label) & ~abstained)
        setattr(self, self._score_name, self._score_sum + score.sum(dim=0))
        self.images += len(radius)

    def compute(self) -> Tensor:
        """Return the mean over all images so far; NaN before the first."""
        return self._score_sum / self.images

    @property
    def _score_sum(self) -> Tensor:
        score_sum: Tensor = getattr(self, self._score_name)
        return score_sum

    @abstractmethod
    def _score(self, prediction: Tensor, radius: Tensor, correct: Tensor) -> Tensor:
        """Return the score of each image, shape (B, ...)."""


class AverageCertifiedRadius(_MeanOverImages):
    r"""Average certified radius, :math:`\frac{1}{|S|} \sum_{i \in S} R_i \, 1[\hat y_i = y_i]`.

    Returns:
        ``compute`` gives a float64 scalar in the unit of the radius.

    See :func:`deqcert.metrics.average_certified_radius` for the source.

    Example:
        >>> import torch
        >>> metric = AverageCertifiedRadius()
        >>> metric.update(torch.tensor([3, 1]), torch.tensor([0.5, 0.9]), label=torch.tensor([3, 2]))
        >>> metric.update(torch.tensor([-1]), torch.tensor([0.0]), label=torch.tensor([0]))
        >>> metric.compute()
        tensor(0.1667, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("certified_radius", **kwargs)

    def _score(self, prediction: Tensor, radius: Tensor, correct: Tensor) -> Tensor:
        return F.certified_radius(radius, correct)


class CertifiedAccuracy(_MeanOverImages):
    r"""Certified accuracy, :math:`\frac{1}{|S|} \sum_{i \in S} 1[\hat y_i = y_i] \, 1[R_i \ge r]` at each r.

    Args:
        radii: The R values of r, in the unit of the radius.

    Returns:
        ``compute`` gives ``(R,)`` float64 fractions in [0, 1]; torchmetrics makes a scalar of them if R = 1.

    Raises:
        SettingError: If ``radii`` is empty or has a negative or non-finite value.

    See :func:`deqcert.metrics.certified_accuracy` for the source.

    Example:
        >>> import torch
        >>> metric = CertifiedAccuracy(radii=[0.0, 0.25, 0.5])
        >>> metric.update(torch.tensor([3, 1]), torch.tensor([0.3, 0.9]), label=torch.tensor([3, 2]))
        >>> metric.compute()
        tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, radii: Sequence[float], **kwargs: Any) -> None:
        F.check_radii(radii)
        super().__init__(f"certified_at_{'_'.join(map(str, radii))}", size=(len(radii),), **kwargs)
        self.radii = tuple(radii)

    def _score(self, prediction: Tensor, radius: Tensor, correct: Tensor) -> Tensor:
        return F.is_certified(radius, correct, self.radii)


class AbstentionRate(_MeanOverImages):
    r"""Abstention rate, :math:`\frac{1}{|S|} \sum_{i \in S} 1[\hat y_i = -1]`.

    Returns:
        ``compute`` gives a float64 scalar in [0, 1].

    Example:
        >>> import torch
        >>> metric = AbstentionRate()
        >>> metric.update(torch.tensor([3, -1]), torch.tensor([0.3, 0.0]), label=torch.tensor([3, 2]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("abstained", **kwargs)

    def _score(self, prediction: Tensor, radius: Tensor, correct: Tensor) -> Tensor:
        return F.is_abstention(prediction)
