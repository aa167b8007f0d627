"""Serialized sampling: few warm-started steps predict, and an exact audit pays for the shortcut."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deqcert.errors import SettingError, is_real, require, require_count
from deqcert.reuse import FixedPointCache
from deqcert.seeding import Purpose
from deqcert.smoothing.base_classifier import solver_name
from deqcert.smoothing.engine import INVALID, Engine, Predictions, count_classes
from deqcert.smoothing.noise import Stream, audit_subset
from deqcert.smoothing.sampling import Sampling, count_votes, sample_under_noise, taken
from deqcert.smoothing.smoothed import SmoothedClassifier
from deqcert.solvers import Anderson, Solver
from deqcert.statistics import AdaptiveAudit, AuditSize, CertificationRule, FixedAudit, Sides, Votes

ChainStart = Literal["previous", "first", "clean"]
Precision = Literal["bfloat16", "float16"]


@dataclass(frozen=True)
class Serialized(Sampling):
    """Starts each solve from the fixed points of an earlier batch (SRS; Gao et al., NeurIPS 2024).

    The certificate is about g, whatever the shortcut: every noisy sample gets an SRS prediction S from a few
    warm-started steps of ``proposal``. Where S leaves most doubt whether f would say A, f is asked; of the other
    samples with S = A a uniformly random subset is classified by f on the same noise (correlation-eliminated
    certification). For certificates with two sides the doubt is about what f would say at all, and the subset is one of
    all samples. Selection runs through the same chain and warms it up.

    Args:
        proposal: Solver of the warm-started steps, e.g. Anderson with max_steps 1 or 3.
        start: Start of a solve: the "previous" batch's fixed points, the "first" batch's, or the "clean" image's.
        warmup_steps: Anderson steps of the first batch, from f's start, >= 1; unused with start "clean".
        escalation: Share of the estimation samples that are classified by f whatever comes, in [0, 1): those with the
            smallest difference between the logit of A, with two sides the largest one, and the largest other one.
        audit: How many of the other samples are audited.
        sides: Sides of the certificates to come, "one" or "two"; null for those of the run's certificates.
        precision: Lower precision of the SRS predictions, "bfloat16" or "float16" (autocast); null is that of the run.
            What f says always has that of the run.
    """

    proposal: Solver = Anderson(max_steps=3)
    start: ChainStart = "previous"
    warmup_steps: int = 10
    escalation: float = 0.0
    audit: AuditSize = AdaptiveAudit()
    sides: Sides | None = None
    precision: Precision | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.start in get_args(ChainStart), "start", self.start, f"must be one of {get_args(ChainStart)}")
        require_count("warmup_steps", self.warmup_steps, minimum=1)
        share = is_real(self.escalation) and 0 <= self.escalation < 1
        require(share, "escalation", self.escalation, "must be in [0, 1)")
        require(self.sides in (None, *get_args(Sides)), "sides", self.sides, "must be one, two or None")
        precisions = (None, *get_args(Precision))
        require(self.precision in precisions, "precision", self.precision, f"must be one of {precisions}")
        samples = self.audit.samples if isinstance(self.audit, FixedAudit) else 0
        require(samples <= self.n, "audit.samples", samples, f"must be at most n = {self.n}")

    @property
    def proposals(self) -> tuple[Solver, ...]:
        """The solver of the warm-started steps, and that of the first batch."""
        return self.proposal, Anderson(max_steps=self.warmup_steps)

    def aimed_at(self, rule: CertificationRule) -> Serialized:
        """See :meth:`Sampling.aimed_at`."""
        allowed = "must be joint with two sides: no other rule bounds p_B of audited votes"
        require(rule.sides == "one" or rule.audit == "joint", "certificate.audit", rule.audit, allowed)
        audit = self.audit.aimed_at(rule.alpha, rule.alpha_audit, rule.audit)
        return replace(self, audit=audit, sides=self.sides or rule.sides)

    def anticipated(self, n: int, n_a: int, sigma: float) -> list[Votes]:
        """See :meth:`Sampling.anticipated`."""
        (votes,) = super().anticipated(n, n_a, sigma)
        count, sides = min(int(self.escalation * n), n_a), self.sides or "one"
        escalated = (count, 0) if count else ()
        votes = votes._replace(audited=0, escalations=count, escalated=escalated, escalated_from=escalated)
        size = self.audit.size(votes, sides)
        if sides == "one":
            return [votes._replace(audited=size)]
        of_a = round(size * votes.population / max(1, votes.auditable("two")))
        return [votes._replace(audited=of_a, audited_as=(of_a, size - of_a), mistaken=(0, 0))]

    def name(self, base: nn.Module) -> str:
        """E.g. ``SRS-3A``."""
        return f"SRS-{solver_name(self.proposal)}{'' if self.start == 'previous' else f'-{self.start}'}"

    def group_votes(
        self, g: SmoothedClassifier, engine: Engine, images: Tensor, streams: Sequence[Stream]
    ) -> list[Votes]:
        """Take votes by one warm-started chain per image, escalate, and audit.

        All SRS predictions are known before any of f's is looked at, so what is escalated and the size K of the audit
        may depend on them.
        """
        started = time.perf_counter()
        chain = _Chain(self, engine, images)
        selection = sample_under_noise(chain.advance, self.noise(g, images, streams, Purpose.SELECTION))
        estimation = sample_under_noise(chain.advance, self.noise(g, images, streams, Purpose.ESTIMATION))
        votes = count_votes(g, engine, images, selection, estimation)
        asked = [self._asked(*each) for each in zip(votes, estimation, streams, strict=True)]
        true = self._classified(
            engine, self.noise(g, images, streams, Purpose.ESTIMATION), [each.positions for each in asked]
        )
        seconds = (time.perf_counter() - started) / len(images)
        return [
            each.answered(*answers)._replace(nfe_fast=each.votes.nfe_fast + cleaning, seconds=seconds)
            for each, answers, cleaning in zip(asked, true, chain.clean_steps, strict=True)
        ]

    def _asked(self, votes: Votes, predicted: Predictions, stream: Stream) -> _Asked:
        """Choose what f is asked of an image: where S leaves most doubt, and an audit of the others."""
        classes, sides = predicted.classes, self.sides or "one"
        says_a = classes == votes.selected
        # A margin may be infinite; whom to ask must not depend on that.
        doubt = predicted.margin.clamp(max=torch.finfo(predicted.margin.dtype).max)
        if sides == "one":
            doubt = doubt.where(says_a | (predicted.runner_up == votes.selected), torch.inf)
        count = min(int(self.escalation * votes.n), int(doubt.isfinite().sum()))
        escalated = doubt.argsort(stable=True)[:count]
        asked_of = count_classes(classes[escalated], len(votes.estimation)) if count else ()
        votes = votes._replace(escalations=count, escalated_from=asked_of, audited=0)
        left = says_a if sides == "one" else classes != INVALID
        left[escalated] = False
        audited = audit_subset(np.flatnonzero(left.numpy()), self.audit.size(votes, sides), stream)
        return _Asked(votes, classes, escalated.numpy(), audited, sides)

    def _classified(
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


class _Asked(NamedTuple):
    """What f is asked of an image, as positions of estimation samples, and the votes without its answers."""

    votes: Votes
    predicted: Tensor
    escalated: NDArray[np.int64]
    audited: NDArray[np.int64]
    sides: Sides

    @property
    def positions(self) -> NDArray[np.int64]:
        """All of them, ascending."""
        return np.union1d(self.escalated, self.audited)

    def answered(self, classes: Tensor, steps: Tensor) -> Votes:
        """Return the votes with what f says of ``positions``, and what it took."""
        audited = torch.from_numpy(np.isin(self.positions, self.audited))
        said, cheap = classes[audited], self.predicted[self.audited]
        says_a, a, num_classes = cheap == self.votes.selected, self.votes.selected, len(self.votes.estimation)
        votes = self.votes._replace(
            audited=int(says_a.sum()),
            mismatches=int((said[says_a] != a).sum()),
            escalated=count_classes(classes[~audited], num_classes) if self.votes.escalations else (),
            nfe_audit=int(steps.sum()),
        )
        if self.sides == "one":
            return votes
        mistaken = count_classes(said[said != cheap], num_classes)
        return votes._replace(audited_as=count_classes(cheap, num_classes), mistaken=mistaken)


def _picked(batches: Iterator[Tensor], positions: NDArray[np.int64]) -> Iterator[Tensor]:
    """Yield the samples at ascending ``positions``."""
    while len(positions):
        noisy = next(batches)
        inside = positions < len(noisy)
        yield from noisy[torch.from_numpy(positions[inside]).to(noisy.device)]
        positions = positions[~inside] - len(noisy)


class _Chain:
    """The warm-started solves of E images: a noisy sample starts from the fixed point of one of the same image.

    Sample i of image e is row i·E + e, so that row r modulo any number of filled rows belongs to the same image.
    """

    def __init__(self, settings: Serialized, engine: Engine, images: Tensor) -> None:
        if engine.state is None:
            kind = type(engine.base).__name__
            raise SettingError("sampling", "Serialized", f"needs a DEQ; certify a {kind} by Standard")
        self.settings, self.engine, self.count = settings, engine, len(images)
        self.clean_steps = [0] * self.count
        self._cache = FixedPointCache("previous" if settings.start == "previous" else "first")
        self._cold = engine.state
        if settings.start == "clean":
            _, keep = self._hold(self.count)
            self.clean_steps = engine.predict(images, keep=keep).steps.tolist()

    def advance(self, noisy: Tensor) -> Predictions:
        """Classify one batch, shape (size · E, C, H, W), and remember its fixed points."""
        start, keep = self._hold(len(noisy))
        proposal, warmup = self.settings.proposals
        precision = self.settings.precision
        with nullcontext() if precision is None else torch.autocast(noisy.device.type, getattr(torch, precision)):
            return self.engine.predict(noisy, warmup if start is None else proposal, start, keep)

    def _hold(self, rows: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the states to start from and those to keep fixed points in."""
        return self._cache.hold("chain", self._cold.expand(rows, *self._cold.shape[1:]))
