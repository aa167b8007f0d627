"""Standard randomized smoothing."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deqcert.models import DEQ
from deqcert.smoothing.base import Smoothing, demand_evaluation_mode, solver_label
from deqcert.smoothing.labels import count_labels, labels_of
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
        batch_size: Copies per launch, >= 1.
        seed: Seed of all random streams, >= 0.
        solver: Solver that defines the base classifier of a DEQ; other networks ignore it.
    """

    solver: Solver = Anderson(max_steps=30)

    @property
    def label(self) -> str:
        """E.g. ``standard-30A``."""
        return f"standard-{solver_label(self.solver)}"

    @torch.no_grad()
    def vote(self, classifier: nn.Module, image: Tensor, index: int, label: int) -> Votes:
        """Classify ``n0`` and then ``n`` independent noisy copies; see :meth:`Smoothing.vote`."""
        demand_evaluation_mode(classifier)
        started = time.perf_counter()
        selection, first_cost, _ = self._count(classifier, image, index, Purpose.SELECTION, self.n0)
        estimation, cost, residual = self._count(classifier, image, index, Purpose.ESTIMATION, self.n)
        return Votes(
            index=index,
            label=label,
            n0=self.n0,
            n=self.n,
            selection=selection,
            estimation=estimation,
            audited=None,
            mismatches=0,
            nfe_fast=first_cost + cost,
            nfe_audit=0,
            residual=residual,
            seconds=time.perf_counter() - started,
        )

    def _count(
        self, classifier: nn.Module, image: Tensor, index: int, purpose: Purpose, count: int
    ) -> tuple[tuple[int, ...], int, float]:
        """Return class counts, evaluations and the mean residual."""
        labels, residuals, evaluations, num_classes = [], [], 0, 0
        for noisy in self._noisy_batches(image, index, purpose, count):
            if isinstance(classifier, DEQ):
                logits, solution = classifier.solve(noisy, self.solver)
                residuals.append(solution.residual)
                evaluations += solution.evaluations
            else:
                logits = classifier(noisy)
                evaluations += len(noisy)
            num_classes = logits.shape[1]
            labels.append(labels_of(logits))
        residual = float(torch.cat(residuals).mean()) if residuals else math.nan
        return count_labels(torch.cat(labels), num_classes), evaluations, residual
