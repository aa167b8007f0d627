"""Gradients through a fixed point, and what its Jacobian says about convergence. Torch only."""

from deqcert.implicit.estimators import (
    BackwardMonitor,
    EquilibriumEstimator,
    FixedPoint,
    GradientEstimator,
    ImplicitAdjoint,
    OneStep,
    Phantom,
    Unrolled,
)
from deqcert.implicit.jacobian import hutchinson_penalty, spectral_radius

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
