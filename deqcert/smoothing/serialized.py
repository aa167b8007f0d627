"""Serialized sampling: few warm-started steps predict, and an exact audit pays for the shortcut."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deqcert.errors import SettingError, is_real, require, require_count
from deqcert.reuse import FixedPointCache
from deqcert.seeding import Purpose
from deqcert.smoothing.audited import Audited
from deqcert.smoothing.base_classifier import solver_name
from deqcert.smoothing.engine import Engine, Predictions, count_classes
from deqcert.smoothing.noise import Stream
from deqcert.smoothing.sampling import count_votes, sample_under_noise
from deqcert.smoothing.smoothed import SmoothedClassifier
from deqcert.solvers import Anderson, Solver
from deqcert.statistics import AdaptiveAudit, AuditSize, Sides, Votes

ChainStart = Literal["previous", "first", "clean"]
Precision = Literal["bfloat16", "float16"]


@dataclass(frozen=True)
class Serialized(Audited):
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
        precisions = (None, *get_args(Precision))
        require(self.precision in precisions, "precision", self.precision, f"must be one of {precisions}")

    @property
    def proposals(self) -> tuple[Solver, ...]:
        """The solver of the warm-started steps, and that of the first batch."""
        return self.proposal, Anderson(max_steps=self.warmup_steps)

    def anticipated(self, n: int, n_a: int, sigma: float) -> list[Votes]:
        """See :meth:`Sampling.anticipated`."""
        (votes,) = super().anticipated(n, n_a, sigma)
        count = min(int(self.escalation * n), n_a)
        escalated = (count, 0) if count else ()
        votes = votes._replace(audited=0, escalations=count, escalated=escalated, escalated_from=escalated)
        return [self.anticipated_audit(votes)]

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
        true = self.ask(engine, self.noise(g, images, streams, Purpose.ESTIMATION), [each.positions for each in asked])
        seconds = (time.perf_counter() - started) / len(images)
        return [
            self._answered(each, *answers)._replace(nfe_fast=each.votes.nfe_fast + cleaning, seconds=seconds)
            for each, answers, cleaning in zip(asked, true, chain.clean_steps, strict=True)
        ]

    def _asked(self, votes: Votes, predicted: Predictions, stream: Stream) -> _Asked:
        """Choose what f is asked of an image: where S leaves most doubt, and an audit of the others."""
        classes, sides = predicted.classes, self.known_sides
        says_a = classes == votes.selected
        # A margin may be infinite; whom to ask must not depend on that.
        doubt = predicted.margin.clamp(max=torch.finfo(predicted.margin.dtype).max)
        if sides == "one":
            doubt = doubt.where(says_a | (predicted.runner_up == votes.selected), torch.inf)
        count = min(int(self.escalation * votes.n), int(doubt.isfinite().sum()))
        escalated = doubt.argsort(stable=True)[:count]
        asked_of = count_classes(classes[escalated], len(votes.estimation)) if count else ()
        votes = votes._replace(escalations=count, escalated_from=asked_of, audited=0)
        return _Asked(votes, classes, escalated.numpy(), self.draw_audit(votes, classes, escalated.numpy(), stream))

    def _answered(self, asked: _Asked, classes: Tensor, steps: Tensor) -> Votes:
        """Return the votes with what f says of what it was asked, and what it took."""
        audited = torch.from_numpy(np.isin(asked.positions, asked.audited))
        votes, said = asked.votes._replace(nfe_audit=int(steps.sum())), classes[~audited]
        if votes.escalations:
            votes = votes._replace(escalated=count_classes(said, len(votes.estimation)))
        known = asked.predicted.clone()
        known[np.sort(asked.escalated)] = said
        return self.with_predictions(self.with_audit(votes, asked.predicted[asked.audited], classes[audited]), known)


class _Asked(NamedTuple):
    """What f is asked of an image, as positions of estimation samples, and the votes without its answers."""

    votes: Votes
    predicted: Tensor
    escalated: NDArray[np.int64]
    audited: NDArray[np.int64]

    @property
    def positions(self) -> NDArray[np.int64]:
        """All of them, ascending."""
        return np.union1d(self.escalated, self.audited)


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
