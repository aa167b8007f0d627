"""The cost model counts what runs take, and the simulated ledgers are those of runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

from deqcert.models import MDEQ
from deqcert.smoothing import Serialized, Smoothing, Standard, Stream
from deqcert.solvers import Anderson, Broyden
from deqcert.statistics import FixedAudit

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = {"channels": (8, 16), "head_channels": (2, 4), "final_channels": 16, "downsample_times": 2}


@pytest.fixture
def scale(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scale

    yield scale
    for name in set(sys.modules) - before:
        if "benchmarks" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("sampling", "solver"),
    [
        (Standard(n0=10, n=40, batch_size=10), Broyden(4)),
        (Standard(n0=10, n=40, batch_size=10), Anderson(3)),
        (Serialized(n0=10, n=40, batch_size=10, proposal=Broyden(1), audit=FixedAudit(8)), Broyden(4)),
        (Serialized(n0=10, n=40, batch_size=10, proposal=Anderson(3), audit=FixedAudit(8), escalation=0.1), Broyden(4)),
    ],
    ids=["standard-4B", "standard-3A", "SRS-1B", "SRS-3A"],
)
def test_evaluations_on_paper_are_those_of_a_run(scale, sampling, solver):
    torch.manual_seed(0)
    g = Smoothing(0.5, solver=solver).of(MDEQ(dropout=0, **TINY).eval())
    votes = sampling.votes(g, torch.rand(3, 32, 32), Stream(0, 0))
    plan = scale.Plan.of(scale.Strategy("", sampling, solver), sampling.n)
    assert votes.nfe_fast + votes.nfe_audit == plan.evaluations


def test_work_is_that_of_one_row(scale):
    costs = scale.Costs(TINY)
    weights = torch.rand(5, 7)
    product = scale.counted(lambda rows: torch.ones(rows, 5) @ weights)
    assert product.flops == 2 * 5 * 7
    assert product.bytes == 4 * (5 + 5 + 7)  # filled, read, written; the weights belong to no row
    three, six = (costs.algebra(Broyden(steps)) for steps in (3, 6))
    assert 0 < three.flops < six.flops / 4  # as the square of the steps
    assert costs.solve(Anderson(3)).flops == pytest.approx(
        costs.inject.flops + 3 * costs.cell.flops + costs.head.flops + costs.algebra(Anderson(3)).flops
    )


def test_files_of_every_kind_are_verified_and_reported(scale):
    printed = scale.files(argparse.Namespace(ranks=3, images=40))
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows if row[0] in ("| 1", "| 3")] == ["| 1", "| 3"]
    assert [(row[0], row[1]) for row in rows if "standard" in row or "SRS, adaptive audit" in row] == [
        ("| 4", "10"),
        ("| 40", "10"),
        ("| 2", "1000"),
        ("| 2", "1000"),
    ]
