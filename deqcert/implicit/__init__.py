"""Gradients through a fixed point, and what its Jacobian says about convergence. Torch only."""

from deqcert.implicit.gradients import (
    FixedPoint,
    GradientEstimator,
    ImplicitAdjoint,
    OneStep,
    unrolled_fixed_point,
)
from deqcert.implicit.jacobian import hutchinson_penalty, spectral_radius

__all__ = [
    "FixedPoint",
    "GradientEstimator",
    "ImplicitAdjoint",
    "OneStep",
    "hutchinson_penalty",
    "spectral_radius",
    "unrolled_fixed_point",
]
