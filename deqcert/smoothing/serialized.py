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
from deqcert.seeding import Purpose
from deqcert.smoothing.base_classifier import solver_name
from deqcert.smoothing.engine import Engine, Predictions, count_classes
from deqcert.smoothing.noise import Stream, audit_subset
from deqcert.smoothing.sampling import Sampling, count_votes, sample_under_noise
from deqcert.smoothing.smoothed import SmoothedClassifier
from deqcert.solvers import Anderson, Solver
from deqcert.statistics import AdaptiveAudit, AuditSize, CertificationRule, FixedAudit, Votes

ChainStart = Literal["previous", "first", "clean"]
Precision = Literal["bfloat16", "float16"]


@dataclass(frozen=True)
class Serialized(Sampling):
    """Starts each solve from the fixed points of an earlier batch (SRS; Gao et al., NeurIPS 2024).

    The certificate is about g, whatever the shortcut: every noisy sample gets an SRS prediction S from a few
    warm-started steps of ``proposal``. Where S leaves most doubt whether f would say A, f is asked; of the other
    samples with S = A a uniformly random subset is classified by f on the same noise (correlation-eliminated
    certification). Selection runs through the same chain and warms it up.

    Args:
        proposal: Solver of the warm-started steps, e.g. Anderson with max_steps 1 or 3.
        start: Start of a solve: the "previous" batch's fixed points, the "first" batch's, or the "clean" image's.
        warmup_steps: Anderson steps of the first batch, from f's start, >= 1; unused with start "clean".
        escalation: Share of the estimation samples that are classified by f whatever comes, in [0, 1): those with the
            smallest difference between the logit of A and the largest other one.
        audit: How many of the other samples with S = A are audited.
        precision: Lower precision of the SRS predictions, "bfloat16" or "float16" (autocast); null is that of the run.
            What f says always has that of the run.
    """

    proposal: Solver = Anderson(max_steps=3)
    start: ChainStart = "previous"
    warmup_steps: int = 10
    escalation: float = 0.0
    audit: AuditSize = AdaptiveAudit()
    precision: Precision | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.start in get_args(ChainStart), "start", self.start, f"must be one of {get_args(ChainStart)}")
        require_count("warmup_steps", self.warmup_steps, minimum=1)
        share = is_real(self.escalation) and 0 <= self.escalation < 1
        require(share, "escalation", self.escalation, "must be in [0, 1)")
        precisions = (None, *get_args(Precision))
        require(self.precision in precisions, "precision", self.precision, f"must be one of {precisions}")
        samples = self.audit.samples if isinstance(self.audit, FixedAudit) else 0
        require(samples <= self.n, "audit.samples", samples, f"must be at most n = {self.n}")

    def aimed_at(self, rule: CertificationRule) -> Serialized:
        """See :meth:`Sampling.aimed_at`."""
        return replace(self, audit=self.audit.aimed_at(rule.alpha, rule.alpha_audit, rule.audit))

    def anticipated(self, n: int, n_a: int, sigma: float) -> list[Votes]:
        """See :meth:`Sampling.anticipated`."""
        (votes,) = super().anticipated(n, n_a, sigma)
        count = min(int(self.escalation * n), n_a)
        escalated = (count, 0) if count else ()
        votes = votes._replace(audited=0, escalations=count, escalated=escalated, escalated_a=count)
        return [votes._replace(audited=self.audit.size(votes))]

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
            each.answered(*answers, engine.num_classes)._replace(
                nfe_fast=each.votes.nfe_fast + cleaning, seconds=seconds
            )
            for each, answers, cleaning in zip(asked, true, chain.clean_steps, strict=True)
        ]

    def _asked(self, votes: Votes, predicted: Predictions, stream: Stream) -> _Asked:
        """Choose what f is asked of an image: where S leaves most doubt, and an audit of the others with S = A."""
        says_a = predicted.classes == votes.selected
        # A margin may be infinite; whom to ask must not depend on that.
        margin = predicted.margin.clamp(max=torch.finfo(predicted.margin.dtype).max)
        doubt = torch.where(says_a | (predicted.runner_up == votes.selected), margin, torch.inf)
        count = min(int(self.escalation * votes.n), int(doubt.isfinite().sum()))
        escalated = doubt.argsort(stable=True)[:count]
        votes = votes._replace(escalations=count, escalated_a=int(says_a[escalated].sum()), audited=0)
        says_a[escalated] = False
        audited = audit_subset(np.flatnonzero(says_a.numpy()), self.audit.size(votes), stream)
        return _Asked(votes, escalated.numpy(), audited)

    def _classified(
        self, engine: Engine, noise: Sequence[Iterator[Tensor]], positions: Sequence[NDArray[np.int64]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Classify by f the samples at ``positions`` of each image's noise; return their predictions and steps."""
        samples = (sample for each in zip(noise, positions, strict=True) for sample in _picked(*each))
        parts = []
        while batch := list(islice(samples, len(noise) * self.batch_size)):
            true = engine.predict(torch.stack(batch))
            parts.append(torch.stack([true.classes, true.steps]).cpu())
        found = torch.cat(parts, dim=1) if parts else torch.zeros(2, 0, dtype=torch.int64)
        return [(classes, steps) for classes, steps in torch.split(found, [len(each) for each in positions], dim=1)]


class _Asked(NamedTuple):
    """What f is asked of an image, as positions of estimation samples, and the votes without its answers."""

    votes: Votes
    escalated: NDArray[np.int64]
    audited: NDArray[np.int64]

    @property
    def positions(self) -> NDArray[np.int64]:
        """All of them, ascending."""
        return np.union1d(self.escalated, self.audited)

    def answered(self, classes: Tensor, steps: Tensor, num_classes: int) -> Votes:
        """Return the votes with what f says of ``positions``, and what it took."""
        audited = torch.from_numpy(np.isin(self.positions, self.audited))
        return self.votes._replace(
            audited=len(self.audited),
            mismatches=int((classes[audited] != self.votes.selected).sum()),
            escalated=count_classes(classes[~audited], num_classes) if self.votes.escalations else (),
            nfe_audit=int(steps.sum()),
        )


def _picked(batches: Iterator[Tensor], positions: NDArray[np.int64]) -> Iterator[Tensor]:
    """Yield the samples at ascending ``positions``."""
    while len(positions):
        noisy = next(batches)
        inside = positions < len(noisy)
        yield from noisy[torch.from_numpy(positions[inside]).to(noisy.device)]
        positions = positions[~inside] - len(noisy)


class _Chain:
    """The warm-started solves of E images: sample i starts from slot i, the fixed point of an earlier sample i.

    Slots have shape (W, E, ...): with E innermost, the first slots of all images lie together, as their samples do.
    """

    def __init__(self, settings: Serialized, engine: Engine, images: Tensor) -> None:
        if engine.state is None:
            kind = type(engine.base).__name__
            raise SettingError("sampling", "Serialized", f"needs a DEQ; certify a {kind} by Standard")
        self.settings, self.engine, self.count = settings, engine, len(images)
        self.clean_steps = [0] * self.count
        clean = settings.start == "clean"
        self._slots = engine.state.new_empty(int(clean), self.count, *engine.state.shape[1:])
        if clean:
            self.clean_steps = engine.predict(images, keep=self._slots[0]).steps.tolist()

    def advance(self, noisy: Tensor) -> Predictions:
        """Classify one batch, shape (size · E, C, H, W), and remember its fixed points."""
        size, filled = len(noisy) // self.count, len(self._slots)
        cold = filled == 0
        if cold:
            self._slots = self._slots.new_empty(size, *self._slots.shape[1:])
        elif size > filled:
            self._slots = self._slots[torch.arange(size, device=noisy.device) % filled]
        slots = self._slots[:size].flatten(0, 1)
        solver = Anderson(max_steps=self.settings.warmup_steps) if cold else self.settings.proposal
        keep = slots if cold or self.settings.start == "previous" else None
        precision = self.settings.precision
        with nullcontext() if precision is None else torch.autocast(noisy.device.type, getattr(torch, precision)):
            return self.engine.predict(noisy, solver, None if cold else slots, keep)
