"""Certified robustness for deep equilibrium models by (serialized) randomized smoothing."""

from deqcert.version import __version__

__all__ = ["__version__"]
