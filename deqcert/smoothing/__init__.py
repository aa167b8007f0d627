"""Randomized smoothing: from one image to votes. Knows classifiers, noise and solvers; neither alpha nor Lightning."""

from deqcert.smoothing.anchored import Anchored
from deqcert.smoothing.base import Smoothing
from deqcert.smoothing.convergence import (
    ConvergenceReport,
    ConvergenceSettings,
    MismatchCount,
    convergence_report,
    residual_curve,
)
from deqcert.smoothing.engine import Engine, Execution
from deqcert.smoothing.serialized import Serialized
from deqcert.smoothing.standard import Standard

__all__ = [
    "Anchored",
    "ConvergenceReport",
    "ConvergenceSettings",
    "Engine",
    "Execution",
    "MismatchCount",
    "Serialized",
    "Smoothing",
    "Standard",
    "convergence_report",
    "residual_curve",
]
