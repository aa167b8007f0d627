"""Fixed points of earlier solves as starts of later ones, for any DEQ and any function."""

from deqcert.reuse.cache import FixedPointCache, Policy, Savings

__all__ = ["FixedPointCache", "Policy", "Savings"]
