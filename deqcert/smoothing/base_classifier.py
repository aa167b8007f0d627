"""The base classifier f of a DEQ: a network, a solver and a start make a fixed function of one input."""

from __future__ import annotations

from torch import Tensor, nn

from deqcert.errors import require
from deqcert.models import DEQ, Start
from deqcert.solvers import Anderson, Broyden, Solver

CONVERGED = Anderson(max_steps=30, tolerance=1e-3)  # solver of the published base classifiers


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
        computed = network.start_kind != "zero" and network.start_sigma != 0
        allowed = "is missing from the network; deqcert anchor computes it"
        require(start == "zero" or computed, "start", start, allowed)
        self.network, self.solver, self.start = network, solver, start
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images ``x``, shape (B, C, H, W) to (B, classes)."""
        return self.network.solve(x, self.solver, self.start)[0]

    @property
    def name(self) -> str:
        """Name for tables, e.g. ``standard-30A`` or ``anchored-3N-learned``."""
        steps = solver_name(self.solver)
        return f"standard-{steps}" if self.start == "zero" else f"anchored-{steps}-{self.network.start_kind}"


def solver_name(solver: Solver) -> str:
    """Return the field's name of a solver: its steps k, then A(nderson), B(royden) or N (plain)."""
    letter = "A" if isinstance(solver, Anderson) else "B" if isinstance(solver, Broyden) else "N"
    return f"{solver.max_steps}{letter}"
