"""Serialized randomized smoothing: warm-started cheap labels and an exact audit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deqcert.errors import require, require_count
from deqcert.smoothing.base import Smoothing, solver_label
from deqcert.smoothing.engine import Engine, Labels
from deqcert.smoothing.labels import count_labels
from deqcert.smoothing.noise import Purpose, audit_subset
from deqcert.solvers import Anderson, Solver
from deqcert.statistics import AdaptiveAudit, AuditSize, FixedAudit, Votes

Start = Literal["previous", "first", "clean"]
Precision = Literal["bfloat16", "float16"]


@dataclass(frozen=True)
class Serialized(Smoothing):
    """Starts each solve from the fixed points of an earlier batch (SRS; Gao et al., NeurIPS 2024).

    The base classifier is the DEQ solved from a cold start by ``reference``; the certificate is about it. Every noisy
    copy gets a cheap label S from a few warm-started steps. Then a uniformly random subset of the copies with S = A
    is labelled by the base classifier on the same noise. Selection runs through the same chain and warms it up.

    Args:
        sigma: Standard deviation of the noise, in pixels of [0, 1], > 0.
        n0: Noisy copies that select the class, >= 1.
        n: Fresh noisy copies that estimate its probability, >= 1.
        batch_size: Copies per launch, the width of the chain, >= 1.
        seed: Seed of all random streams, >= 0.
        execution: How copies are spread over launches.
        solver: Solver of the warm-started steps, e.g. Anderson with max_steps 1 or 3.
        start: Start of a solve: the "previous" batch's fixed points, the "first" batch's, or the "clean" image's.
        warmup_steps: Anderson steps of the first batch, from a cold start, >= 1; unused with start "clean".
        reference: Cold-start solver that defines the base classifier, used by the audit.
        audit: How many copies of the selected class are audited.
        precision: Lower precision of the cheap labels, "bfloat16" or "float16" (autocast); null is that of the run. The
            audit always has that of the run.

    Raises:
        SettingError: If a setting is out of range.
    """

    solver: Solver = Anderson(max_steps=3)
    start: Start = "previous"
    warmup_steps: int = 10
    reference: Solver = Anderson(max_steps=30, tolerance=1e-3)
    audit: AuditSize = AdaptiveAudit()
    precision: Precision | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.start in get_args(Start), "start", self.start, f"must be one of {get_args(Start)}")
        require_count("warmup_steps", self.warmup_steps, minimum=1)
        precisions = (None, *get_args(Precision))
        require(self.precision in precisions, "precision", self.precision, f"must be one of {precisions}")
        if isinstance(self.audit, FixedAudit):
            require(
                self.audit.samples <= self.n,
                "audit.samples",
                self.audit.samples,
                f"must be at most n = {self.n}",
            )

    @property
    def label(self) -> str:
        """E.g. ``SRS-3A``."""
        suffix = "" if self.start == "previous" else f"-{self.start}"
        return f"SRS-{solver_label(self.solver)}{suffix}"

    @torch.no_grad()
    def vote_group(self, engine: Engine, images: Tensor, indices: Sequence[int], labels: Sequence[int]) -> list[Votes]:
        """Classify noisy copies by one chain per image and audit them; see :meth:`Smoothing.vote_group`.

        Raises:
            SettingError: If the classifier is no DEQ.
        """
        started = time.perf_counter()
        chains = _Chains(self, engine, images)
        selection = self._run(chains, images, indices, Purpose.SELECTION, self.n0)
        estimation = self._run(chains, images, indices, Purpose.ESTIMATION, self.n)
        cheap = torch.cat([selection.labels, estimation.labels]).cpu().numpy()
        selections = [count_labels(given, engine.num_classes) for given in cheap[: self.n0].T]
        estimations = [count_labels(given, engine.num_classes) for given in cheap[self.n0 :].T]

        # All cheap labels are known before any true one is looked at, so K may depend on N_A, and the subset is
        # uniform over exactly the copies with S = A.
        selected = [counts.index(max(counts)) for counts in selections]
        agreeing = [np.flatnonzero(cheap[self.n0 :, e] == chosen) for e, chosen in enumerate(selected)]
        members = [
            audit_subset(positions, self.audit.size(len(positions), self.n), index, self.seed)
            for positions, index in zip(agreeing, indices, strict=True)
        ]
        audit = self._audit(engine, images, indices, selected, members)

        steps = (selection.steps.sum(dim=0) + estimation.steps.sum(dim=0) + chains.clean_steps).tolist()
        residuals = estimation.residual.mean(dim=0).tolist()
        seconds = (time.perf_counter() - started) / len(images)
        return [
            Votes(
                index=index,
                label=label,
                n0=self.n0,
                n=self.n,
                selection=selections[e],
                estimation=estimations[e],
                audited=len(members[e]),
                mismatches=audit.mismatches[e],
                nfe_fast=steps[e],
                nfe_audit=audit.steps[e],
                residual=residuals[e],
                seconds=seconds,
            )
            for e, (index, label) in enumerate(zip(indices, labels, strict=True))
        ]

    def _run(self, chains: _Chains, images: Tensor, indices: Sequence[int], purpose: Purpose, count: int) -> Labels:
        """Run ``count`` copies of each of E images through the chains; tensors of shape (count, E)."""
        batches = (chains.advance(x) for x in self._noisy_groups(images, indices, purpose, count))
        return Labels.joined(batches, count, len(images))

    def _audit(
        self,
        engine: Engine,
        images: Tensor,
        indices: Sequence[int],
        selected: Sequence[int],
        members: Sequence[NDArray[np.int64]],
    ) -> _Audit:
        """Label the copies at positions ``members`` of each image by the base classifier."""
        classes = torch.tensor(selected, device=images.device)
        mismatches = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        steps = torch.zeros_like(mismatches)
        for noisy, owners in _regrouped(self._members(images, indices, members), len(images) * self.batch_size):
            true = engine.label(noisy, self.reference)
            mismatches.index_add_(0, owners, (true.labels != classes[owners]).long())
            steps.index_add_(0, owners, true.steps)
        return _Audit(mismatches.tolist(), steps.tolist())

    def _members(
        self, images: Tensor, indices: Sequence[int], members: Sequence[NDArray[np.int64]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw the estimation copies of each image again; yield those at ``members`` with the image's position."""
        for position, (image, index, mine) in enumerate(zip(images, indices, members, strict=True)):
            batches = self._noisy_batches(image, index, Purpose.ESTIMATION, self.n)
            for first, noisy in zip(range(0, self.n, self.batch_size), batches, strict=True):
                inside = mine[(mine >= first) & (mine < first + len(noisy))] - first
                if len(inside):
                    chosen = noisy[torch.from_numpy(inside).to(noisy.device)]
                    yield chosen, torch.full((len(inside),), position, device=noisy.device)


class _Audit(NamedTuple):
    """Mismatches and evaluations of the audit, per image."""

    mismatches: list[int]
    steps: list[int]


class _Chains:
    """The warm-started solves of E images: copy i of a batch starts from lane i, the fixed point of an earlier copy i.

    Lanes have shape (W, E, ...): with E innermost, the first lanes of all images lie together, as their copies do.
    """

    def __init__(self, settings: Serialized, engine: Engine, images: Tensor) -> None:
        self.settings = settings
        self.engine = engine
        self.count = len(images)
        self.clean_steps = torch.zeros(self.count, dtype=torch.int64, device=images.device)
        self._filled = 0
        self._lanes = engine.lanes(min(settings.batch_size, max(settings.n0, settings.n)), self.count)
        if settings.start == "clean":
            self.clean_steps = engine.label(images, settings.reference, keep=self._lanes[0]).steps
            self._filled = 1

    def advance(self, noisy: Tensor) -> Labels:
        """Label one batch, shape (size · E, C, H, W), and remember its fixed points."""
        size = len(noisy) // self.count
        cold = self._filled == 0
        if not cold and size > self._filled:
            places = torch.arange(size, device=noisy.device) % self._filled
            self._lanes[self._filled : size] = self._lanes[places[self._filled :]]
            self._filled = size
        lanes = self._lanes[:size].flatten(0, 1)
        remembers = cold or self.settings.start == "previous"
        solver = Anderson(max_steps=self.settings.warmup_steps) if cold else self.settings.solver
        with self._autocast(noisy.device):
            labels = self.engine.label(noisy, solver, start=None if cold else lanes, keep=lanes if remembers else None)
        self._filled = max(self._filled, size)
        return labels

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
