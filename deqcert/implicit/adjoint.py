"""The gradient by the implicit function theorem: a second, linear fixed point in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deqcert.implicit.base import BackwardMonitor, EquilibriumEstimator
from deqcert.solvers import Broyden, Function, Solver


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
