"""The numbers that papers on certified robustness print.

Every metric is a mean over *all* images: an abstention or a wrong class scores 0. The formulas are functions on NumPy
arrays and need no torch; :mod:`deqcert.metrics.certified` accumulates them as torchmetrics classes.
"""

from deqcert.metrics.functional import (
    abstention_rate,
    average_certified_radius,
    certified_accuracy,
    high_probability_certified_accuracy,
)

__all__ = [
    "abstention_rate",
    "average_certified_radius",
    "certified_accuracy",
    "high_probability_certified_accuracy",
]
