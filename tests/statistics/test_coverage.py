"""How often a certificate is false: p_a_lower above the true p_A, against cheap labels chosen to deceive.

``true`` says where Y_i = A and is i.i.d.; ``cheap`` says where S_i = A and may be any function of ``true``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from deqcert.statistics import (
    CertificationRule,
    Votes,
    binomial_effective_count,
    clopper_pearson_lower,
    exact_effective_count,
    published_p_a_lower,
)

Labels = NDArray[np.bool_]
Deceiver = Chooser = Callable[[np.random.Generator, Labels], Labels]

N, AUDIT, ALPHA = 300, 80, 0.05
SIMULATIONS, CHUNK = 20_000, 2000
POSITION = np.arange(N)

RULES = {audit: CertificationRule(ALPHA, audit=audit) for audit in ("exact", "binomial", "published")}


def at_most(share: float) -> float:
    """The largest frequency that chance explains if the probability is ``share``."""
    return share + 4 * math.sqrt(share * (1 - share) / SIMULATIONS)


def honest(rng: np.random.Generator, true: Labels) -> Labels:
    return true


def sticky(rng: np.random.Generator, true: Labels) -> Labels:
    """A Markov chain that mostly copies the label before it."""
    cheap = true.copy()
    copies = rng.random(true.shape) < 0.9
    for i in range(1, N):
        cheap[:, i] = np.where(copies[:, i], cheap[:, i - 1], true[:, i])
    return cheap


def wrong_in_last_batches(rng: np.random.Generator, true: Labels) -> Labels:
    return true | (POSITION >= 240)


def wrong_where_one_would_look_first(rng: np.random.Generator, true: Labels) -> Labels:
    return true | (POSITION < 100)


def wrong_where_one_would_not_look(rng: np.random.Generator, true: Labels) -> Labels:
    return true | (POSITION >= 200)


def wrong_too_rarely_to_be_seen(rng: np.random.Generator, true: Labels) -> Labels:
    """About as many wrong labels as an audit misses with probability alpha / 2."""
    return true | ((~true).cumsum(axis=1) <= 11)


def always_a(rng: np.random.Generator, true: Labels) -> Labels:
    return np.ones_like(true)


def uniform_subset(rng: np.random.Generator, cheap: Labels) -> Labels:
    keys = np.where(cheap, rng.random(cheap.shape), np.inf)
    chosen = np.zeros_like(cheap)
    np.put_along_axis(chosen, np.argpartition(keys, AUDIT, axis=1)[:, :AUDIT], True, axis=1)
    return chosen & cheap


def first_positions(rng: np.random.Generator, cheap: Labels) -> Labels:
    return cheap & (cheap.cumsum(axis=1) <= AUDIT)


@cache
def p_a_lower(audit: str, n_a: int, audited: int | None, mismatches: int) -> float:
    votes = Votes(
        index=0,
        label=0,
        n0=1,
        n=N,
        selection=(1, 0),
        estimation=(n_a, N - n_a),
        audited=audited,
        mismatches=mismatches,
        nfe_fast=0,
        nfe_audit=0,
        residual=math.nan,
        seconds=0.0,
        sigma=0.5,
        noise_error=0.0,
    )
    votes.validate()
    return RULES[audit].p_a_lower(votes)


@cache
def simulate(p_a: float, deceive: Deceiver, choose: Chooser = uniform_subset) -> tuple[NDArray[np.int64], ...]:
    """Counts (n_a, audited, mismatches, copies with S = Y = A) of SIMULATIONS images."""
    rng = np.random.default_rng(20240)
    chunks = []
    for _ in range(SIMULATIONS // CHUNK):
        true = rng.random((CHUNK, N)) < p_a
        cheap = deceive(rng, true)
        chosen = choose(rng, cheap)
        counts = cheap, chosen, chosen & ~true, cheap & true
        chunks.append([count.sum(axis=1) for count in counts])
    return tuple(np.concatenate(chunks, axis=1))


def false_certificates(audit: str, p_a: float, deceive: Deceiver, choose: Chooser = uniform_subset) -> float:
    """Frequency of p_a_lower > p_a."""
    votes = np.stack(simulate(p_a, deceive, choose)[:3], axis=1)
    outcomes, times = np.unique(votes, axis=0, return_counts=True)
    bounds = np.array([p_a_lower(audit, *outcome) for outcome in outcomes.tolist()])
    return float(times[bounds > p_a].sum() / SIMULATIONS)


DECEPTIONS = [
    (honest, 0.9),
    (sticky, 0.9),
    (sticky, 0.55),
    (wrong_in_last_batches, 0.7),
    (wrong_where_one_would_look_first, 0.7),
    (wrong_where_one_would_not_look, 0.45),
    (wrong_too_rarely_to_be_seen, 0.8),
    (always_a, 0.499),
]


@pytest.mark.parametrize("audit", ["exact", "binomial"])
@pytest.mark.parametrize(("deceive", "p_a"), DECEPTIONS)
def test_false_certificates_are_at_most_alpha(audit, deceive, p_a):
    assert false_certificates(audit, p_a, deceive) <= at_most(ALPHA)


@pytest.mark.parametrize("effective_count", [exact_effective_count, binomial_effective_count])
@pytest.mark.parametrize(("deceive", "p_a"), DECEPTIONS)
def test_the_audit_fails_at_most_with_its_share_of_alpha(effective_count, deceive, p_a):
    *outcome, agreeing = simulate(p_a, deceive)
    assert (effective_count(*outcome, ALPHA / 2) > agreeing).mean() <= at_most(ALPHA / 2)


def test_the_audit_of_the_best_hidden_mistakes_fails_about_as_often_as_allowed():
    *outcome, agreeing = simulate(0.8, wrong_too_rarely_to_be_seen)
    rate = (exact_effective_count(*outcome, ALPHA / 2) > agreeing).mean()
    assert rate >= 0.5 * ALPHA / 2


@pytest.mark.parametrize(("complete_audit", "share"), [(False, ALPHA), (True, ALPHA / 2)])
def test_independent_labels_fail_about_as_often_as_allowed(complete_audit, share):
    """Without audit, or with a complete one of true labels, only the bound on p_A can fail."""
    p_a = float(clopper_pearson_lower(278, N, share)) - 1e-9  # the bound is tightest just below its own values
    n_a, times = np.unique(np.random.default_rng(1).binomial(N, p_a, SIMULATIONS), return_counts=True)
    audits = [count if complete_audit else None for count in n_a.tolist()]
    bounds = np.array([p_a_lower("exact", *votes, 0) for votes in zip(n_a.tolist(), audits, strict=True)])
    rate = times[bounds > p_a].sum() / SIMULATIONS
    assert 2 * share - at_most(share) <= rate <= at_most(share)


def test_published_rule_issues_false_certificates():
    assert false_certificates("published", 0.45, wrong_where_one_would_not_look) > 0.9


def test_an_audit_that_is_not_uniform_issues_false_certificates():
    rate = false_certificates("exact", 0.45, wrong_where_one_would_not_look, choose=first_positions)
    assert rate > 0.9


def test_counter_example_to_the_published_rule():
    n, audited, alpha, p_a = 10_000, 400, 0.001, 0.45
    rng = np.random.default_rng(2)
    true_a = rng.binomial(n, p_a, 5000)
    wrong = rng.binomial(n - true_a, 0.18)
    n_a = true_a + wrong
    mismatches = rng.hypergeometric(wrong, true_a, audited)

    published = published_p_a_lower(n_a, n, audited, mismatches, alpha)
    assert (published > p_a).mean() > 0.99
    for effective_count in (exact_effective_count, binomial_effective_count):
        n_eff = effective_count(n_a, audited, mismatches, alpha / 2)
        assert not (clopper_pearson_lower(n_eff, n, alpha / 2) > p_a).any()


def half(n_a: int) -> int:
    return (n_a + 1) // 2


def at_most_six(n_a: int) -> int:
    return min(n_a, 6)


@pytest.mark.parametrize("size", [half, at_most_six])
@pytest.mark.parametrize("alpha", [0.01, 0.1])
@pytest.mark.parametrize("audit", ["exact", "binomial"])
def test_worst_deceiver_by_enumeration(audit, alpha, size):
    """Exact failure probability for the worst of all cheap labels.

    Whoever chooses them knows every true label, so for each T = #{Y = A} takes the number of agreeing
    (S = Y = A) and wrong (S = A, Y != A) labels under which a false certificate is most likely.
    """
    n = 14
    rule = CertificationRule(alpha, audit=audit)
    bound = {}
    for n_a in range(n + 1):
        for mismatches in range(size(n_a) + 1):
            votes = Votes(1, n, (1, 0), (n_a, n - n_a), size(n_a), mismatches, 0, 0, math.nan, 0.0, 0.5, 0.0)
            bound[n_a, mismatches] = rule.p_a_lower(votes)

    def failure(agreeing: int, wrong: int, p_a: float) -> float:
        n_a = agreeing + wrong
        audited = size(n_a)
        return sum(
            math.comb(wrong, m) * math.comb(agreeing, audited - m) / math.comb(n_a, audited)
            for m in range(audited + 1)
            if bound[n_a, m] > p_a
        )

    # The failure rate jumps just below the values that the bound takes.
    tightest = [p * (1 - 1e-12) for p in set(bound.values()) if p > 0]
    worst = 0.0
    for p_a in [*tightest, *np.linspace(0.05, 0.95, 7).tolist()]:
        table = np.array(
            [
                [failure(agreeing, wrong, p_a) for wrong in range(n - agreeing + 1)] + [0.0] * agreeing
                for agreeing in range(n + 1)
            ]
        )
        rate = sum(
            math.comb(n, t) * p_a**t * (1 - p_a) ** (n - t) * table[: t + 1, : n - t + 1].max() for t in range(n + 1)
        )
        worst = max(worst, rate)
    assert worst <= alpha
    if audit == "exact":
        assert worst > 0.49 * alpha  # honest labels alone use up the share of the bound on p_A
