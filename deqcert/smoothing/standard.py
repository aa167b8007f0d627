"""Standard randomized smoothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deqcert.smoothing.base import Smoothing, solver_label
from deqcert.smoothing.engine import Engine, Labels
from deqcert.smoothing.labels import count_labels
from deqcert.smoothing.noise import Purpose
from deqcert.solvers import Anderson, Solver
from deqcert.statistics import Votes


@dataclass(frozen=True)
class Standard(Smoothing):
    """Classifies every noisy copy from a cold start (Cohen, Rosenfeld, Kolter, ICML 2019).

    Args:
        sigma: Standard deviation of the noise, in pixels of [0, 1], > 0.
        n0: Noisy copies that select the class, >= 1.
        n: Fresh noisy copies that estimate its probability, >= 1.
        batch_size: Copies of an image per batch of noise, >= 1.
        seed: Seed of all random streams, >= 0.
        execution: How copies are spread over launches.
        solver: Solver that defines the base classifier of a DEQ; other networks ignore it.
    """

    solver: Solver = Anderson(max_steps=30, tolerance=1e-3)

    @property
    def label(self) -> str:
        """E.g. ``standard-30A``."""
        return f"standard-{solver_label(self.solver)}"

    @torch.no_grad()
    def vote_group(self, engine: Engine, images: Tensor, indices: Sequence[int], labels: Sequence[int]) -> list[Votes]:
        """Classify ``n0`` and then ``n`` independent noisy copies; see :meth:`Smoothing.vote_group`."""
        started = time.perf_counter()
        selection = self._label(engine, images, indices, Purpose.SELECTION, self.n0)
        estimation = self._label(engine, images, indices, Purpose.ESTIMATION, self.n)
        given = torch.cat([selection.labels, estimation.labels]).cpu().numpy()
        steps = (selection.steps.sum(dim=0) + estimation.steps.sum(dim=0)).tolist()
        residuals = estimation.residual.mean(dim=0).tolist()
        seconds = (time.perf_counter() - started) / len(images)
        return [
            Votes(
                index=index,
                label=label,
                n0=self.n0,
                n=self.n,
                selection=count_labels(given[: self.n0, e], engine.num_classes),
                estimation=count_labels(given[self.n0 :, e], engine.num_classes),
                audited=None,
                mismatches=0,
                nfe_fast=steps[e],
                nfe_audit=0,
                residual=residuals[e],
                seconds=seconds,
            )
            for e, (index, label) in enumerate(zip(indices, labels, strict=True))
        ]

    def _label(self, engine: Engine, images: Tensor, indices: Sequence[int], purpose: Purpose, count: int) -> Labels:
        """Label ``count`` copies of each of E images; tensors of shape (count, E)."""
        batches = (engine.label(x, self.solver) for x in self._noisy_groups(images, indices, purpose, count))
        return Labels.joined(batches, count, len(images))
