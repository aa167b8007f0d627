"""Certificates without noise and without failure probability, for networks that can prove how fast they change."""

from deqcert.deterministic.certification import Deterministic, IntervalBounds, Lipschitz, Measure, Norm

__all__ = ["Deterministic", "IntervalBounds", "Lipschitz", "Measure", "Norm"]
