from collections.abc import Callable

import pytest

from deqcert.statistics import Certificate, Votes


@pytest.fixture(scope="session")
def make_certificate() -> Callable[..., Certificate]:
    """A correct, sound certificate, unless told otherwise."""

    def make(index=0, radius=0.5, *, label=3, prediction=3, sound=True):
        return Certificate(index, label, prediction, radius, p_a_lower=0.75, sound=sound)

    return make


@pytest.fixture(scope="session")
def make_votes() -> Callable[..., Votes]:
    """Votes of 4 classes, 10 + 100 noisy copies, 20 audited, unless told otherwise."""

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
        )
        return votes._replace(**fields)

    return make
