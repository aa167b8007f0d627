"""Standard randomized smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deqcert.models import DEQ
from deqcert.smoothing.base import Smoothing, solver_label
from deqcert.smoothing.engine import Engine
from deqcert.solvers import Anderson, Solver
from deqcert.statistics import ChainLabels, Stopping


@dataclass(frozen=True)
class Standard(Smoothing):
    """Classifies every noisy copy from a cold start (Cohen, Rosenfeld, Kolter, ICML 2019).

    Args:
        sigma: Standard deviation of the noise, in pixels of [0, 1], > 0.
        n0: Noisy copies that select the class, >= 1.
        n: Fresh noisy copies that estimate its probability, >= 1.
        batch_size: Copies of an image per batch of noise, >= 1.
        seed: Seed of all random streams, in [0, 2^64).
        execution: How copies are spread over launches.
        chains: Parts with noise of their own that the n copies of an image are split into, from 1 to n.
        noise: "float32" noise is added as published, which rounds; "quantised" noise, for 8-bit images, is off by a
            bound that certificates subtract (docs/floating_point.md).
        solver: Solver that defines the base classifier of a DEQ; other networks ignore it.
        stopping: When an image has votes enough, looked at after each batch: n then is the most that it takes, and
            certificates use a bound that holds wherever sampling stops, if it looks at them. null takes n copies. Needs
            chains = 1 and n >= n0.

    Raises:
        SettingError: If a setting is out of range.
    """

    solver: Solver = Anderson(max_steps=30, tolerance=1e-3)
    stopping: Stopping | None = None

    @property
    def label(self) -> str:
        """E.g. ``standard-30A``."""
        return f"standard-{solver_label(self.solver)}"

    def label_for(self, classifier: nn.Module) -> str:
        """E.g. ``standard-30A`` of a DEQ, ``standard`` of another classifier."""
        return self.label if isinstance(classifier, DEQ) else "standard"

    @property
    def base_solver(self) -> Solver:
        """That of every copy."""
        return self.solver

    @torch.no_grad()
    def label_chain(self, engine: Engine, images: Tensor, indices: Sequence[int], chain: int) -> list[ChainLabels]:
        """Label independent noisy copies; see :meth:`Smoothing.label_chain`."""
        return self._label_copies(lambda x: self.base_labels(engine, x), engine, images, indices, chain)
