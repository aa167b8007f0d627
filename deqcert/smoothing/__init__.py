"""Randomized smoothing: from one image to votes. Knows classifiers, noise and solvers; neither alpha nor Lightning."""

from deqcert.smoothing.base import Smoothing
from deqcert.smoothing.serialized import Serialized
from deqcert.smoothing.standard import Standard

__all__ = ["Serialized", "Smoothing", "Standard"]
