"""Gradients through a fixed point, and what its Jacobian says about convergence. Torch only."""

from deqcert.implicit.adjoint import ImplicitAdjoint
from deqcert.implicit.base import BackwardMonitor, EquilibriumEstimator, FixedPoint, GradientEstimator
from deqcert.implicit.jacobian import hutchinson_penalty, spectral_radius
from deqcert.implicit.unrolled import OneStep, Phantom, Unrolled

__all__ = [
    "BackwardMonitor",
    "EquilibriumEstimator",
    "FixedPoint",
    "GradientEstimator",
    "ImplicitAdjoint",
    "OneStep",
    "Phantom",
    "Unrolled",
    "hutchinson_penalty",
    "spectral_radius",
]
