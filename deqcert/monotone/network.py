"""Networks whose fixed point exists and is unique because of how their weights are parametrized."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from typing_extensions import Self

from deqcert.errors import require
from deqcert.models.base import DEQ, StatedNetwork
from deqcert.models.certified import LipschitzClassifier
from deqcert.solvers import Picard, Solver
from deqcert.solvers.splitting import LinearOperator, Splitting, forward_backward, peaceman_rachford


class MonotoneInjection(NamedTuple):
    """U x + b of each image, shape (B, n), and W, which is the same for all of them."""

    bias: Tensor
    operator: LinearOperator


class MonotoneDEQ(DEQ, StatedNetwork, LipschitzClassifier):
    """y = W_o z* + b_o with z* = relu(W z* + U x + b), where Λ(I − W) is strongly monotone for a diagonal Λ > 0.

    The cell is one step of a splitting of that equation, whose state is z for forward-backward splitting and u with
    z = relu(u) for Peaceman–Rachford splitting. W is computed from its parameters once per batch, by
    :meth:`for_inference` once.
    """

    _prepared: LinearOperator | None = None
    splitting: Splitting
    alpha: float

    def _split(self, splitting: Splitting, alpha: float) -> None:
        """Take the settings of the splitting."""
        require(splitting in get_args(Splitting), "splitting", splitting, f"must be one of {get_args(Splitting)}")
        require(0 < alpha < float("inf"), "alpha", alpha, "must be > 0 and finite: the step size of the splitting")
        self.splitting, self.alpha = splitting, alpha

    @abstractmethod
    def operator(self) -> LinearOperator:
        """Compute W from its parameters, with their graph, for splitting with step size ``alpha``."""

    @abstractmethod
    def bias(self, x: Tensor) -> Tensor:
        """Return U x + b of images in [0, 1], shape (B, n)."""

    @abstractmethod
    def readout(self, z: Tensor) -> Tensor:
        """Return the logits W_o z + b_o, shape (B, n) to (B, classes)."""

    @abstractmethod
    def step_size_bound(self) -> float:
        """Return 2m / L²: plain iteration of forward-backward splitting converges with smaller step sizes."""

    def demand_step_size(self, solver: Solver) -> None:
        """Raise :class:`SettingError` if ``solver`` iterates plainly with a step size that need not converge."""
        if self.splitting == "forward_backward" and isinstance(solver, Picard):
            bound = self.step_size_bound()
            allowed = f"must be < {bound:.4g} = 2m / L² for Picard; Anderson and peaceman_rachford have no such bound"
            require(self.alpha < bound, "alpha", self.alpha, allowed)

    def inject(self, x: Tensor) -> MonotoneInjection:
        """Compute U x + b, and W unless it is prepared."""
        return MonotoneInjection(self.bias(x), self._prepared or self.operator())

    def initial_state(self, injection: MonotoneInjection) -> Tensor:
        """Return zeros, shape (B, n)."""
        like = next(self.parameters())  # under autocast the injection is too coarse for a solver
        return torch.zeros_like(injection.bias, dtype=like.dtype)

    def cell(self, z: Tensor, injection: MonotoneInjection) -> Tensor:
        """Return one step of the splitting, shape (B, n)."""
        if self.splitting == "forward_backward":
            return forward_backward(z, injection.bias, injection.operator, self.alpha)
        return peaceman_rachford(z, injection.bias, injection.operator, self.alpha)

    def head(self, z: Tensor) -> Tensor:
        """Return the logits of states of the splitting."""
        return self.readout(z.relu())

    def for_inference(self) -> Self:
        """Return a copy whose W is computed once.

        Raises:
            SettingError: If :meth:`demand_step_size` does, for the solver of ``forward``.
        """
        self.demand_step_size(self.solver)
        twin = copy.copy(self)
        with torch.no_grad():
            twin._prepared = self.operator()
        return twin
