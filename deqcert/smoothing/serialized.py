"""Serialized sampling: few warm-started steps predict, and an exact audit pays for the shortcut."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deqcert.errors import SettingError, require, require_count
from deqcert.seeding import Purpose
from deqcert.smoothing.base_classifier import solver_name
from deqcert.smoothing.engine import Engine, Predictions
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
    warm-started steps of ``proposal``, then a uniformly random subset of the samples with S = A is classified by f on
    the same noise (correlation-eliminated certification). Selection runs through the same chain and warms it up.

    Args:
        proposal: Solver of the warm-started steps, e.g. Anderson with max_steps 1 or 3.
        start: Start of a solve: the "previous" batch's fixed points, the "first" batch's, or the "clean" image's.
        warmup_steps: Anderson steps of the first batch, from f's start, >= 1; unused with start "clean".
        audit: How many samples of the selected class are audited.
        precision: Lower precision of the SRS predictions, "bfloat16" or "float16" (autocast); null is that of the run.
            The audit always has that of the run.
    """

    proposal: Solver = Anderson(max_steps=3)
    start: ChainStart = "previous"
    warmup_steps: int = 10
    audit: AuditSize = AdaptiveAudit()
    precision: Precision | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.start in get_args(ChainStart), "start", self.start, f"must be one of {get_args(ChainStart)}")
        require_count("warmup_steps", self.warmup_steps, minimum=1)
        precisions = (None, *get_args(Precision))
        require(self.precision in precisions, "precision", self.precision, f"must be one of {precisions}")
        samples = self.audit.samples if isinstance(self.audit, FixedAudit) else 0
        require(samples <= self.n, "audit.samples", samples, f"must be at most n = {self.n}")

    def aimed_at(self, rule: CertificationRule) -> Serialized:
        """See :meth:`Sampling.aimed_at`."""
        return replace(self, audit=self.audit.aimed_at(rule.alpha, rule.alpha_audit))

    def name(self, base: nn.Module) -> str:
        """E.g. ``SRS-3A``."""
        return f"SRS-{solver_name(self.proposal)}{'' if self.start == 'previous' else f'-{self.start}'}"

    def group_votes(
        self, g: SmoothedClassifier, engine: Engine, images: Tensor, streams: Sequence[Stream]
    ) -> list[Votes]:
        """Take votes by one warm-started chain per image, and audit them.

        All SRS predictions are known before any of f's is looked at, so the size K of the audit may depend on N_A.
        """
        started = time.perf_counter()
        chain = _Chain(self, engine, images)
        selection = sample_under_noise(chain.advance, self.noise(g, images, streams, Purpose.SELECTION))
        estimation = sample_under_noise(chain.advance, self.noise(g, images, streams, Purpose.ESTIMATION))
        votes = count_votes(g, engine, images, selection, estimation)
        subsets = []
        for given, predicted, stream in zip(votes, estimation, streams, strict=True):
            agreeing = np.flatnonzero((predicted.classes == given.selected).numpy())
            subsets.append(audit_subset(agreeing, self.audit.size(len(agreeing), self.n), stream))
        true = self._audited(engine, self.noise(g, images, streams, Purpose.ESTIMATION), subsets)
        audits = [list(islice(true, len(subset))) for subset in subsets]
        seconds = (time.perf_counter() - started) / len(images)
        return [
            given._replace(
                audited=len(audit),
                mismatches=sum(prediction != given.selected for prediction, _ in audit),
                nfe_fast=given.nfe_fast + cleaning,
                nfe_audit=sum(steps for _, steps in audit),
                seconds=seconds,
            )
            for given, audit, cleaning in zip(votes, audits, chain.clean_steps, strict=True)
        ]

    def _audited(
        self, engine: Engine, noise: Sequence[Iterator[Tensor]], subsets: Sequence[NDArray[np.int64]]
    ) -> Iterator[tuple[int, int]]:
        """Classify by f the samples in ``subsets`` of each image's noise; yield prediction and steps of each."""
        samples = (sample for each in zip(noise, subsets, strict=True) for sample in _picked(*each))
        while batch := list(islice(samples, len(noise) * self.batch_size)):
            true = engine.predict(torch.stack(batch))
            yield from zip(true.classes.tolist(), true.steps.tolist(), strict=True)


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
