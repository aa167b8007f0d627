"""Broyden's method by scipy, to compare with."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from deqcert.models import DEQ


@torch.no_grad()
def broyden_by_scipy(network: DEQ, x: Tensor, steps: int) -> np.ndarray:
    """Return what ``steps`` steps from the cold start find for one image, shape (1, C, H, W), as a flat array."""
    injection = network.inject(x)
    start = network.initial_state(injection)

    def gap(z: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(z).view_as(start)
        return (network.cell(state, injection) - state).flatten().numpy()

    # alpha = 1 begins with the Jacobian -I, as we do.
    return scipy.optimize.broyden1(gap, start.flatten().numpy(), iter=steps, alpha=1.0, line_search=None)
