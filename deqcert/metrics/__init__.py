"""The numbers that papers on certified robustness print.

The formulas are functions on NumPy arrays and need no torch; :mod:`deqcert.metrics.certified` accumulates them as
torchmetrics classes.
"""

from deqcert.metrics.functional import abstention_rate, average_certified_radius, certified_accuracy

__all__ = ["abstention_rate", "average_certified_radius", "certified_accuracy"]
