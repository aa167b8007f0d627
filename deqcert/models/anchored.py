"""The classifier that anchored certificates are about."""

from __future__ import annotations

from torch import Tensor, nn

from deqcert.models.base import DEQ
from deqcert.solvers import Solver


class AnchoredClassifier(nn.Module):
    """k solver steps from the anchored start of a DEQ: a fixed function of one image.

    Certificates by :class:`deqcert.smoothing.Anchored` are about this function, so this is what must be deployed.

    Args:
        network: The DEQ, with the start that was certified.
        solver: The solver that was certified.
    """

    def __init__(self, network: DEQ, solver: Solver) -> None:
        super().__init__()
        self.network = network
        self.solver = solver

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images ``x`` in [0, 1], shape (B, C, H, W) to (B, classes). No gradient."""
        return self.network.solve(x, self.solver, anchored=True)[0]
