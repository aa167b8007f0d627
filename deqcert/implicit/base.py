"""Fixed points that can be differentiated, and the contract of the estimators of their gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from deqcert.solvers import Function, Solution, Solver


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


BackwardMonitor = Callable[[Solution], None]
"""Receives the solution of a backward solve, e.g. to log its steps and residual."""


class GradientEstimator(ABC):
    """How a fixed point z* = F(z*) is reached and how the gradient passes through it.

    F may close over parameters, inputs or both; the gradient reaches those that require one.
    """

    @abstractmethod
    def fixed_point(
        self, function: Function, start: Tensor, solver: Solver, monitor: BackwardMonitor | None = None
    ) -> FixedPoint:
        """Reach z = F(z) with the backward pass of this estimator.

        Args:
            function: F, row by row; shape (B, ...) to the same shape.
            start: Start of the iteration, shape (B, ...); no gradient passes to it.
            solver: Forward solver.
            monitor: Called with the solution of every backward solve.

        Returns:
            The :class:`FixedPoint`; its graph is built even where gradients are switched off.
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
        """Return z*, shape of ``state``, with the backward pass of this estimator.

        Args:
            function: F.
            state: The solved fixed point, a leaf that requires a gradient, shape (B, ...).
            fz: F(state) with its graph, same shape.
            monitor: Called with the solution of every backward solve.
        """
