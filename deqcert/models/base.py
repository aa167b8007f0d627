"""The contract of a deep equilibrium classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from deqcert.solvers import Solution, Solver


class DEQ(nn.Module, ABC):
    """A classifier whose features are the fixed point z* = cell(z*, inject(x)).

    Implement :meth:`inject`, :meth:`cell`, :meth:`head` and :meth:`initial_state` and everything here trains and
    certifies your network. Two rules make certificates true: in evaluation mode each method must treat the rows of a
    batch separately (no batch statistics) and must not draw random numbers.

    Args:
        solver: Solver of :meth:`forward`; training and certification bring their own.
    """

    def __init__(self, solver: Solver) -> None:
        super().__init__()
        self.solver = solver

    @abstractmethod
    def inject(self, x: Tensor) -> Any:
        """Compute everything that depends on the input only, once per sample.

        Args:
            x: Images in [0, 1], possibly with noise added, shape (B, C, H, W).

        Returns:
            The injection: a tensor or a tuple of tensors.
        """

    @abstractmethod
    def initial_state(self, injection: Any) -> Tensor:
        """Return the cold start, shape (B, ...)."""

    @abstractmethod
    def cell(self, z: Tensor, injection: Any) -> Tensor:
        """Return one evaluation of the cell, shape of ``z``."""

    @abstractmethod
    def head(self, z: Tensor) -> Tensor:
        """Return the logits of the states ``z``, shape (B, classes)."""

    def solve(self, x: Tensor, solver: Solver, start: Tensor | None = None) -> tuple[Tensor, Solution]:
        """Inject, solve without a graph, and classify.

        Args:
            x: Images, shape (B, C, H, W).
            solver: Solver of the fixed point.
            start: Start of the solve, shape of the state; None is the cold start.

        Returns:
            Logits, shape (B, classes), and the solution.
        """
        with torch.no_grad():
            injection = self.inject(x)
            if start is None:
                start = self.initial_state(injection)
            solution = solver.solve(lambda z: self.cell(z, injection), start)
            return self.head(solution.value), solution

    def forward(self, x: Tensor) -> Tensor:
        """Classify by a cold start and a full solve; shape (B, C, H, W) to (B, classes). No gradient."""
        return self.solve(x, self.solver)[0]
