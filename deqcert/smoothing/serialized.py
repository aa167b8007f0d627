"""Serialized randomized smoothing: warm-started cheap labels and an exact audit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from deqcert.errors import require, require_count
from deqcert.seeding import Purpose
from deqcert.smoothing.base import AuditTask, Smoothing, solver_label
from deqcert.smoothing.engine import Engine, Labels
from deqcert.smoothing.noise import audit_subset
from deqcert.solvers import Anderson, Solver
from deqcert.statistics import AdaptiveAudit, AuditSize, ChainAudit, ChainLabels, FixedAudit, selected_class

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
        seed: Seed of all random streams, in [0, 2^64).
        execution: How copies are spread over launches.
        chains: Chains with noise of their own that the n copies of an image are split into, from 1 to n.
        noise: "float32" noise is added as published, which rounds; "quantised" noise, for 8-bit images, is off by a
            bound that certificates subtract (docs/floating_point.md).
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

    @property
    def base_solver(self) -> Solver:
        """That of the audit."""
        return self.reference

    @torch.no_grad()
    def label_chain(self, engine: Engine, images: Tensor, indices: Sequence[int], chain: int) -> list[ChainLabels]:
        """Label noisy copies by one warm-started chain per image; see :meth:`Smoothing.label_chain`.

        Raises:
            SettingError: If the classifier is no DEQ.
        """
        lanes = _Lanes(self, engine, images, chain)
        labels = self._label_copies(lanes.advance, engine, images, indices, chain)
        cleaning = lanes.clean_steps.tolist()
        return [each._replace(nfe=each.nfe + steps) for each, steps in zip(labels, cleaning, strict=True)]

    def audit_tasks(self, image: Tensor, labels: Sequence[ChainLabels]) -> list[AuditTask]:
        """Draw one uniformly random subset of all copies with S = A; see :meth:`Smoothing.audit_tasks`.

        All cheap labels are known before any true one is looked at, so its size K may depend on N_A.
        """
        selected, index = selected_class(labels), labels[0].index
        agreeing = np.flatnonzero(np.concatenate([each.labels for each in labels]) == selected)
        subset = audit_subset(agreeing, self.audit.size(len(agreeing), self.n), index, self.seed)
        ends = np.cumsum([len(each.labels) for each in labels])
        members = np.split(subset, np.searchsorted(subset, ends[:-1]))
        return [
            AuditTask(image, index, each.chain, selected, mine - (end - len(each.labels)))
            for each, mine, end in zip(labels, members, ends, strict=True)
        ]

    @torch.no_grad()
    def audit_chains(self, engine: Engine, tasks: Sequence[AuditTask]) -> list[ChainAudit]:
        """Label the members of all tasks from a cold start, several tasks in one launch."""
        started = time.perf_counter()
        device = tasks[0].image.device
        classes = torch.tensor([task.selected for task in tasks], device=device)
        mismatches = torch.zeros(len(tasks), dtype=torch.int64, device=device)
        steps = torch.zeros_like(mismatches)
        side_by_side = len({task.index for task in tasks})
        for noisy, owners in _regrouped(self._members(tasks), side_by_side * self.batch_size):
            true = self.base_labels(engine, noisy)
            mismatches.index_add_(0, owners, (true.labels != classes[owners]).long())
            steps.index_add_(0, owners, true.steps)
        outcomes = zip(tasks, mismatches.tolist(), steps.tolist(), strict=True)
        seconds = (time.perf_counter() - started) / len(tasks)
        return [
            ChainAudit(task.index, task.chain, len(task.members), missed, nfe, seconds)
            for task, missed, nfe in outcomes
        ]

    def _members(self, tasks: Sequence[AuditTask]) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw the estimation copies of each task again; yield its members with the position of the task."""
        for position, task in enumerate(tasks):
            first, end = 0, task.members.max(initial=-1) + 1
            for noisy in self._noisy_batches(task.image, task.index, Purpose.ESTIMATION, task.chain):
                if first >= end:
                    break
                inside = task.members[(task.members >= first) & (task.members < first + len(noisy))] - first
                first += len(noisy)
                if len(inside):
                    chosen = noisy[torch.from_numpy(inside).to(noisy.device)]
                    yield chosen, torch.full((len(inside),), position, device=noisy.device)


class _Lanes:
    """The warm-started solves of E images: copy i of a batch starts from lane i, the fixed point of an earlier copy i.

    Lanes have shape (W, E, ...): with E innermost, the first lanes of all images lie together, as their copies do.
    """

    def __init__(self, settings: Serialized, engine: Engine, images: Tensor, chain: int) -> None:
        self.settings = settings
        self.engine = engine
        self.count = len(images)
        self.clean_steps = torch.zeros(self.count, dtype=torch.int64, device=images.device)
        self._filled = 0
        copies = max(settings.copies(purpose, chain) for purpose in (Purpose.SELECTION, Purpose.ESTIMATION))
        self._lanes = engine.lanes(min(settings.batch_size, copies), self.count)
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
