"""Audits that stop by their outcome, and what that does to certificates."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from deqcert.errors import SettingError
from deqcert.statistics import (
    AdaptiveAudit,
    AuditSize,
    CertificationRule,
    FixedAudit,
    SequentialAudit,
    Votes,
    anytime_effective_count,
    clopper_pearson_lower,
    exact_effective_count,
    split_alpha,
)
from deqcert.statistics.audit import unit_radius

ALPHA, ALPHA_AUDIT, SIMULATIONS = 0.1, 0.09, 20_000
# Few of many copies: what a small audit misses is more than what Clopper-Pearson allows for anyway.
MANY = (4000, 3900, tuple(np.unique(np.geomspace(10, 800, 60).astype(int)).tolist()))
FEW = (400, 380, tuple(range(10, 381, 10)))


def at_most(share: float) -> float:
    """The largest frequency that chance explains if the probability is ``share``."""
    return share + 4 * math.sqrt(share * (1 - share) / SIMULATIONS)


@cache
def audits(p, n, n_a, looks):
    """Mismatches in the first copies of the audit at each look, shape (SIMULATIONS, looks).

    The cheap labels are as deceptive as they can be with N_A fixed: A for all copies of which f says A, T of n, and
    for so many others that there are N_A in all.
    """
    rng = np.random.default_rng(0)
    true = np.minimum(rng.binomial(n, p, SIMULATIONS), n_a)
    rest, missed = np.full(SIMULATIONS, n_a), n_a - true
    counts = []
    for size in np.diff(looks, prepend=0):
        found = rng.hypergeometric(missed, rest - missed, size)
        rest, missed = rest - size, missed - found
        counts.append(found)
    return np.cumsum(counts, axis=0).T


@cache
def claims(effective_count, n, n_a, looks):
    """The bound on p_A at each look and number of mismatches, shape (looks, last look + 1)."""
    table = np.zeros((len(looks), looks[-1] + 1))
    for row, size in zip(table, looks, strict=True):
        effective = effective_count(n_a, size, np.arange(size + 1), ALPHA_AUDIT)
        row[: size + 1] = clopper_pearson_lower(effective, n, ALPHA - ALPHA_AUDIT)
    return table


@pytest.mark.parametrize("p", [0.3, 0.5, 0.8])
def test_whoever_stops_an_audit_where_its_certificate_looks_best_errs_at_most_with_alpha(p):
    looks = np.arange(len(MANY[2]))
    wrong = {
        count: float((claims(count, *MANY)[looks, audits(p, *MANY)].max(axis=1) > p).mean())
        for count in (anytime_effective_count, exact_effective_count)
    }
    assert 0 < wrong[anytime_effective_count] <= at_most(ALPHA)
    assert wrong[exact_effective_count] > 2 * ALPHA, "this test would not find a bound for a fixed size"


@pytest.mark.parametrize("p", [0.5, 0.55, 0.8])
@pytest.mark.parametrize("radius_loss", [0.1, 0.3])
def test_certificates_of_audits_that_the_rule_ends_are_false_at_most_with_alpha(p, radius_loss):
    """Looked at every tenth copy."""
    n, n_a, _ = FEW
    rule = SequentialAudit(radius_loss, ALPHA, ALPHA_AUDIT)
    next_look = cache(lambda look, mismatches: math.ceil(rule.next_size(n_a, n, 10 * look, mismatches) / 10))
    ends = []
    for counts in audits(p, *FEW).tolist():
        look = mismatches = 0
        while (later := next_look(look, mismatches)) > look:
            look, mismatches = later, counts[later - 1]
        ends.append((look, mismatches))
    looks, mismatches = np.array(ends).T
    assert len(np.unique(looks)) >= 2
    lower = claims(anytime_effective_count, *FEW)[looks - 1, mismatches]
    assert (lower > p).mean() <= at_most(ALPHA)
    whole = Votes(0, 0, 1, n, (1, 0), (n_a, 0), 10 * ends[0][0], ends[0][1], 0, 0, 0.0, 0.0, 0.5, 0.0, anytime=True)
    assert CertificationRule(ALPHA, ALPHA_AUDIT).p_a_lower(whole) == lower[0]


def test_effective_counts_are_those_of_the_bound():
    sizes, mismatches = np.array([0, 100, 9000]), np.array([0, 5, 450])
    anytime = anytime_effective_count(9000, sizes, mismatches, 0.0005)
    exact = exact_effective_count(9000, sizes, mismatches, 0.0005)
    assert anytime[0] == exact[0] == 0
    assert 0 < anytime[1] < exact[1]
    assert anytime[2] == exact[2] == 8550
    with pytest.raises(SettingError, match="mismatches = 6: must be <= audited"):
        anytime_effective_count(10, 5, 6, 0.1)
    with pytest.raises(SettingError, match="n_a = 1000001: must be <= 1000000 for a sequential audit"):
        anytime_effective_count(10**6 + 1, 5, 1, 0.1)


def certified(rule, n_a, n, audited, mismatches):
    alpha_audit, alpha_count = split_alpha(rule.alpha, rule.alpha_audit)
    return unit_radius(int(anytime_effective_count(n_a, audited, mismatches, alpha_audit)), n, alpha_count)


def audited_to_the_end(rule, n_a, n, marked):
    """Follow one audit whose mismatches are ``marked``, an array of the places in its order."""
    looks = [0]
    while (size := rule.next_size(n_a, n, looks[-1], int((marked < looks[-1]).sum()))) > looks[-1]:
        looks.append(size)
    return looks[1:]


@pytest.mark.parametrize("rule", [SequentialAudit(), SequentialAudit(0.2, 0.05, 0.01)], ids=str)
@pytest.mark.parametrize("n_a", [5600, 9000, 9990])
def test_without_mismatches_the_audit_ends_at_the_smallest_size_that_keeps_the_radius(rule, n_a):
    looks = audited_to_the_end(rule, n_a, 10_000, np.array([]))
    whole = unit_radius(n_a, 10_000, rule.alpha - split_alpha(rule.alpha, rule.alpha_audit)[0])
    radii = [certified(rule, n_a, 10_000, looks[-1] - less, 0) for less in (0, 1)]
    assert radii[0] >= (1 - rule.radius_loss) * whole > radii[1]


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_the_audit_goes_on_until_the_rest_would_add_little(share):
    """Nearly always: what is attainable is an estimate."""
    rng = np.random.default_rng(3)
    n_a, n, rule = 900, 1000, SequentialAudit(radius_loss=0.1, alpha=0.01)
    missed = round(share * n_a)
    whole = unit_radius(n_a - missed, n, 0.005)
    kept, sizes = [], []
    for _ in range(60):
        marked = rng.choice(n_a, missed, replace=False)
        size = audited_to_the_end(rule, n_a, n, marked)[-1]
        kept.append(certified(rule, n_a, n, size, int((marked < size).sum())) / whole)
        sizes.append(size)
    assert np.mean(np.array(kept) >= 0.9 - 1e-12) > 0.9
    assert np.mean(sizes) < n_a


def test_mismatches_prolong_an_audit_until_they_leave_no_radius():
    rule = SequentialAudit()
    assert not rule.settled(9000, 10_000, 700, 7)
    assert rule.settled(9000, 10_000, 700, 0)
    assert rule.settled(9000, 10_000, 700, 400)
    assert rule.next_size(9000, 10_000, 700, 400) == 700
    assert rule.size(5000, 10_000) == rule.next_size(5000, 10_000, 0, 0) == 0
    assert rule.size(9000, 10_000) == 9000


def test_looks_are_few_and_reach_the_end():
    rule, order = SequentialAudit(), np.random.default_rng(0).permutation(9900)
    for share in (0.0, 0.001, 0.01, 0.1, 0.3):
        looks = audited_to_the_end(rule, 9900, 10_000, order[: round(share * 9900)])
        assert looks[0] <= 800
        assert all(1.1 * one <= other <= 3 * one or other == 9900 for one, other in pairwise(looks))
        assert len(looks) <= 8


@pytest.mark.parametrize("mismatches", [0, 3, 50, 100])
def test_a_complete_audit_is_settled(mismatches):
    assert SequentialAudit(1e-9).next_size(100, 100, 100, mismatches) == 100


def test_a_smaller_loss_needs_a_larger_audit():
    sizes = [audited_to_the_end(SequentialAudit(loss), 9000, 10_000, np.arange(5))[-1] for loss in (0.3, 0.1, 0.02)]
    assert sizes == sorted(set(sizes))


def test_where_sharing_alpha_costs_much_the_audit_is_smaller_than_an_adaptive_one():
    """That aims at the radius of standard smoothing, with all of alpha."""
    assert audited_to_the_end(SequentialAudit(), 5600, 10_000, np.array([]))[-1] < AdaptiveAudit().size(5600, 10_000)


def test_fixed_sizes_are_not_sequential():
    for rule in (FixedAudit(50), AdaptiveAudit()):
        assert not rule.sequential
        assert all(rule.next_size(9000, 10_000, *outcome) == rule.size(9000, 10_000) for outcome in [(0, 0), (50, 9)])
    assert SequentialAudit().sequential


def test_the_contract_of_audit_sizes():
    rule = SequentialAudit()
    assert isinstance(rule, AuditSize)
    for n_a in (0, 1, 60, 100):
        assert rule.size(n_a, 100) in (0, n_a)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.alpha = 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SequentialAudit(radius_loss=0.0), r"radius_loss = 0\.0: must be in \(0, 1\)"),
        (lambda: SequentialAudit(radius_loss=math.nan), r"radius_loss = nan: must be in \(0, 1\)"),
        (lambda: SequentialAudit(radius_loss=True), r"radius_loss = True: must be in \(0, 1\)"),
        (lambda: SequentialAudit(alpha=1.0), r"alpha = 1\.0: must be in \(0, 1\)"),
        (lambda: SequentialAudit(alpha=0.01, alpha_audit=0.01), r"alpha_audit = 0\.01: must be in \(0, alpha"),
        (lambda: SequentialAudit().size(-1, 100), "n_a = -1: must be in"),
        (lambda: SequentialAudit().size(101, 100), "n_a = 101: must be in"),
        (lambda: SequentialAudit().next_size(100, 100, 101, 0), "audited = 101: must be <= n_a"),
        (lambda: SequentialAudit().next_size(100, 100, 50, 51), "mismatches = 51: must be <= audited"),
        (lambda: SequentialAudit().size(10**6 + 1, 10**7), "n_a = 1000001: must be <= 1000000 for a sequential audit"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(SettingError, match=f"^{message}"):
        make()
