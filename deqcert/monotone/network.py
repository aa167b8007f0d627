"""Networks whose fixed point exists and is unique because of how their weights are parametrized."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import ClassVar, NamedTuple, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Self

from deqcert.errors import require
from deqcert.models.base import DEQ, StatedNetwork
from deqcert.models.certified import BoundedLogits, TrainableLipschitz
from deqcert.monotone.constants import BOUND, rounding
from deqcert.solvers import Picard, Solver
from deqcert.solvers.splitting import LinearOperator, Splitting, forward_backward, peaceman_rachford


class MonotoneInjection(NamedTuple):
    """U x + b of each image, shape (B, ...), and W, which is the same for all of them."""

    bias: Tensor
    operator: LinearOperator


class OperatorBounds(NamedTuple):
    """What is proved of W in float64.

    Attributes:
        monotone: μ with Λ(I − W) >= μ I; not positive where nothing is proved.
        norm: Upper bound on the norm of ΛW and on that of its terms with absolute values.
    """

    monotone: Tensor
    norm: Tensor


class MonotoneDEQ(DEQ, StatedNetwork, TrainableLipschitz):
    """y = W_o z* + b_o with z* = relu(W z* + U x + b), where Λ(I − W) is strongly monotone for a diagonal Λ > 0.

    The cell is one step of a splitting of that equation, whose state is z for forward-backward splitting and u with
    z = relu(u) for Peaceman–Rachford splitting. W is computed from its parameters once per batch, by
    :meth:`for_inference` once.
    """

    UNSEEN: ClassVar[tuple[str, ...]] = ("mean", "std", "splitting", "alpha")

    _prepared: LinearOperator | None = None
    _bounds: OperatorBounds | None = None
    decoder: nn.Linear
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
        """Return U x + b of images in [0, 1], shape (B, ...)."""

    @abstractmethod
    def readout(self, z: Tensor) -> Tensor:
        """Return the logits W_o z + b_o, shape (B, ...) to (B, classes)."""

    @abstractmethod
    def readout_matrix(self) -> Tensor:
        """Return W_o, shape (classes, n), n being the numbers of a state."""

    @abstractmethod
    def metric(self) -> Tensor:
        """Return the diagonal of Λ, of a shape that multiplies states."""

    @abstractmethod
    def operator_bounds(self) -> OperatorBounds:
        """Return what is proved of W."""

    @property
    @abstractmethod
    def terms(self) -> int:
        """Roundings that one entry of W z + U x + b, or of the logits, goes through at most."""

    @abstractmethod
    def sizes(self, z: Tensor, x: Tensor) -> Tensor:
        """Return |W| |z| + |U| |x| + |b|, shape (B, ...), to which the rounding of W z + U x + b is relative."""

    def activation(self, z: Tensor) -> Tensor:
        """Return σ(z): relu; a network may set fixed entries to zero besides."""
        return z.relu()

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
        """Return zeros, shape (B, ...)."""
        like = next(self.parameters())  # under autocast the injection is too coarse for a solver
        return torch.zeros_like(injection.bias, dtype=like.dtype)

    def cell(self, z: Tensor, injection: MonotoneInjection) -> Tensor:
        """Return one step of the splitting, shape of ``z``."""
        if self.splitting == "forward_backward":
            return forward_backward(z, injection.bias, injection.operator, self.alpha, self.activation)
        return peaceman_rachford(z, injection.bias, injection.operator, self.alpha, self.activation)

    def head(self, z: Tensor) -> Tensor:
        """Return the logits of states of the splitting."""
        return self.readout(self.activation(z))

    def for_inference(self) -> Self:
        """Return a copy whose W is computed once, with what is proved of it.

        Raises:
            SettingError: If :meth:`demand_step_size` does, for the solver of ``forward``.
        """
        self.demand_step_size(self.solver)
        twin = copy.copy(self)
        with torch.no_grad():
            twin._prepared, twin._bounds = self.operator(), self.operator_bounds()
        return twin

    @torch.no_grad()
    def bounded_logits(self, x: Tensor, solver: Solver) -> BoundedLogits:
        """Solve, evaluate the equation once more, and bound how far that is from the exact fixed point.

        With y = σ(W z + U x + b) and Λ(I − W) >= μ I: ‖y − z*‖ <= ‖ΛW(z − y)‖ / μ, whatever z is. That y is computed
        with an error δ adds ‖δ‖ (1 + ‖ΛW‖ / μ).
        """
        injection = self.inject(x)
        solution = solver.solve(lambda z: self.cell(z, injection), self.initial_state(injection))
        z = self.activation(solution.value)
        y = self.activation(injection.operator(z) + injection.bias)
        (mu, norm), relative = self._bounds or self.operator_bounds(), rounding(self.terms)
        delta = relative * _norms(self.sizes(z, x))
        moved = _norms(self.metric() * injection.operator(z - y)) + relative * norm * _norms(z - y)
        distance = torch.where(mu > 0, (moved / mu + delta * (1 + norm / mu)) * BOUND, torch.inf)
        logits, rows = self.readout(y), self.readout_matrix()
        predicted = logits.argmax(dim=1)
        lengths = torch.stack([(row - rows).norm(dim=1) for row in rows])[predicted]  # (B, classes)
        last = y.abs().flatten(1) @ rows.abs().mT + self.decoder.bias.abs()
        last = relative * (last + last.gather(1, predicted[:, None]))
        errors = (lengths * distance[:, None] + last) * BOUND
        return BoundedLogits(logits, errors, solution.steps + 1, solution.residual)


def _norms(states: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(states.flatten(1), dim=1)
    return norms
