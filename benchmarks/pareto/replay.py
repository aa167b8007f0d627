"""Votes of every configuration from the predictions that measure.py has stored, taken by the real strategies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from measure import BATCH, N0, SEED, SIGMA, STEPS
from networks import NETWORKS
from torch import Tensor, nn

from deqcert.smoothing import Engine, Sampling, Serialized, SmoothedClassifier, Standard, Stream
from deqcert.smoothing.engine import Predictions
from deqcert.solvers import Solver
from deqcert.statistics import AdaptiveAudit, AuditRule, CertificationRule, FixedAudit, GroupSequential, Votes

CLASSES = 10

SIZES: dict[str, GroupSequential] = {
    **{f"gain {gain:g} σ": GroupSequential(gain) for gain in (0.1, 0.08, 0.06, 0.05)},
    **{f"target {target:g} σ": GroupSequential(radius_in_sigma=target) for target in (0.5, 1.0, 2.0)},
}
"""Rules that choose n, by their names in the tables."""


class Configuration(NamedTuple):
    """What is certified, and how.

    Attributes:
        name: Name in the tables.
        series: Stored series of predictions.
        column: Which of its predictions.
        kind: "fixed" or "sequential" number of samples, or "audit".
        sampling: How votes are taken.
        rule: How they become certificates.
    """

    name: str
    series: str
    column: str
    kind: str
    sampling: Sampling
    rule: CertificationRule = CertificationRule()


def configurations(n: int) -> Iterator[Configuration]:
    """Yield all of them."""
    sizes = {"n0": N0, "n": n, "batch_size": BATCH}
    two = CertificationRule(sides="two")
    depths = [(f"standard-{depth}A", f"standard-{depth}A", "class") for depth in (30, 10, 5)]
    anchors = [(f"anchored-{k}N-{network}", f"anchored-{network}", f"class{k}") for network in NETWORKS for k in STEPS]
    for name, series, column in depths + anchors:
        yield Configuration(name, series, column, "fixed", Standard(**sizes))
        yield Configuration(f"{name}, two-sided", series, column, "fixed", Standard(**sizes), two)
        for text, stopping in SIZES.items():
            sampling = Standard(**sizes, stopping=stopping)
            yield Configuration(f"{name}, {text}", series, column, "sequential", sampling)
    for k in (1, 3):
        name = f"SRS-{k}A"
        for audit, escalation, losses in AUDITS:
            rule, shown = CertificationRule(audit=audit), f", escalated {100 * escalation:g} %" if escalation else ""
            for loss in losses:
                sampling = Serialized(**sizes, escalation=escalation, audit=AdaptiveAudit(loss)).aimed_at(rule)
                yield Configuration(f"{name}, {audit}{shown}, {100 * loss:g} %", name, "class", "audit", sampling, rule)
                if escalation:
                    text = f"{name}, {audit}{shown}, {100 * loss:g} %, two-sided"
                    yield Configuration(text, name, "class", "audit", replace(sampling, sides="two"), two)
        sampling = Serialized(**sizes, audit=FixedAudit(400))
        yield Configuration(
            f"{name}, published", name, "class", "audit", sampling, CertificationRule(audit="published")
        )


AUDITS: tuple[tuple[AuditRule, float, tuple[float, ...]], ...] = (
    ("exact", 0.0, (0.2, 0.05, 0.02)),
    ("joint", 0.0, (0.2, 0.05, 0.02)),
    *(("joint", escalation, (0.05, 0.02, 0.01)) for escalation in (0.05, 0.1, 0.2)),
)
"""Rule, escalation and radius losses of the audits."""


class Store:
    """The predictions that measure.py has written."""

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
        """Return the images of which a series has n estimation samples."""
        indices = [int(path.stem) for path in sorted((self.directory / series).glob("?????.npz"))]
        return [i for i in indices if len(next(iter(self.columns(series, i).values()))) >= N0 + n]

    def predictions(self, series: str, column: str, index: int, n: int) -> Predictions:
        """Return the predictions for the noisy samples of an image, selection first."""
        columns = self.columns(series, index)
        classes = torch.from_numpy(columns[column][: N0 + n].astype(np.int64))
        steps = columns["steps"] if "steps" in columns else np.full(len(classes), int(column.removeprefix("class")))
        doubt = [columns.get(name, np.zeros(len(steps)))[: N0 + n] for name in ("runner_up", "margin")]
        return Predictions(
            classes,
            torch.from_numpy(steps[: N0 + n].astype(np.int64)),
            torch.zeros(len(classes)),
            torch.from_numpy(doubt[0].astype(np.int64)),
            torch.from_numpy(doubt[1].astype(np.float32)),
        )


class Seconds(NamedTuple):
    """Seconds per noisy sample: of a prediction, and of one of the audit."""

    prediction: float
    audit: float


class Remembered:
    """Stands for an engine: gives stored predictions in their order, and those of f to samples that come again."""

    num_classes = CLASSES
    state = torch.zeros(1, 1)

    def __init__(self, given: Predictions, audited: Predictions) -> None:
        self._given, self._audited = given, audited
        self._places: dict[bytes, int] = {}

    def predict(
        self, x: Tensor, solver: Solver | None = None, start: Tensor | None = None, keep: Tensor | None = None
    ) -> Predictions:
        keys = [row.numpy().tobytes() for row in x]
        if keys[0] in self._places:
            places = torch.tensor([self._places[key] for key in keys])
            return Predictions(*(tensor[places] for tensor in self._audited))
        first = len(self._places)
        self._places |= {key: first + i for i, key in enumerate(keys)}
        assert len(self._places) == first + len(x), "no two samples have the same noise"
        return Predictions(*(tensor[first : first + len(x)] for tensor in self._given))


_IMAGE = torch.zeros(1, 2, 2)
"""Its noise only tells samples apart: what they would be classified as is known."""


def vote(configuration: Configuration, store: Store, index: int, label: int, n: int, seconds: Seconds) -> Votes:
    """Return the votes that a run of ``configuration`` with n samples would take."""
    given = store.predictions(configuration.series, configuration.column, index, n)
    audited = store.predictions("standard-30A", "class", index, n)
    g = SmoothedClassifier(nn.Identity(), SIGMA)
    engine = cast(Engine, Remembered(given, audited))
    (votes,) = configuration.sampling.group_votes(g, engine, _IMAGE[None], [Stream(SEED, index)])
    taken = seconds.prediction * (votes.n0 + votes.n) + seconds.audit * ((votes.audited or 0) + votes.escalations)
    return votes._replace(index=index, label=label, seconds=taken)
