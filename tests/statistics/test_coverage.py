"""How often a certificate is false, against SRS predictions, and escalations, that are chosen to deceive.

``true`` says where Y_i = A and is i.i.d.; ``cheap`` says where S_i = A and may be any function of ``true``. With one
side a certificate is false where p_a_lower exceeds p_A, with two where its radius exceeds that of the true p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, hypergeom

from deqcert.statistics import (
    Certificate,
    CertificationRule,
    Votes,
    binomial_effective_count,
    certified_radius,
    clopper_pearson_lower,
    clopper_pearson_upper,
    exact_effective_count,
    published_p_a_lower,
)

Labels = NDArray[np.bool_]
Deceiver = Chooser = Callable[[np.random.Generator, Labels], Labels]

N, AUDIT, ALPHA = 300, 80, 0.05
SIMULATIONS, CHUNK = 20_000, 2000
TWO_SIDED = 1000  # of audits of all classes, which are drawn one by one
POSITION = np.arange(N)


class HalfOfEvidence(CertificationRule):
    """The joint rule with a weight of 1, which trusts audits as small as these; any is valid if it is fixed before."""

    def _weight(self, votes: Votes) -> float:
        return 1.0


def make_rule(audit: str, alpha: float = ALPHA, **settings: object) -> CertificationRule:
    if audit == "joint, w = 1":
        return HalfOfEvidence(alpha, **settings)
    return CertificationRule(alpha, audit=audit, **settings)


JOINT = ("joint", "joint, w = 1")
PROVEN = (*JOINT, "exact", "binomial")
RULES = {audit: make_rule(audit) for audit in (*PROVEN, "published")}


def at_most(share: float, simulations: int = SIMULATIONS) -> float:
    """The largest frequency that chance explains if the probability is ``share``."""
    return share + 4 * math.sqrt(share * (1 - share) / simulations)


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


def votes_of(
    estimation: tuple[int, ...],
    audited: int | None = None,
    mismatches: int = 0,
    escalated: tuple[int, ...] = (),
    escalations: int = 0,
    escalated_from: tuple[int, ...] = (),
    selection: tuple[int, ...] = (1, 0),
    n: int = N,
    audited_as: tuple[int, ...] = (),
    mistaken: tuple[int, ...] = (),
) -> Votes:
    """Return votes of n noisy samples; A = 0 unless ``selection`` says otherwise."""
    votes = Votes(
        index=0,
        label=0,
        n0=sum(selection),
        n=n,
        selection=selection,
        estimation=estimation,
        audited=audited,
        mismatches=mismatches,
        nfe_fast=0,
        nfe_audit=0,
        residual=math.nan,
        seconds=0.0,
        sigma=0.5,
        noise_error=0.0,
        escalations=escalations,
        escalated=escalated,
        escalated_from=escalated_from,
        audited_as=audited_as,
        mistaken=mistaken,
    )
    votes.validate()
    return votes


@cache
def p_a_lower(audit: str, n_a: int, audited: int | None, mismatches: int) -> float:
    return RULES[audit].bounds(votes_of((n_a, N - n_a), audited, mismatches))[0]


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


@pytest.mark.parametrize("audit", PROVEN)
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


@pytest.mark.parametrize("audit", ["joint, w = 1", "exact"])
def test_an_audit_that_is_not_uniform_issues_false_certificates(audit):
    rate = false_certificates(audit, 0.45, wrong_where_one_would_not_look, choose=first_positions)
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


@pytest.mark.parametrize("known", [0, 8])
@pytest.mark.parametrize("size", [half, at_most_six])
@pytest.mark.parametrize("alpha", [0.01, 0.1])
@pytest.mark.parametrize("audit", PROVEN)
def test_worst_deceiver_by_enumeration(audit, alpha, size, known):
    """Exact failure probability for the worst of all SRS predictions and escalations.

    Whoever chooses them knows every true label, so for each T = #{Y = A} takes those numbers of escalated samples with
    Y = A (up to ``known``), and of agreeing (S = Y = A) and wrong (S = A, Y != A) samples in the population, under
    which a false certificate is most likely.
    """
    n = 14
    rule = make_rule(audit, alpha)
    places = [(h, r) for h in range(known + 1) for r in range(n - h + 1)]
    bounds = np.full((len(places), n + 1), -np.inf)  # by place and number of mismatches
    for i, (h, r) in enumerate(places):
        asked = {"escalated": (h, 0), "escalations": h, "escalated_from": (h, 0)} if h else {}
        for m in range(size(r) + 1):
            bounds[i, m] = rule.bounds(votes_of((h + r, n - h - r), size(r), m, n=n, **asked))[0]
    states = np.array([(i, h, r, wrong) for i, (h, r) in enumerate(places) for wrong in range(r + 1)])
    place, h, r, wrong = states.T
    sizes = np.array([size(each) for each in r.tolist()])
    chances = hypergeom.pmf(np.arange(n + 1), np.maximum(r, 1)[:, None], wrong[:, None], sizes[:, None])
    possible = [(h + r - wrong <= t) & (wrong <= n - t) for t in range(n + 1)]

    # The failure rate jumps just below the values that the bound takes.
    tightest = [p * (1 - 1e-12) for p in set(bounds[bounds > 0].tolist())]
    worst = 0.0
    for p_a in [*tightest, *np.linspace(0.05, 0.95, 7).tolist()]:
        failure = (chances * (bounds[place] > p_a)).sum(axis=1)
        worst = max(worst, sum(binom.pmf(t, n, p_a) * failure[possible[t]].max() for t in range(n + 1)))
    assert worst <= alpha
    if audit == "exact":
        assert worst > 0.49 * alpha  # honest labels alone use up the share of the bound on p_A
    if audit in JOINT:
        assert worst > 0.3 * alpha


Counts = NDArray[np.int64]


class Asked(NamedTuple):
    """What becomes of the true classes, shape (SIMULATIONS, C): escalated, or in the population; others given up."""

    escalated: Counts
    population: Counts


ESCALATIONS = 60


def escalate_first(counts: Counts, order: Sequence[int]) -> Counts:
    """Escalate ESCALATIONS samples, of one class after another as long as there are any."""
    escalated = np.zeros_like(counts)
    for c in order:
        escalated[:, c] = np.minimum(counts[:, c], ESCALATIONS - escalated.sum(axis=1))
    return escalated


def honest_escalation(rng: np.random.Generator, counts: Counts) -> Asked:
    """At random, and S = Y."""
    escalated = np.array([rng.multivariate_hypergeometric(each, ESCALATIONS) for each in counts])
    population = np.zeros_like(counts)
    population[:, 0] = (counts - escalated)[:, 0]
    return Asked(escalated, population)


def all_a_but_what_is_escalated(rng: np.random.Generator, counts: Counts) -> Asked:
    """Samples of B and of A stay in the population; those of other classes are escalated first."""
    escalated = escalate_first(counts, [*range(2, counts.shape[1]), 0, 1])
    return Asked(escalated, counts - escalated)


def mistakes_too_few_to_be_seen(rng: np.random.Generator, counts: Counts) -> Asked:
    """A is escalated first, and a few of B say A: about what the audit misses with probability alpha / 2."""
    escalated = escalate_first(counts, range(counts.shape[1]))
    population = np.zeros_like(counts)
    population[:, 0] = (counts - escalated)[:, 0]
    population[:, 1] = np.minimum((counts - escalated)[:, 1], 10)
    return Asked(escalated, population)


def mistakes_where_there_are_few_of_a(rng: np.random.Generator, counts: Counts) -> Asked:
    """As many of B say A as make the population as large as it should be; what is left of B is escalated."""
    escalated = escalate_first(counts, [*range(1, counts.shape[1]), 0])
    population = np.zeros_like(counts)
    population[:, 0] = (counts - escalated)[:, 0]
    missing = round(float(counts[:, 0].mean())) + 10 - counts[:, 0]
    population[:, 1] = np.clip(missing, 0, (counts - escalated)[:, 1])
    return Asked(escalated, population)


@cache
def simulate_escalated(p: tuple[float, ...], deceive: Callable[..., Asked]) -> tuple[Counts, ...]:
    """Population, mismatches and escalated samples of A; different outcomes, and how often they come."""
    rng = np.random.default_rng(20241)
    asked = deceive(rng, rng.multinomial(N, p, SIMULATIONS))
    agreeing, wrong = asked.population[:, 0], asked.population[:, 1:].sum(axis=1)
    mismatches = rng.hypergeometric(wrong, agreeing, np.minimum(AUDIT, agreeing + wrong))
    columns = [agreeing + wrong, mismatches, asked.escalated[:, 0]]
    return np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)


def escalated_votes(population: int, mismatches: int, known_a: int) -> Votes:
    asked = {"escalations": ESCALATIONS, "escalated": (known_a, 0), "escalated_from": (0, 0)}
    return votes_of((population, 0), min(AUDIT, population), mismatches, **asked)


Others = Callable[[Counts], Counts]


def said_as_it_is(others: Counts) -> Counts:
    """Samples by what was predicted, axis 1, and what f says, axis 2: those of A said to be B, the others right."""
    cells = np.einsum("ic,cd->icd", others, np.eye(others.shape[1], dtype=np.int64))
    cells[:, 1, 0], cells[:, 0, 0] = cells[:, 0, 0].copy(), 0
    return cells


def said_to_be_of_the_last_class(others: Counts) -> Counts:
    cells = np.zeros((*others.shape, others.shape[1]), dtype=np.int64)
    cells[:, -1] = others
    return cells


def a_few_of_b_said_to_be_of_the_last_class(others: Counts) -> Counts:
    """About as many as the audit misses with probability alpha / 4."""
    cells = said_as_it_is(others)
    few = np.minimum(others[:, 1], 10)
    cells[:, 1, 1] -= few
    cells[:, -1, 1] += few
    return cells


def those_of_b_said_to_be_of_every_other_class(others: Counts) -> Counts:
    cells = said_as_it_is(others)
    each = others[:, 1] // (others.shape[1] - 2)
    cells[:, 2:, 1] += each[:, None]
    cells[:, 1, 1] -= each * (others.shape[1] - 2)
    return cells


@cache
def simulate_two_sided(p: tuple[float, ...], deceive: Callable[..., Asked], say: Others) -> list[Votes]:
    """Return votes whose audit is of all classes."""
    rng = np.random.default_rng(20242)
    counts = rng.multinomial(N, p, TWO_SIDED)
    asked = deceive(rng, counts)
    cells = say(counts - asked.escalated - asked.population)
    cells[:, 0] = asked.population
    votes = []
    for cell, known in zip(cells, asked.escalated, strict=True):
        drawn = rng.multivariate_hypergeometric(cell.flatten(), AUDIT).reshape(cell.shape)
        from_a = np.zeros_like(known)
        from_a[0] = ESCALATIONS
        each = votes_of(
            tuple((cell.sum(axis=1) + from_a).tolist()),
            int(drawn[0].sum()),
            int(drawn[0, 1:].sum()),
            tuple(known.tolist()),
            ESCALATIONS,
            tuple(from_a.tolist()),
            selection=(1, *[0] * (len(p) - 1)),
            audited_as=tuple(drawn.sum(axis=1).tolist()),
            mistaken=tuple((drawn.sum(axis=0) - drawn.diagonal()).tolist()),
        )
        votes.append(each)
    return votes


ESCALATED = [
    (honest_escalation, (0.9, 0.05, 0.05)),
    (honest_escalation, (0.45, 0.55)),
    (all_a_but_what_is_escalated, (0.55, 0.45)),
    (all_a_but_what_is_escalated, (0.7, 0.2, 0.1)),
    (mistakes_too_few_to_be_seen, (0.8, 0.2)),
    (mistakes_too_few_to_be_seen, (0.4, 0.35, 0.25)),
    (mistakes_where_there_are_few_of_a, (0.8, 0.2)),
    (mistakes_where_there_are_few_of_a, (0.45, 0.3, 0.25)),
]


@pytest.mark.parametrize("audit", PROVEN)
@pytest.mark.parametrize(("deceive", "p"), ESCALATED)
def test_false_certificates_of_escalated_votes_are_at_most_alpha(audit, deceive, p):
    outcomes, times = simulate_escalated(p, deceive)
    bounds = np.array([RULES[audit].bounds(escalated_votes(*each))[0] for each in outcomes.tolist()])
    assert times[bounds > p[0]].sum() / SIMULATIONS <= at_most(ALPHA)


@pytest.mark.parametrize("say", [said_as_it_is, said_to_be_of_the_last_class, a_few_of_b_said_to_be_of_the_last_class])
@pytest.mark.parametrize(("deceive", "p"), [each for each in ESCALATED if len(each[1]) == 3])
def test_false_two_sided_certificates_of_escalated_votes_are_at_most_alpha(deceive, p, say):
    rule = make_rule("joint, w = 1", sides="two", alpha_b=0.6 * ALPHA)
    false = [is_false(rule.certify(each), p) for each in simulate_two_sided(p, deceive, say)]
    assert np.mean(false) <= at_most(ALPHA, TWO_SIDED)


def test_two_sides_of_an_audit_that_leaves_out_other_classes_would_be_false():
    """That it is of all classes is what bounds p_B where B is predicted to be another class."""
    p, rule = (0.4, 0.45, 0.05, 0.05, 0.05), make_rule("joint, w = 1", sides="two")
    votes = simulate_two_sided(p, honest_escalation, those_of_b_said_to_be_of_every_other_class)[:300]
    assert np.mean([is_false(rule.certify(each), p) for each in votes]) <= at_most(ALPHA, 300)
    unseen = [each._replace(mistaken=(0,) * len(p)) for each in votes]
    assert np.mean([is_false(rule.certify(each), p) for each in unseen]) > 0.9


def is_false(certificate: Certificate, p: Sequence[float]) -> bool:
    """Whether a bound is false for A = 0: if none is, the radius is at most that of the true probabilities."""
    false = certificate.p_a_lower > p[0] or certificate.p_b_upper < max(p[1:])
    true_radius = float(certified_radius(p[0], 0.5, max(p[1:])))
    assert false or certificate.radius <= true_radius + 1e-12
    return false


NEAR_TIES = [
    (0.5, 0.5),
    (0.4, 0.39, 0.21),
    (0.34, 0.33, 0.33),
    (0.3, 0.31, 0.39),
    (0.45, 0.45, 0.1),
    (0.06, 0.055, *[0.885 / 98] * 98),
    (0.01,) * 100,
    (0.3, *[0.1] * 7),
    (0.95, 0.03, 0.02),
]


@pytest.mark.parametrize("alpha_b", [None, 0.5 * ALPHA, 0.9 * ALPHA])
@pytest.mark.parametrize("p", NEAR_TIES, ids=lambda p: f"{len(p)} classes, {p[0]}")
def test_false_two_sided_certificates_are_at_most_alpha(p, alpha_b):
    """The bound on p_B is taken of whichever other class has most votes, and holds without a correction for that."""
    rule = CertificationRule(ALPHA, sides="two", alpha_b=alpha_b)
    counts = np.random.default_rng(3).multinomial(N, p, SIMULATIONS)
    largest = np.sort(np.pad(counts[:, 1:], ((0, 0), (1, 0))), axis=1)[:, -2:]
    outcomes, times = np.unique(np.column_stack([counts[:, 0], largest]), axis=0, return_counts=True)
    found = [rule.certify(votes_of(tuple(each), selection=(1, 0, 0))) for each in outcomes.tolist()]
    false = times[[is_false(each, p) for each in found]].sum() / SIMULATIONS
    assert false <= at_most(ALPHA)
    certified = np.array([each.radius for each in found])
    true_radius = float(certified_radius(p[0], 0.5, max(p[1:])))
    assert times[certified > true_radius].sum() / SIMULATIONS <= false


def test_both_sides_fail_about_as_often_as_allowed():
    """Near the values that the bounds take, and with a class C beside, both fail independently of one another."""
    p_a = float(clopper_pearson_lower(135, N, ALPHA / 2)) - 1e-9
    p_b = float(clopper_pearson_upper(100, N, ALPHA / 2)) + 1e-9
    rule = CertificationRule(ALPHA, sides="two", alpha_b=ALPHA / 2)
    p = (p_a, p_b, 1 - p_a - p_b)
    counts = np.random.default_rng(4).multinomial(N, p, SIMULATIONS)
    outcomes, times = np.unique(counts, axis=0, return_counts=True)
    found = [rule.certify(votes_of(tuple(each), selection=(1, 0, 0))) for each in outcomes.tolist()]
    false = times[[is_false(each, p) for each in found]].sum() / SIMULATIONS
    assert 0.7 * ALPHA < false <= at_most(ALPHA)


def test_one_other_class_chosen_by_selection_would_issue_false_certificates():
    """Of two near ties selection often takes the wrong one; its count says nothing of the other."""
    p, alpha = (0.4, 0.31, 0.29), ALPHA / 2
    rng = np.random.default_rng(5)
    selection, counts = rng.multinomial(30, p, SIMULATIONS), rng.multinomial(N, p, SIMULATIONS)
    chosen = np.where(selection[:, 1] >= selection[:, 2], counts[:, 1], counts[:, 2])
    assert (clopper_pearson_upper(chosen, N, alpha) < max(p[1:])).mean() > 1.5 * alpha
    largest = counts[:, 1:].max(axis=1)
    assert (clopper_pearson_upper(largest, N, alpha) < max(p[1:])).mean() <= at_most(alpha)
