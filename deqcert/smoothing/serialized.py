"""Serialized sampling: few warm-started steps predict, and an exact audit pays for the shortcut."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deqcert.errors import SettingError, require, require_count
from deqcert.seeding import Purpose
from deqcert.smoothing.base_classifier import SolvedClassifier, solver_name
from deqcert.smoothing.engine import Engine, Predictions
from deqcert.smoothing.noise import Stream, audit_subset
from deqcert.smoothing.sampling import Sampling
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
        n0: Noisy samples that select the class, >= 1.
        n: Fresh noisy samples that estimate its probability, >= 1.
        batch_size: Noisy samples of an image side by side, the width of the chain, >= 1.
        execution: How noisy samples are spread over batches.
        proposal: Solver of the warm-started steps, e.g. Anderson with max_steps 1 or 3.
        start: Start of a solve: the "previous" batch's fixed points, the "first" batch's, or the "clean" image's.
        warmup_steps: Anderson steps of the first batch, from f's start, >= 1; unused with start "clean".
        audit: How many samples of the selected class are audited.
        precision: Lower precision of the SRS predictions, "bfloat16" or "float16" (autocast); null is that of the run.
            The audit always has that of the run.

    Raises:
        SettingError: If a setting is out of range.
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
        if isinstance(self.audit, FixedAudit):
            samples = self.audit.samples
            require(samples <= self.n, "audit.samples", samples, f"must be at most n = {self.n}")

    def aimed_at(self, rule: CertificationRule) -> Serialized:
        """See :meth:`Sampling.aimed_at`."""
        return replace(self, audit=self.audit.aimed_at(rule.alpha, rule.alpha_audit))

    def name(self, base: nn.Module) -> str:
        """E.g. ``SRS-3A``."""
        return f"SRS-{solver_name(self.proposal)}{'' if self.start == 'previous' else f'-{self.start}'}"

    def engine(self, g: SmoothedClassifier, image: Tensor) -> Engine:
        """Prepare f; see :meth:`Sampling.engine`.

        Raises:
            SettingError: f is not a DEQ.
        """
        if not isinstance(g.base, SolvedClassifier):
            kind = type(g.base).__name__
            raise SettingError("sampling", "Serialized", f"needs a DEQ; certify a {kind} by Standard")
        return super().engine(g, image)

    @torch.no_grad()
    def group_votes(
        self, g: SmoothedClassifier, engine: Engine, images: Tensor, streams: Sequence[Stream]
    ) -> list[Votes]:
        """Take votes by one warm-started chain per image, and audit them; see :meth:`Sampling.group_votes`.

        All SRS predictions are known before any of f's is looked at, so the size K of the audit may depend on N_A.
        """
        chain = _Chain(self, engine, images)
        sampled = self._predictions(g, chain.advance, images, streams)
        votes = [each.votes(g, image, engine.num_classes) for each, image in zip(sampled, images, strict=True)]
        tasks = [
            _Audit(image, stream, given.selected, self._members(each.estimation, given, stream))
            for image, stream, given, each in zip(images, streams, votes, sampled, strict=True)
        ]
        started = time.perf_counter()
        mismatches, steps = self._audited(g, engine, tasks)
        seconds = (time.perf_counter() - started) / len(tasks)
        return [
            given._replace(
                audited=len(task.members),
                mismatches=missed,
                nfe_fast=given.nfe_fast + cleaning,
                nfe_audit=evaluations,
                seconds=given.seconds + seconds,
            )
            for given, task, missed, evaluations, cleaning in zip(
                votes, tasks, mismatches, steps, chain.clean_steps, strict=True
            )
        ]

    def _members(self, predicted: NDArray[np.int64], votes: Votes, stream: Stream) -> NDArray[np.int64]:
        """Draw the audit subset: sorted positions of estimation samples with S = A."""
        agreeing = np.flatnonzero(predicted == votes.selected)
        return audit_subset(agreeing, self.audit.size(len(agreeing), self.n), stream)

    def _audited(self, g: SmoothedClassifier, engine: Engine, tasks: Sequence[_Audit]) -> tuple[list[int], list[int]]:
        """Classify all members of all tasks by f; return mismatches and evaluations of each task."""
        device = tasks[0].image.device
        classes = torch.tensor([task.selected for task in tasks], device=device)
        mismatches = torch.zeros(len(tasks), dtype=torch.int64, device=device)
        steps = torch.zeros_like(mismatches)
        for noisy, owners in _regrouped(self._noise_again(g, tasks), len(tasks) * self.batch_size):
            true = engine.predict(noisy)
            mismatches.index_add_(0, owners, (true.classes != classes[owners]).long())
            steps.index_add_(0, owners, true.steps)
        return mismatches.tolist(), steps.tolist()

    def _noise_again(self, g: SmoothedClassifier, tasks: Sequence[_Audit]) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw the estimation samples of each task again; yield its members with the position of the task."""
        for position, task in enumerate(tasks):
            first, end = 0, task.members.max(initial=-1) + 1
            for noisy in g.noisy(task.image, task.stream, Purpose.ESTIMATION, self.n, self.batch_size):
                if first >= end:
                    break
                inside = task.members[(task.members >= first) & (task.members < first + len(noisy))] - first
                first += len(noisy)
                if len(inside):
                    chosen = noisy[torch.from_numpy(inside).to(noisy.device)]
                    yield chosen, torch.full((len(inside),), position, device=noisy.device)


@dataclass(frozen=True)
class _Audit:
    """What is audited of one image: the estimation samples at ``members``, whose SRS prediction is ``selected``."""

    image: Tensor
    stream: Stream
    selected: int
    members: NDArray[np.int64]


class _Chain:
    """The warm-started solves of E images: sample i starts from slot i, the fixed point of an earlier sample i.

    Slots have shape (W, E, ...): with E innermost, the first slots of all images lie together, as their samples do.
    """

    def __init__(self, settings: Serialized, engine: Engine, images: Tensor) -> None:
        assert engine.state is not None, "Serialized.engine demands a DEQ"
        self.settings = settings
        self.engine = engine
        self.count = len(images)
        self.clean_steps = [0] * self.count
        self._filled = 0
        width = min(settings.batch_size, max(settings.n0, settings.n))
        self._slots = engine.state.new_zeros(width, self.count, *engine.state.shape[1:])
        if settings.start == "clean":
            self.clean_steps = engine.predict(images, keep=self._slots[0]).steps.tolist()
            self._filled = 1

    def advance(self, noisy: Tensor) -> Predictions:
        """Classify one batch, shape (size · E, C, H, W), and remember its fixed points."""
        size = len(noisy) // self.count
        cold = self._filled == 0
        if not cold and size > self._filled:
            places = torch.arange(size, device=noisy.device) % self._filled
            self._slots[self._filled : size] = self._slots[places[self._filled :]]
            self._filled = size
        slots = self._slots[:size].flatten(0, 1)
        remembers = cold or self.settings.start == "previous"
        solver = Anderson(max_steps=self.settings.warmup_steps) if cold else self.settings.proposal
        with self._autocast(noisy.device):
            given = self.engine.predict(noisy, solver, None if cold else slots, slots if remembers else None)
        self._filled = max(self._filled, size)
        return given

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.settings.precision is None:
            return nullcontext()
        return torch.autocast(device.type, getattr(torch, self.settings.precision))


def _regrouped(parts: Iterator[tuple[Tensor, Tensor]], rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Regroup pairs of tensors into pairs of ``rows`` rows; the last has what is left."""
    waiting: list[tuple[Tensor, Tensor]] = []
    for part in parts:
        waiting.append(part)
        while sum(len(x) for x, _ in waiting) >= rows:
            x, owners = (torch.cat(tensors) for tensors in zip(*waiting, strict=True))
            yield x[:rows], owners[:rows]
            waiting = [(x[rows:], owners[rows:])]
    if sum(len(x) for x, _ in waiting):
        x, owners = (torch.cat(tensors) for tensors in zip(*waiting, strict=True))
        yield x, owners
