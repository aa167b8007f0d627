"""Fixed points that can be differentiated.

A fixed point z* = F(z*; θ) is found without a graph and evaluated once more with one. What differs is what the
backward pass does with the gradient that arrives at z*.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deqcert.errors import require
from deqcert.solvers import Broyden, Function, Solution, Solver


class FixedPoint(NamedTuple):
    """A fixed point with its graph.

    Attributes:
        value: z*, differentiable with respect to whatever F closes over; shape (B, ...).
        state: The leaf at which F was evaluated last, shape (B, ...).
        image: F(state) with its graph, shape (B, ...): what Jacobian products are taken of.
        solution: What the forward solver reported; None after unrolling.
    """

    value: Tensor
    state: Tensor
    image: Tensor
    solution: Solution | None


BackwardMonitor = Callable[[Solution], None]
"""Receives the solution of a backward solve, e.g. to log its steps and residual."""


class GradientEstimator(ABC):
    """How the gradient passes through a fixed point."""

    @abstractmethod
    def attach(self, state: Tensor, image: Tensor, monitor: BackwardMonitor | None) -> Tensor:
        """Return z* with the backward pass of this estimator, from ``image = F(state)``."""

    def fixed_point(
        self, function: Function, start: Tensor, solver: Solver, monitor: BackwardMonitor | None = None
    ) -> FixedPoint:
        """Solve z = F(z) and attach this estimator's backward pass.

        Args:
            function: F, row by row; shape (B, ...) to the same shape.
            start: Start of the solve, shape (B, ...).
            solver: Forward solver.
            monitor: Called with the solution of every backward solve.

        Returns:
            The :class:`FixedPoint`; its forward pass costs one evaluation beyond the solve.
        """
        solution = solver.solve(function, start)
        state = solution.value.detach().requires_grad_()
        with torch.enable_grad():
            image = function(state)
            return FixedPoint(self.attach(state, image, monitor), state, image, solution)


class _Adjoint(torch.autograd.Function):
    """The identity, whose backward pass hands the gradient to ``solve``."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        return image.view_as(image)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.solve(gradients[0]), None


@dataclass(frozen=True)
class ImplicitAdjoint(GradientEstimator):
    """Implicit function theorem: the gradient g solves g = Jᵀg + ∂L/∂z* (Bai et al. 2019, theorem 1).

    Args:
        solver: Solver of the linear backward fixed point; published MDEQs use Broyden with 7 or 14 steps.
    """

    solver: Solver = field(default_factory=lambda: Broyden(max_steps=7, tolerance=1e-3))

    def attach(self, state: Tensor, image: Tensor, monitor: BackwardMonitor | None) -> Tensor:
        """Solve the adjoint equation in the backward pass, with vector-Jacobian products of ``image``."""

        def solve(gradient: Tensor) -> Tensor:
            def adjoint(g: Tensor) -> Tensor:
                with torch.enable_grad():
                    (product,) = torch.autograd.grad(image, state, g, retain_graph=True)
                return product + gradient

            solution = self.solver.solve(adjoint, gradient)
            if monitor is not None:
                monitor(solution)
            return solution.value

        value: Tensor = _Adjoint.apply(image, solve)
        return value


@dataclass(frozen=True)
class OneStep(GradientEstimator):
    """Jacobian-free backpropagation: the gradient of the last evaluation only (Fung et al. 2022)."""

    def attach(self, state: Tensor, image: Tensor, monitor: BackwardMonitor | None) -> Tensor:
        """Return the image itself: its graph ends at the detached state."""
        return image


def unrolled_fixed_point(function: Function, start: Tensor, steps: int) -> FixedPoint:
    """Iterate F plainly and differentiate through every step (weight-tied pre-training).

    Args:
        function: F, row by row.
        start: X_0, shape (B, ...).
        steps: Evaluations of F, >= 1.

    Returns:
        The fixed point X_steps; ``state`` and ``image`` are X_{steps−1} and X_steps, inside the graph.

    Raises:
        SettingError: If ``steps`` < 1.
    """
    require(steps >= 1, "steps", steps, "must be an integer >= 1")
    state = image = start.detach().requires_grad_()
    for _ in range(steps):
        state, image = image, function(image)
    return FixedPoint(image, state, image, None)
