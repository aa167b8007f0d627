from collections.abc import Callable
from pathlib import Path

import pytest

from deqcert.report import write_json
from deqcert.statistics import Certificate, CertificationRule, Votes


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
        certificates = [CertificationRule(alpha=alpha, audit=audit).certify(vote) for vote in votes]
        settings = {
            "certificate": {"alpha": alpha, "alpha_audit": None, "audit": audit},
            "smoothing": {"sigma": sigma, "noise": "float32"},
            "image": [1, 8, 8],
            **further,
        }
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "certificates.json", certificates, votes, settings, radii=[0.0])
        return tmp_path / name

    return make
