"""Audits that stop by their outcome."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from deqcert.errors import SettingError
from deqcert.seeding import Purpose
from deqcert.smoothing import Execution, Serialized
from deqcert.smoothing.noise import audit_order
from deqcert.solvers import Picard
from deqcert.statistics import AdaptiveAudit, AuditSize, CertificationRule, FixedAudit, SequentialAudit

IMAGE = torch.full((1, 4, 4), 0.5)
RULE = SequentialAudit(radius_loss=0.1, alpha=0.01)
THRESHOLD = 0.7  # S = A where u > 0.2 and Y = A where u > 0.35, about, with u ~ N(1/2, 1/16) the mean of a copy
SOLVED = 1 - 2**-11  # how near to the fixed point 11 steps from 0 come


class Noted(AuditSize):
    """Looks after every ``step`` copies, up to ``most``; writes down what it was shown."""

    def __init__(self, step, most):
        self.step = step
        self.most = most
        self.shown = []

    @property
    def sequential(self):
        return True

    def size(self, n_a, n):
        return min(self.most, n_a)

    def next_size(self, n_a, n, audited, mismatches):
        self.shown.append((n_a, n, audited, mismatches))
        return min(audited + self.step, self.size(n_a, n))


def serialized(**changes):
    settings = {
        "sigma": 1.0,
        "n0": 60,
        "n": 1500,
        "batch_size": 50,
        "solver": Picard(max_steps=1),
        "start": "clean",
        "reference": Picard(max_steps=11),
        "audit": RULE,
    }
    return Serialized(**(settings | changes))


def measurement(votes):
    return {key: value for key, value in votes.to_json().items() if key != "seconds"}


def mismatching(strategy, index, threshold=THRESHOLD, image=IMAGE):
    """Of each copy in the order of the audit, whether it is a mismatch."""
    noisy = torch.cat(list(strategy._noisy_batches(image, index, Purpose.ESTIMATION)))
    u = noisy.flatten(1).mean(dim=1)
    cheap, true = SOLVED * float(image.mean()) + u > threshold, SOLVED * 2 * u > threshold
    agreeing = np.flatnonzero(cheap.numpy())
    order = audit_order(agreeing, strategy.audit.size(len(agreeing), strategy.n), index, strategy.seed)
    return ~true.numpy()[order]


def expected(strategy, index, n_a, **settings):
    """Follow the audit by hand: how many it looks at, and how many of these are mismatches."""
    wrong = mismatching(strategy, index, **settings)
    audited = 0
    while (size := strategy.audit.next_size(n_a, strategy.n, audited, int(wrong[:audited].sum()))) > audited:
        audited = size
    return audited, int(wrong[:audited].sum())


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("threshold", [0.2, 0.6, 0.7, 0.95])
def test_the_audit_is_the_one_that_its_outcome_asks_for(index, threshold, threshold_deq):
    strategy = serialized()
    classifier = threshold_deq(threshold)
    engine = strategy.engine(classifier, IMAGE)
    classifier.rows.clear()  # of the engine's own checks
    (votes,) = strategy.vote_group(engine, IMAGE[None], [index], [0])
    assert (votes.audited, votes.mismatches) == expected(strategy, index, votes.n_a, threshold=threshold)
    assert votes.nfe_audit == 11 * votes.audited
    assert sum(classifier.rows) == votes.nfe_fast + votes.nfe_audit
    assert (votes.n, votes.anytime) == (1500, True)
    votes.validate()


def test_mismatches_prolong_an_audit_until_they_leave_no_radius(threshold_deq):
    class Wrong(threshold_deq):
        """The reference, alone in taking 11 steps, finds no label A."""

        def solve(self, x, solver, start=None, workspace=None, anchored=False):
            logits, solution = super().solve(x, solver, start, workspace, anchored)
            return (torch.full_like(logits, torch.nan) if solver.max_steps == 11 else logits), solution

    none = serialized(solver=Picard(max_steps=12)).vote(threshold_deq(THRESHOLD), IMAGE, 0, 0)
    some = serialized().vote(threshold_deq(THRESHOLD), IMAGE, 0, 0)
    all_ = serialized().vote(Wrong(THRESHOLD), IMAGE, 0, 0)
    assert none.mismatches == 0 < some.mismatches < some.audited
    assert all_.mismatches == all_.audited
    assert none.audited < 0.6 * none.n_a
    assert some.audited > 0.8 * some.n_a
    assert all_.audited == RULE.next_size(all_.n_a, 1500, 0, 0) < 0.4 * all_.n_a
    rule = CertificationRule(alpha=0.01)
    one, other = (rule.certify(votes).radius for votes in (none, some))
    assert one == pytest.approx(other, rel=0.1)  # the base classifier is the same
    assert rule.certify(all_).radius == 0


def test_a_rule_of_ones_own_sees_the_outcome_after_each_part_and_no_copy_is_audited_twice(threshold_deq):
    rule = Noted(step=70, most=200)
    strategy = serialized(audit=rule)
    classifier = threshold_deq(THRESHOLD)
    votes = strategy.vote(classifier, IMAGE, 0, 0)
    shown, rule.shown = rule.shown, []
    wrong = mismatching(strategy, 0)
    assert shown == [(votes.n_a, 1500, size, int(wrong[:size].sum())) for size in (0, 70, 140, 200)]
    assert votes.audited == len(wrong) == 200
    assert 0 < votes.mismatches == int(wrong.sum())
    assert [len(x) for x in classifier.inputs[-6:]] == [50, 20, 50, 20, 50, 10]
    audited = torch.cat(classifier.inputs[-6:]).flatten(1)
    assert len(torch.unique(audited, dim=0)) == 200


def test_a_complete_sequential_audit_is_a_complete_audit(threshold_deq):
    votes = serialized(audit=Noted(step=400, most=1500)).vote(threshold_deq(THRESHOLD), IMAGE, 1, 0)
    fixed = serialized(audit=FixedAudit(1500)).vote(threshold_deq(THRESHOLD), IMAGE, 1, 0)
    assert measurement(votes) == measurement(fixed) | {"anytime": True}
    rule = CertificationRule()
    assert rule.p_a_lower(votes) == rule.p_a_lower(fixed) > 0


def test_nothing_is_audited_where_no_radius_can_be_left(threshold_deq):
    votes = serialized(n=5).vote(threshold_deq(-5.0), IMAGE, 0, 0)
    assert RULE.size(5, 5) == 0
    assert (votes.n_a, votes.audited, votes.mismatches, votes.nfe_audit, votes.anytime) == (5, 0, 0, 0, True)
    votes.validate()


@pytest.mark.parametrize("execution", [Execution(), Execution(rows=23), Execution(rows=64, images=3)], ids=str)
def test_neighbours_do_not_matter(execution, threshold_deq):
    strategy = serialized(n=600, execution=execution)
    images = torch.stack([IMAGE + shift for shift in (0.0, 0.5, -0.2, 0.15, -0.45)])
    indices, labels = [7, 3, 0, 12, 4], [0, 1, 0, 1, 0]
    alone = [strategy.vote(threshold_deq(THRESHOLD), *each) for each in zip(images, indices, labels, strict=True)]
    assert len({votes.audited for votes in alone}) >= 4
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [2, 3]):
        group = strategy.vote_group(
            strategy.engine(threshold_deq(THRESHOLD), IMAGE),
            images[order],
            [indices[i] for i in order],
            [labels[i] for i in order],
        )
        for votes, i in zip(group, order, strict=True):
            assert measurement(votes) == measurement(alone[i])


def test_other_audits_are_not_stopped(threshold_deq):
    for audit in (FixedAudit(30), AdaptiveAudit()):
        strategy = serialized(audit=audit)
        votes = strategy.vote(threshold_deq(), IMAGE, 0, 0)
        assert not votes.anytime
        assert votes.audited == audit.size(votes.n_a, 1500)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chains": 2}, "chains = 2: must be 1 with a sequential audit"),
        ({"n": 10**6 + 1}, "n = 1000001: must be <= 1000000 with a sequential audit"),
    ],
)
def test_what_a_sequential_audit_cannot_do_is_refused_by_name(settings, message):
    with pytest.raises(SettingError, match=f"^{message}"):
        serialized(**settings)
    serialized(**settings, audit=FixedAudit(3))


def test_identity_names_the_rule():
    identity = serialized().identity
    assert identity["audit"] == {
        "class": "SequentialAudit",
        "radius_loss": 0.1,
        "alpha": 0.01,
        "alpha_audit": None,
    }
    assert dataclasses.replace(serialized(), audit=SequentialAudit(0.2, 0.01)).identity != identity


def test_the_network_must_still_be_a_deq():
    with pytest.raises(SettingError, match="needs a DEQ"):
        serialized().vote(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval(), IMAGE, 0, 0)
