"""Collects what the fault tests have tried into the table of docs/reliability.md."""

from __future__ import annotations

import pytest


@pytest.fixture
def record_fault(record_property):
    """Take down a fault, how often it was tried and what came of it."""

    def record(fault: str, tried: int, outcome: str) -> None:
        record_property("fault", (fault, tried, outcome))

    return record


def pytest_terminal_summary(terminalreporter):
    """Print the table."""
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
