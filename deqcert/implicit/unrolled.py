"""Gradients through a few evaluations of F, without a backward solve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqcert.errors import require, require_count
from deqcert.implicit.base import BackwardMonitor, EquilibriumEstimator, FixedPoint, GradientEstimator
from deqcert.solvers import Function, Solver


@dataclass(frozen=True)
class OneStep(EquilibriumEstimator):
    """Jacobian-free backpropagation: the gradient of the last evaluation only (Fung et al. 2022)."""

    def attach(self, function: Function, state: Tensor, fz: Tensor, monitor: BackwardMonitor | None) -> Tensor:
        """Return ``fz``: its graph ends at the detached state."""
        return fz


@dataclass(frozen=True)
class Phantom(EquilibriumEstimator):
    """Unrolling-based phantom gradient (Geng et al., "On Training Implicit Models", NeurIPS 2021).

    From the detached z*, k steps z ← λ F(z) + (1 − λ) z with a graph. At the fixed point the gradient that reaches
    the arguments of F is λ Σ_{t<k} (λJᵀ + (1 − λ)I)ᵗ ∂L/∂z*: a damped Neumann series of the implicit gradient.

    Args:
        steps: k, evaluations with a graph, an integer >= 1. One step with damping 1 is :class:`OneStep`.
        damping: λ, the weight of the new evaluation in each step, in (0, 1]; 1 is undamped.

    Raises:
        SettingError: If a setting is out of range.
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        require_count("steps", self.steps, minimum=1)
        require(0 < self.damping <= 1, "damping", self.damping, "must be in (0, 1]")

    def attach(self, function: Function, state: Tensor, fz: Tensor, monitor: BackwardMonitor | None) -> Tensor:
        """Return the last iterate of the damped steps, of which ``fz`` is the first evaluation."""
        value = self.damping * fz + (1 - self.damping) * state.detach()
        for _ in range(self.steps - 1):
            value = self.damping * function(value) + (1 - self.damping) * value
        return value


@dataclass(frozen=True)
class Unrolled(GradientEstimator):
    """Iterates F plainly and differentiates through all steps: the weight-tied pre-training of Bai et al. 2020.

    Args:
        steps: Evaluations of F, an integer >= 1; the memory grows with them.

    Raises:
        SettingError: If ``steps`` is out of range.
    """

    steps: int = 8

    def __post_init__(self) -> None:
        require_count("steps", self.steps, minimum=1)

    def fixed_point(
        self, function: Function, start: Tensor, solver: Solver, monitor: BackwardMonitor | None = None
    ) -> FixedPoint:
        """Return X_steps with X_{steps−1} as its state, inside the graph; neither solver nor monitor is used."""
        # A leaf that requires a gradient: a state to take Jacobian products at even after a single step.
        state = fz = start.detach().requires_grad_()
        with torch.enable_grad():
            for _ in range(self.steps):
                state, fz = fz, function(fz)
        return FixedPoint(fz, state, fz, None)
