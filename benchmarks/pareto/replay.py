"""Votes of every configuration from the labels that measure.py has stored: the real strategies on remembered labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from deqcert.smoothing.base import AuditTask
from deqcert.smoothing.tally import Tally
from measure import BATCH, N0, SEED, SIGMA, STEPS
from networks import NETWORKS

from deqcert.seeding import Purpose
from deqcert.smoothing import Serialized
from deqcert.smoothing.engine import Engine, Labels
from deqcert.solvers import Anderson
from deqcert.statistics import (
    AdaptiveAudit,
    AuditRule,
    AuditSize,
    ChainAudit,
    ChainLabels,
    FixedAudit,
    InputSpecific,
    Stopping,
    Votes,
    join_chains,
)

CLASSES = 10
PILOT = 500
"""Selection copies of input-specific sampling: the others' 100, and the first batch of the estimation."""

SIZES: dict[str, Stopping] = {
    "input-specific 5 %": InputSpecific(0.05),
    "input-specific 0.1 σ": InputSpecific(0.1, "absolute"),
    "input-specific 0.12 σ": InputSpecific(0.12, "absolute"),
}


class Copies(NamedTuple):
    """The labels of one image's copies, selection first, and the evaluations behind each."""

    labels: np.ndarray
    steps: np.ndarray


class Configuration(NamedTuple):
    """What is certified, and how.

    Attributes:
        name: Name in the tables.
        series: Stored series of labels.
        column: Which of its labels.
        kind: "fixed" or "input-specific" size of the sample, or "audit".
        stopping: For the first two.
        audit: For the last.
        rule: Rule of the audit.
    """

    name: str
    series: str
    column: str
    kind: str
    stopping: Stopping | None = None
    audit: AuditSize | None = None
    rule: AuditRule = "exact"


def configurations() -> Iterator[Configuration]:
    """Yield all of them."""
    depths = [(f"standard-{depth}A", f"standard-{depth}A", "label") for depth in (30, 10, 5)]
    anchors = [(f"anchored-{k}N-{network}", f"anchored-{network}", f"label{k}") for network in NETWORKS for k in STEPS]
    for name, series, column in depths + anchors:
        yield Configuration(name, series, column, "fixed")
        for text, stopping in SIZES.items():
            yield Configuration(f"{name}, {text}", series, column, "input-specific", stopping)
    for k in (1, 3):
        for loss in (0.2, 0.1, 0.05, 0.02):
            yield Configuration(
                f"SRS-{k}A, exact, {100 * loss:g} %", f"SRS-{k}A", "label", "audit", audit=AdaptiveAudit(loss)
            )
        published = Configuration(f"SRS-{k}A, published", f"SRS-{k}A", "label", "audit", audit=FixedAudit(400))
        yield published._replace(rule="published")


class Store:
    """The labels that measure.py has written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[Path, dict[str, np.ndarray]] = {}

    def columns(self, series: str, index: int) -> dict[str, np.ndarray]:
        path = self.directory / series / f"{index:05d}.npz"
        if path not in self._files:
            with np.load(path) as file:
                self._files[path] = dict(file)
        return self._files[path]

    def images(self, series: str, n: int) -> list[int]:
        """Return the images of which a series has n estimation copies."""
        indices = [int(path.stem) for path in sorted((self.directory / series).glob("?????.npz"))]
        return [i for i in indices if len(self._labels(series, i)) >= N0 + n]

    def _labels(self, series: str, index: int) -> np.ndarray:
        columns = self.columns(series, index)
        return next(column for name, column in columns.items() if name.startswith("label"))

    def copies(self, series: str, column: str, index: int, n: int) -> Copies:
        columns = self.columns(series, index)
        labels = columns[column][: N0 + n]
        steps = columns["steps"] if "steps" in columns else np.full(len(labels), int(column.removeprefix("label")))
        return Copies(labels, steps[: N0 + n])


class Seconds(NamedTuple):
    """Seconds per copy: of a label, and of a label of the audit."""

    label: float
    audit: float


def vote(configuration: Configuration, store: Store, index: int, label: int, n: int, seconds: Seconds) -> Votes:
    """Return the votes that a run of ``configuration`` with n copies would take."""
    if configuration.audit is not None:
        return _serialized(configuration.series, configuration.audit, store, index, label, n, seconds)
    copies = store.copies(configuration.series, configuration.column, index, n)
    n0 = PILOT if configuration.kind == "input-specific" else N0
    return _independent(copies, n0, configuration.stopping, index, label, seconds)


def _independent(copies: Copies, n0: int, stopping: Stopping | None, index: int, label: int, seconds: Seconds) -> Votes:
    n = len(copies.labels) - n0
    tally = Tally(stopping, n)
    labels, steps = torch.from_numpy(copies.labels.astype(np.int64)), torch.from_numpy(copies.steps.astype(np.int64))
    given = Labels(labels, steps, torch.zeros(len(labels)))
    tally.add(Labels(*(part[:n0] for part in given)), Purpose.SELECTION)
    for first in range(n0, n0 + n, BATCH):
        tally.add(Labels(*(part[first : first + BATCH] for part in given)), Purpose.ESTIMATION)
        if tally.settled:
            break
    drawn = len(tally.joined().labels)
    part = _chain(index, copies.labels[:n0], copies.labels[n0:drawn], int(copies.steps[:drawn].sum()))
    part = part._replace(seconds=seconds.label * drawn)
    return join_chains(label, n0, [part], None, sigma=SIGMA, noise_error=0.0)


def _chain(index: int, selection: np.ndarray, labels: np.ndarray, nfe: int) -> ChainLabels:
    counts = tuple(np.bincount(selection[selection >= 0], minlength=CLASSES).tolist())
    return ChainLabels(index, 0, counts, labels.astype(np.int16), nfe, 0.0, 0.0)


@dataclass(frozen=True)
class _Remembered(Serialized):
    """Serialized smoothing whose audit finds what is remembered of the base classifier's labels."""

    true: Copies | None = None
    seconds_of_a_copy: float = 0.0

    def audit_chains(self, engine: Engine | None, tasks: Sequence[AuditTask]) -> list[ChainAudit]:
        found = []
        for task in tasks:
            members = task.members + N0
            missed = int((self.true.labels[members] != task.selected).sum())
            nfe, audited = int(self.true.steps[members].sum()), len(members)
            found.append(ChainAudit(task.index, 0, audited, missed, nfe, self.seconds_of_a_copy * audited))
        return found


def _serialized(series: str, audit: AuditSize, store: Store, index: int, label: int, n: int, seconds: Seconds) -> Votes:
    stored = store.columns(series, index)
    labels, fast = stored["label"][: N0 + n], int(series[4])
    nfe = int(stored["nfe"][0]) - fast * (len(stored["label"]) - N0 - n)  # a shorter chain is the beginning of this one
    part = _chain(index, labels[:N0], labels[N0:], nfe)._replace(seconds=seconds.label * (N0 + n))
    strategy = _Remembered(
        sigma=SIGMA,
        n0=N0,
        n=n,
        batch_size=BATCH,
        seed=SEED,
        solver=Anderson(max_steps=fast),
        audit=audit,
        true=store.copies("standard-30A", "label", index, n),
        seconds_of_a_copy=seconds.audit,
    )
    tasks = strategy.audit_tasks(torch.empty(0), [part])
    audits = strategy.audit_chains(None, tasks)
    return join_chains(label, N0, [part], audits, sigma=SIGMA, noise_error=0.0)
