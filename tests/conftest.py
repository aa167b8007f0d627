"""Fixtures of several folders: a classifier whose fixed point is known in closed form, votes, certificates, runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Tests run side by side, and threads that spin while they wait slow down the others. OpenMP reads it with torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from deqcert.models import DEQ
from deqcert.runs import Ledger, write_results
from deqcert.solvers import Picard
from deqcert.statistics import Certificate, CertificationRule, Votes

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


class ThresholdDEQ(DEQ):
    """z = rate · z + u with u the mean pixel, hence z* = u / (1 − rate); class 0 where z > threshold, else class 1.

    Rows with u > poison are NaN. ``rows`` records the batch size of every evaluation of the cell and ``inputs`` every
    batch of images.
    """

    def __init__(self, threshold: float = 1.0, rate: float = 0.5, poison: float = float("inf")) -> None:
        super().__init__(Picard(max_steps=60))
        self.threshold = threshold
        self.rate = rate
        self.poison = poison
        self.rows: list[int] = []
        self.inputs: list[Tensor] = []
        self.eval()

    def inject(self, x: Tensor) -> Tensor:
        self.inputs.append(x)
        return x.flatten(1).mean(dim=1, keepdim=True)

    def initial_state(self, injection: Tensor) -> Tensor:
        return torch.zeros_like(injection)

    def cell(self, z: Tensor, injection: Tensor) -> Tensor:
        self.rows.append(len(z))
        return torch.where(injection > self.poison, torch.nan, self.rate * z + injection)

    def head(self, z: Tensor) -> Tensor:
        return torch.cat([z, torch.full_like(z, self.threshold)], dim=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def threshold_deq() -> Callable[..., ThresholdDEQ]:
    return ThresholdDEQ


@pytest.fixture
def record_fault(record_property: Callable[[str, object], None]) -> Callable[[str, int, str], None]:
    """Take down a fault for the table at the end."""

    def record(fault: str, tried: int, outcome: str) -> None:
        record_property("fault", (fault, tried, outcome))

    return record


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of docs/reliability.md: what was tried, how often, and what came of it."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    rows = sorted(
        value
        for report in reports
        if getattr(report, "when", "") == "call" and report.passed
        for name, value in report.user_properties
        if name == "fault"
    )
    if rows:
        terminalreporter.section("faults")
        terminalreporter.write_line("| fault | tried | outcome |\n| --- | ---: | --- |")
        for fault, tried, outcome in rows:
            terminalreporter.write_line(f"| {fault} | {tried} | {outcome} |")


@pytest.fixture(scope="session")
def make_certificate() -> Callable[..., Certificate]:
    """A correct, sound certificate, unless told otherwise."""

    def make(index=0, radius=0.5, *, label=3, prediction=3, sound=True):
        return Certificate(prediction, radius, 0.75, sound, index, label)

    return make


@pytest.fixture(scope="session")
def make_votes() -> Callable[..., Votes]:
    """Votes of 4 classes, 10 + 100 noisy samples, 20 audited, unless told otherwise."""

    def make(index=0, **fields):
        votes = Votes(
            index=index,
            label=3,
            n0=10,
            n=100,
            selection=(0, 0, 1, 9),
            estimation=(2, 3, 0, 95),
            audited=20,
            mismatches=1,
            nfe_fast=330,
            nfe_audit=600,
            residual=1e-3,
            seconds=1.5,
            sigma=0.5,
            noise_error=0.0,
        )
        return votes._replace(**fields)

    return make


@pytest.fixture
def make_run(tmp_path, make_votes) -> Callable[..., Path]:
    """The directory of a finished run, unless told otherwise of five images with fewer and fewer votes."""

    def make(name="run", votes=None, audit="exact", sigma=0.5, alpha=0.001, **further):
        if votes is None:
            votes = [make_votes(10 * i, estimation=(5 * i, 0, 0, 100 - 5 * i), mismatches=0) for i in range(5)]
        votes = [vote._replace(sigma=sigma) for vote in votes]
        smoothing = {"class": "Smoothing", "sigma": sigma, "noise": "float32"}
        identity = {"smoothing": smoothing, "sampling": {"class": "Standard"}, "image": [1, 8, 8]}
        ledger = Ledger(tmp_path / name, identity)
        with ledger.claim(), ledger.open(0):
            for vote in votes:
                ledger.append(vote)
        rule = CertificationRule(alpha=alpha, audit=audit)
        write_results(ledger.directory, votes, rule, {**ledger.identity, **further}, radii=[0.0])
        return ledger.directory

    return make
