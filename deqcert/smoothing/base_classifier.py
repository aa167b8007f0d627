"""The base classifier f of a DEQ: a network, a solver and a start make a fixed function of one input."""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from deqcert.errors import SettingError, require
from deqcert.models import DEQ, Start
from deqcert.solvers import Anderson, Broyden, Solution, Solver, Workspace

CONVERGED = Anderson(max_steps=30, tolerance=1e-3)
"""Solver of the published base classifiers."""


class SolvedClassifier(nn.Module):
    """f(x) = head(z), z being what ``solver`` returns from ``start``.

    A certificate is about this function: another solver or another start is another f. From "zero" and solved far
    enough it is the published base classifier. A few steps from the network's "anchor", which depends on the one noisy
    sample and the checkpoint only, are a base classifier of their own, with independent predictions and no audit.

    Args:
        network: The DEQ, in evaluation mode.
        solver: Solver of every input.
        start: "zero" is the cold start, "anchor" the start that the network has computed (``deqcert anchor``).

    Raises:
        SettingError: ``start`` is neither, or the network has no such start.
    """

    def __init__(self, network: DEQ, solver: Solver = CONVERGED, start: Start = "zero") -> None:
        super().__init__()
        require(start in ("zero", "anchor"), "start", start, "must be zero or anchor")
        if start == "anchor":
            computed = network.start_kind != "zero" and network.start_sigma != 0
            require(computed, "start", start, "is missing from the network; deqcert anchor computes it")
        self.network = network
        self.solver = solver
        self.start: Start = start
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images ``x``, shape (B, C, H, W) to (B, classes)."""
        return self.solve(x)[0]

    def solve(self, x: Tensor, workspace: Workspace | None = None) -> tuple[Tensor, Solution]:
        """Return logits, shape (B, classes), and the solution; see :meth:`deqcert.models.DEQ.solve`."""
        return self.network.solve(x, self.solver, self.start, workspace)

    @property
    def name(self) -> str:
        """Name for tables, e.g. ``standard-30A`` or ``anchored-3N-learned``."""
        if self.start == "zero":
            return f"standard-{solver_name(self.solver)}"
        return f"anchored-{solver_name(self.solver)}-{self.network.start_kind}"

    def warn_about_noise(self, sigma: float) -> None:
        """Warn if the start was computed under other noise than ``sigma``."""
        computed = self.network.start_sigma
        if self.start == "anchor" and computed is not None and computed != sigma:
            warnings.warn(
                f"The {self.network.start_kind} start was computed at sigma = {computed}, but is certified at "
                f"sigma = {sigma}.",
                stacklevel=3,
            )


def base_classifier(network: nn.Module, solver: Solver = CONVERGED, start: Start = "zero") -> nn.Module:
    """Return f: a :class:`SolvedClassifier` of a DEQ; any other module is a base classifier as it is.

    Raises:
        SettingError: ``start`` is not "zero", and the network is not a DEQ.
    """
    if isinstance(network, DEQ):
        return SolvedClassifier(network, solver, start)
    if start != "zero":
        raise SettingError("start", start, f"needs a DEQ; a {type(network).__name__} has no solver")
    return network


def solver_name(solver: Solver) -> str:
    """Return the field's name of a solver: its steps, then A(nderson), B(royden) or N (plain).

    kA and kN return X_k after k evaluations of F; kB the best of X_1, ..., X_k after k + 1.
    """
    letters = {Anderson: "A", Broyden: "B"}
    return f"{solver.max_steps}{next((letter for kind, letter in letters.items() if isinstance(solver, kind)), 'N')}"
