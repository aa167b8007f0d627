"""Randomized smoothing: base classifier f, smoothed classifier g, and strategies that take votes. No Lightning."""

from deqcert.smoothing.base_classifier import SolvedClassifier
from deqcert.smoothing.engine import Engine
from deqcert.smoothing.execution import Execution
from deqcert.smoothing.incremental import Incremental
from deqcert.smoothing.noise import Stream
from deqcert.smoothing.sampling import Sampling
from deqcert.smoothing.serialized import Serialized
from deqcert.smoothing.smoothed import SmoothedClassifier, Smoothing
from deqcert.smoothing.standard import Standard

__all__ = [
    "Engine",
    "Execution",
    "Incremental",
    "Sampling",
    "Serialized",
    "SmoothedClassifier",
    "Smoothing",
    "SolvedClassifier",
    "Standard",
    "Stream",
]
