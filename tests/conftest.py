"""A deep equilibrium classifier whose fixed point is known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from deqcert.models import DEQ
from deqcert.solvers import Picard

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
