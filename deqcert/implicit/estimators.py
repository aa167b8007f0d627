"""Fixed points that can be differentiated, and the estimators of their gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deqcert.errors import require, require_count
from deqcert.solvers import Broyden, Function, Solution, Solver

BackwardMonitor = Callable[[Solution], None]
"""Receives the solution of a backward solve, e.g. to log its steps and residual."""


class FixedPoint(NamedTuple):
    """A fixed point with its graph.

    Attributes:
        value: z*, differentiable with respect to whatever F closes over; shape (B, ...).
        state: A point of the graph at which F was evaluated, shape (B, ...): a leaf, except after unrolling.
        fz: F(state) with its graph, shape (B, ...): what Jacobian products are taken of.
        solution: What the forward solver reported; None after unrolling.
    """

    value: Tensor
    state: Tensor
    fz: Tensor
    solution: Solution | None


class GradientEstimator(ABC):
    """How a fixed point z* = F(z*) is reached and how the gradient passes through it.

    F may close over parameters, inputs or both; the gradient reaches those that require one.
    """

    @abstractmethod
    def fixed_point(
        self, function: Function, start: Tensor, solver: Solver, monitor: BackwardMonitor | None = None
    ) -> FixedPoint:
        """Reach z = F(z) by ``solver`` from ``start``, with the backward pass of this estimator.

        The graph is built even where gradients are switched off; no gradient passes to the start. ``monitor`` is called
        with the solution of every backward solve.
        """


class EquilibriumEstimator(GradientEstimator):
    """Solves without a graph, evaluates F once more with one, and differentiates at the solved fixed point."""

    def fixed_point(
        self, function: Function, start: Tensor, solver: Solver, monitor: BackwardMonitor | None = None
    ) -> FixedPoint:
        """Solve z = F(z) and attach this estimator's backward pass."""
        solution = solver.solve(function, start)
        state = solution.value.detach().requires_grad_()
        with torch.enable_grad():
            fz = function(state)
            return FixedPoint(self.attach(function, state, fz, monitor), state, fz, solution)

    @abstractmethod
    def attach(self, function: Function, state: Tensor, fz: Tensor, monitor: BackwardMonitor | None) -> Tensor:
        """Return z* with the backward pass of this estimator, from F(state) with its graph.

        ``state`` is the solved fixed point, a leaf that requires a gradient.
        """


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
class ImplicitAdjoint(EquilibriumEstimator):
    """Implicit function theorem: the gradient g solves g = Jᵀg + ∂L/∂z* (Bai et al. 2019, theorem 1).

    Args:
        solver: Solver of the linear backward fixed point; published MDEQs use Broyden with 7 or 14 steps. Gradients
            are small beside the ridge of Anderson, which is absolute: set it to 0.
    """

    solver: Solver = field(default_factory=lambda: Broyden(max_steps=7, tolerance=1e-3))

    def attach(self, function: Function, state: Tensor, fz: Tensor, monitor: BackwardMonitor | None) -> Tensor:
        """Solve the adjoint equation in the backward pass, with vector-Jacobian products of ``fz``."""

        def solve(gradient: Tensor) -> Tensor:
            def adjoint(g: Tensor) -> Tensor:
                with torch.enable_grad():
                    (product,) = torch.autograd.grad(fz, state, g, retain_graph=True)
                return product + gradient

            solution = self.solver.solve(adjoint, gradient)
            if monitor is not None:
                monitor(solution)
            return solution.value

        value: Tensor = _Adjoint.apply(fz, solve)
        return value


class _Adjoint(torch.autograd.Function):
    """The identity, whose backward pass hands the gradient to ``solve``."""

    @staticmethod
    def forward(ctx: Any, fz: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        return fz.view_as(fz)

    # The backward solve has no graph: a second derivative would be wrong without notice.
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.solve(gradients[0]), None


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
