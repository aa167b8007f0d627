"""Metrics of certified robustness, as pure functions and as torchmetrics classes.

In come predictions (−1 = abstain), certified ℓ2 radii and labels, one per image; out go the numbers that
papers print. Every metric is the mean of a per-image score over *all* images: an abstention or a wrong
class scores 0. :mod:`deqcert.metrics.functional` holds the formulas, the classes only sum the scores, so
they stay exact over any number of batches and processes.
"""

from deqcert.metrics.certified import AbstentionRate, AverageCertifiedRadius, CertifiedAccuracy
from deqcert.metrics.functional import (
    ABSTAIN,
    abstention_rate,
    average_certified_radius,
    certified_accuracy,
    high_probability_certified_accuracy,
)

__all__ = [
    "ABSTAIN",
    "AbstentionRate",
    "AverageCertifiedRadius",
    "CertifiedAccuracy",
    "abstention_rate",
    "average_certified_radius",
    "certified_accuracy",
    "high_probability_certified_accuracy",
]
