"""What strategies with an audit share: f is asked about single noisy samples whose predictions are cheap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deqcert.errors import require
from deqcert.smoothing.engine import INVALID, Engine, count_classes
from deqcert.smoothing.noise import Stream, audit_subset
from deqcert.smoothing.sampling import Sampling, taken
from deqcert.statistics import AuditSize, CertificationRule, FixedAudit, Sides, Votes

Own = TypeVar("Own", bound="Audited")


class Audited(Sampling):
    """A strategy whose predictions S may be anything, since f classifies a uniformly random subset of the samples.

    Attributes:
        audit: How many samples are audited.
        sides: Sides of the certificates to come; None for those of the run's certificates.
    """

    audit: AuditSize
    sides: Sides | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sides in (None, *get_args(Sides)), "sides", self.sides, "must be one, two or None")
        samples = self.audit.samples if isinstance(self.audit, FixedAudit) else 0
        require(samples <= self.n, "audit.samples", samples, f"must be at most n = {self.n}")

    def aimed_at(self: Own, rule: CertificationRule) -> Own:
        """See :meth:`Sampling.aimed_at`."""
        allowed = "must be joint with two sides: no other rule bounds p_B of audited votes"
        require(rule.sides == "one" or rule.audit == "joint", "certificate.audit", rule.audit, allowed)
        audit = self.audit.aimed_at(rule.alpha, rule.alpha_audit, rule.audit)
        return replace(self, audit=audit, sides=self.sides or rule.sides)  # type: ignore[call-arg]  # of subclasses

    @property
    def known_sides(self) -> Sides:
        """Sides of the certificates to come: one unless something else was said."""
        return self.sides or "one"

    def anticipated_audit(self, votes: Votes) -> Votes:
        """Return votes that are to be expected, escalation included, with the audit in which all samples agree."""
        size = self.audit.size(votes, self.known_sides)
        if self.known_sides == "one":
            return votes._replace(audited=size)
        of_a = round(size * votes.population / max(1, votes.auditable("two")))
        return votes._replace(audited=of_a, audited_as=(of_a, size - of_a), mistaken=(0, 0))

    def draw_audit(
        self, votes: Votes, predicted: Tensor, escalated: NDArray[np.int64], stream: Stream, part: int = 0
    ) -> NDArray[np.int64]:
        """Draw the samples to audit, as ascending positions, from those that are not escalated.

        Args:
            votes: The votes before the audit.
            predicted: The predictions S, shape (n,).
            escalated: Positions of the escalated samples.
            stream: Random numbers of the image.
            part: Part of them that draws the subset; S must not depend on it.
        """
        left = (predicted == votes.selected) if self.known_sides == "one" else (predicted != INVALID)
        left[escalated] = False
        return audit_subset(np.flatnonzero(left.numpy()), self.audit.size(votes, self.known_sides), stream, part)

    def with_audit(self, votes: Votes, cheap: Tensor, said: Tensor) -> Votes:
        """Return the votes with the outcome of an audit: what S and f say of its samples, shape (K,) each."""
        a, num_classes = votes.selected, len(votes.estimation)
        says_a = cheap == a
        votes = votes._replace(audited=int(says_a.sum()), mismatches=int((said[says_a] != a).sum()))
        if self.known_sides == "one":
            return votes
        mistaken = count_classes(said[said != cheap], num_classes)
        return votes._replace(audited_as=count_classes(cheap, num_classes), mistaken=mistaken)

    def ask(
        self, engine: Engine, noise: Sequence[Iterator[Tensor]], positions: Sequence[NDArray[np.int64]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Classify by f the samples at ``positions`` of each image's noise; return their predictions and steps."""
        samples = (sample for each in zip(noise, positions, strict=True) for sample in _picked(*each))
        parts = []
        while batch := list(islice(samples, len(noise) * self.batch_size)):
            true = engine.predict(taken(batch, dim=0))
            parts.append(torch.stack([true.classes, true.steps]).cpu())
        found = torch.cat(parts, dim=1) if parts else torch.zeros(2, 0, dtype=torch.int64)
        return [(classes, steps) for classes, steps in torch.split(found, [len(each) for each in positions], dim=1)]


def _picked(batches: Iterator[Tensor], positions: NDArray[np.int64]) -> Iterator[Tensor]:
    """Yield the samples at ascending ``positions``."""
    while len(positions):
        noisy = next(batches)
        inside = positions < len(noisy)
        yield from noisy[torch.from_numpy(positions[inside]).to(noisy.device)]
        positions = positions[~inside] - len(noisy)
