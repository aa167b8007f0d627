from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from deqcert.statistics import Votes


@pytest.fixture(scope="session")
def make_votes() -> Callable[..., Votes]:
    """Consistent votes of three classes, A = 1, from which a test changes what it is about."""

    def make(**changes: object) -> Votes:
        votes = Votes(
            index=7,
            label=1,
            n0=100,
            n=1000,
            selection=(10, 80, 10),
            estimation=(20, 950, 30),
            audited=400,
            mismatches=2,
            nfe_fast=3300,
            nfe_audit=12000,
            residual=0.01,
            seconds=1.5,
            sigma=0.5,
            noise_error=0.0,
        )
        return votes._replace(**changes)

    return make


@pytest.fixture(scope="session")
def standard_votes(make_votes: Callable[..., Votes]) -> Votes:
    return make_votes(audited=None, mismatches=0, nfe_audit=0, residual=math.nan)
