from __future__ import annotations

from collections.abc import Callable

import pytest

from deqcert.statistics import Votes


@pytest.fixture(scope="session")
def make_votes() -> Callable[..., Votes]:
    """Votes of three classes, 10 + 100 noisy copies, unless told otherwise."""

    def make(index: int = 0, **fields: object) -> Votes:
        votes = Votes(
            index=index,
            label=1,
            n0=10,
            n=100,
            selection=(1, 9, 0),
            estimation=(index % 10, 80, 0),
            audited=20,
            mismatches=1,
            nfe_fast=330,
            nfe_audit=600,
            residual=0.001,
            seconds=1.5,
            sigma=0.5,
            noise_error=0.0,
        )
        return votes._replace(**fields)

    return make
