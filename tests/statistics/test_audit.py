from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc

from deqcert.errors import SettingError
from deqcert.statistics import (
    AdaptiveAudit,
    AuditSize,
    CertificationRule,
    FixedAudit,
    Votes,
    binomial_effective_count,
    certified_radius,
    clopper_pearson_lower,
    clopper_pearson_upper,
    exact_effective_count,
    hypergeometric_upper,
    joint_p_a_lower,
    published_p_a_lower,
    radius_of_count,
    split_alpha,
)
from deqcert.statistics.joint import joint_weight

EFFECTIVE_COUNTS = (exact_effective_count, binomial_effective_count)


@st.composite
def audits(draw: st.DrawFn) -> tuple[int, int, int]:
    n_a = draw(st.integers(0, 2000))
    audited = draw(st.integers(0, n_a))
    return n_a, audited, draw(st.integers(0, audited))


def test_split_alpha_halves_by_default_and_uses_all_of_alpha():
    assert split_alpha(0.001, None) == (0.0005, 0.0005)
    assert split_alpha(0.5, 0.125) == (0.125, 0.375)


def test_exact_effective_count_subtracts_the_hypergeometric_bound():
    bound = hypergeometric_upper([0, 3], 9000, 400, 0.0005)
    np.testing.assert_array_equal(exact_effective_count(9000, 400, [0, 3], 0.0005), 9000 - bound)


def test_binomial_effective_count_scales_by_the_clopper_pearson_bound():
    for mismatches in (0, 3, 400):
        p_m = float(clopper_pearson_upper(mismatches, 400, 0.0005))
        expected = math.floor(9000 * (1 - p_m))
        assert binomial_effective_count(9000, 400, mismatches, 0.0005) == expected


@pytest.mark.parametrize("effective_count", EFFECTIVE_COUNTS)
def test_no_audit_proves_nothing(effective_count):
    assert effective_count(9000, 0, 0, 0.0005) == 0
    assert effective_count(0, 0, 0, 0.0005) == 0


def test_a_complete_audit_is_exact():
    assert exact_effective_count(500, 500, 20, 1e-9) == 480


@given(audits(), st.floats(1e-6, 0.5))
@settings(deadline=None)
def test_effective_counts_are_ordered_and_bounded_by_what_was_seen(audit, alpha):
    n_a, audited, mismatches = audit
    exact, binomial = (int(count(n_a, audited, mismatches, alpha)) for count in EFFECTIVE_COUNTS)
    assert 0 <= binomial <= exact <= n_a - mismatches
    assert exact >= audited - mismatches


@given(audits(), st.floats(1e-6, 0.5))
@settings(deadline=None)
def test_effective_counts_fall_with_mismatches_and_rise_with_alpha(audit, alpha):
    n_a, audited, mismatches = audit
    for effective_count in EFFECTIVE_COUNTS:
        count = effective_count(n_a, audited, mismatches, alpha)
        assert effective_count(n_a, audited, mismatches, min(2 * alpha, 0.9)) >= count
        if mismatches < audited:
            assert effective_count(n_a, audited, mismatches + 1, alpha) <= count


@pytest.mark.parametrize("alpha", [0.0005, 0.03, 0.25, 0.5])
def test_exact_rule_is_never_looser_than_the_binomial_one(alpha):
    for n_a in range(1, 31):
        audited, mismatches = (grid.ravel() for grid in np.meshgrid(np.arange(n_a + 1), np.arange(n_a + 1)))
        audited, mismatches = audited[mismatches <= audited], mismatches[mismatches <= audited]
        exact, binomial = (count(n_a, audited, mismatches, alpha) for count in EFFECTIVE_COUNTS)
        assert (exact >= binomial).all()


@pytest.mark.parametrize(("counts", "radius"), [((923, 1000, 525, 15), 0.614208), ((91, 100, 60, 6), 0.334845)])
def test_published_rule_keeps_fractions_of_counts(counts, radius):
    """As the public code does; whole counts give 0.611914 and 0.345648."""
    assert float(certified_radius(published_p_a_lower(*counts, 0.001), 0.5)) == pytest.approx(radius, abs=5e-7)


def test_published_rule_scales_both_counts():
    """The bound is where a binomial tail, continued to fractions, has half of alpha."""
    conserve = float(clopper_pearson_lower(328, 400, 0.0005))
    bound = published_p_a_lower(5490, 10_000, 400, 72, 0.001)
    assert betainc(5490 * conserve, 4510 * conserve + 1, bound) == pytest.approx(0.0005, rel=1e-9)


def test_published_rule_claims_nothing_when_nothing_is_left():
    assert published_p_a_lower(5490, 10_000, 0, 0, 0.001) == 0
    assert published_p_a_lower(5490, 10_000, 400, 400, 0.001) == 0
    np.testing.assert_array_equal(published_p_a_lower([0, 10], 10, [0, 10], [0, 0], 0.9)[:1], [0])


def test_rules_name_the_bad_argument():
    for rule in EFFECTIVE_COUNTS:
        with pytest.raises(SettingError, match="audited = 11: must be <= n_a"):
            rule(10, 11, 0, 0.1)
        with pytest.raises(SettingError, match="mismatches = 6: must be <= audited"):
            rule(10, 5, 6, 0.1)
        with pytest.raises(SettingError, match=r"mismatches = 1\.0: must be of integer type"):
            rule(10, 5, 1.0, 0.1)
        with pytest.raises(SettingError, match=r"alpha = 1\.5"):
            rule(10, 5, 1, 1.5)
    with pytest.raises(SettingError, match="n_a = 11: must be <= n"):
        published_p_a_lower(11, 10, 5, 0, 0.1)
    with pytest.raises(SettingError, match="n = 0: must be >= 1"):
        published_p_a_lower(0, 0, 0, 0, 0.1)
    with pytest.raises(SettingError, match=r"alpha = 1\.5"):
        published_p_a_lower(8, 10, 5, 0, 1.5)


def zero_mismatch_radius(n_a: int, n: int, audited: int, alpha_audit: float, alpha_count: float) -> float:
    n_eff = exact_effective_count(n_a, audited, 0, alpha_audit)
    return float(certified_radius(clopper_pearson_lower(n_eff, n, alpha_count), 1.0))


@pytest.mark.parametrize(
    ("audited", "radius"),
    [
        (100, "1.39"),
        (400, "1.99"),
        (1000, "2.31"),  # 2.314998...
        (2000, "2.53"),
        (4000, "2.74"),
        (8000, "2.95"),
        (10_000, "3.17"),
    ],
)
def test_what_the_audit_costs(audited, radius):
    assert f"{zero_mismatch_radius(10_000, 10_000, audited, 0.0005, 0.0005):.2f}" == radius


def test_what_standard_smoothing_reaches():
    assert f"{float(certified_radius(clopper_pearson_lower(10_000, 10_000, 0.001), 1.0)):.2f}" == "3.20"


def votes_of(n_a: int, n: int, escalated_a: int = 0, k0: int = 9) -> Votes:
    """Votes before the audit; of 10 selection samples k0 have the selected class."""
    return Votes(
        n0=10,
        n=n,
        selection=(k0, 10 - k0),
        estimation=(n_a, n - n_a),
        audited=0,
        mismatches=0,
        nfe_fast=0,
        nfe_audit=0,
        residual=math.nan,
        seconds=0.0,
        sigma=0.5,
        noise_error=0.0,
        escalations=escalated_a,
        escalated=(escalated_a, 0) if escalated_a else (),
        escalated_from=(escalated_a, 0) if escalated_a else (),
    )


def test_fixed_audit_takes_all_if_there_are_fewer():
    assert FixedAudit().size(votes_of(9000, 10_000)) == 400
    assert FixedAudit(50).size(votes_of(30, 100)) == 30
    assert FixedAudit(50).size(votes_of(60, 100, escalated_a=35)) == 25
    assert FixedAudit(50).size(votes_of(0, 100)) == 0


def smallest_reaching(radii: list[float], target: float) -> int:
    """The size of the smallest audit with at least the target radius, or of the largest one."""
    return next((size for size, radius in enumerate(radii) if radius >= target), len(radii) - 1)


@pytest.mark.parametrize("escalated_a", [0, 40])
@pytest.mark.parametrize("alpha_audit", [None, 0.005])
@pytest.mark.parametrize("radius_loss", [0.03, 0.2])
def test_an_audit_for_the_exact_rule_is_the_smallest_that_reaches_the_target(radius_loss, alpha_audit, escalated_a):
    n, alpha = 150, 0.05
    audit = AdaptiveAudit(radius_loss, alpha, alpha_audit, rule="exact")
    alpha_audit, alpha_count = split_alpha(alpha, alpha_audit)
    sizes = []
    for n_a in range(60, n + 1, 6):
        standard = radius_of_count(n_a, n, alpha)
        population = n_a - escalated_a
        counts = exact_effective_count(population, np.arange(population + 1), 0, alpha_audit)
        radii = certified_radius(clopper_pearson_lower(escalated_a + counts, n, alpha_count), 1.0)
        expected = 0 if standard == 0 else smallest_reaching(radii.tolist(), (1 - radius_loss) * standard)
        assert audit.size(votes_of(n_a, n, escalated_a)) == expected
        sizes.append(expected)
    assert 0 in sizes
    assert any(0 < size < n - escalated_a for size in sizes)


def test_what_was_escalated_may_make_an_audit_needless():
    votes = votes_of(150, 150, escalated_a=145)
    for rule in ("exact", "joint"):
        assert AdaptiveAudit(0.9, 0.05, rule=rule).size(votes) == 0
        assert 0 < AdaptiveAudit(0.001, 0.05, rule=rule).size(votes) <= 5


@pytest.mark.parametrize("escalated_a", [0, 40])
@pytest.mark.parametrize("k0", [5, 7, 10])
@pytest.mark.parametrize("radius_loss", [0.03, 0.2])
def test_an_audit_for_the_joint_rule_is_the_smallest_that_reaches_the_target(radius_loss, k0, escalated_a):
    """The target is measured by what a complete audit certifies where no audit reaches that of the standard radius."""
    n, alpha = 150, 0.05
    audit = AdaptiveAudit(radius_loss, alpha, rule="joint")
    weight = joint_weight(k0, 10, n, alpha)
    sizes, out_of_reach = [], 0
    for n_a in range(60, n + 1, 6):
        standard = radius_of_count(n_a, n, alpha)
        population = n_a - escalated_a
        bounds = [joint_p_a_lower(escalated_a, population, k, 0, n, alpha, weight) for k in range(population + 1)]
        radii = certified_radius(bounds, 1.0).tolist()
        target = (1 - radius_loss) * standard
        if radii[-1] < target:
            target, out_of_reach = (1 - radius_loss) * radii[-1], out_of_reach + (standard > 0)
        if standard == 0 or radii[-1] > 0:
            expected = 0 if standard == 0 else smallest_reaching(radii, target - 1e-9)
            assert audit.size(votes_of(n_a, n, escalated_a, k0)) == expected
            sizes.append(expected)
    assert 0 in sizes
    assert any(0 < size < n - escalated_a for size in sizes)
    assert out_of_reach or radius_loss == 0.2


def test_an_audit_for_the_exact_rule_takes_all_where_sharing_alpha_alone_costs_too_much():
    n_a, n = 5200, 10_000
    standard = radius_of_count(n_a, n, 0.001)
    assert zero_mismatch_radius(n_a, n, n_a, 0.0005, 0.0005) < 0.95 * standard
    assert AdaptiveAudit(0.05, 0.001, rule="exact").size(votes_of(n_a, n)) == n_a


@pytest.mark.parametrize(("rule", "moderate", "largest"), [("exact", 600, 9000), ("joint", 400, 6000)])
def test_adaptive_audit_grows_with_the_radius_at_full_size(rule, moderate, largest):
    audit = AdaptiveAudit(rule=rule)
    sizes = [audit.size(votes_of(n_a, 10_000)) for n_a in (5000, 8000, 9000, 9900, 9990, 10_000)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert 0 < sizes[1] < moderate
    assert largest < sizes[-1] < 10_000


@pytest.mark.parametrize("n_a", [6000, 8000, 9500, 10_000])
def test_the_joint_rule_needs_smaller_audits(n_a):
    votes = votes_of(n_a, 10_000, k0=round(n_a / 1000))
    joint, exact = (AdaptiveAudit(rule=rule).size(votes) for rule in ("joint", "exact"))
    assert 0 < joint < 0.9 * exact


@pytest.mark.parametrize("loss", [0.05, 0.3])
@pytest.mark.parametrize("n_a", [440, 480, 600, 900])
def test_an_audit_for_two_sides_loses_what_it_may(n_a, loss):
    """Of 1000 samples, those that are not classified A are spread over three other classes."""
    rest = 1000 - n_a
    estimation = (n_a, rest - rest // 2, rest // 2 - rest // 5, rest // 5)
    known = (40, 30, 20, 10)
    votes = votes_of(n_a, 1000)._replace(
        selection=(8, 1, 1, 0), estimation=estimation, escalations=100, escalated=known, escalated_from=known
    )
    rule = CertificationRule(0.01, sides="two")

    def radius(size: int) -> float:
        examined = tuple(round(size * left / 900) for left in votes.rest)
        return rule.certify(votes._replace(audited=examined[0], audited_as=examined, mistaken=(0,) * 4)).radius

    size = AdaptiveAudit(loss, alpha=0.01).size(votes, "two")
    whole = min(radius(900), rule.certify(votes_of(n_a, 1000)._replace(estimation=estimation, audited=None)).radius)
    assert 0 < size < 900
    assert radius(size + 10) >= (1 - loss) * whole - 1e-9  # + 10: shares of the audit are rounded
    assert radius(int(0.8 * size)) < (1 - loss / 2) * whole


def test_an_audit_without_alpha_takes_that_of_the_certificate():
    audit = AdaptiveAudit(0.1)
    assert audit.aimed_at(0.01) == AdaptiveAudit(0.1, 0.01, rule="joint")
    assert audit.aimed_at(0.01, 0.002, "exact") == AdaptiveAudit(0.1, 0.01, 0.002, "exact")
    assert audit.aimed_at(0.01, None, "published") == AdaptiveAudit(0.1, 0.01, rule="exact")
    assert AdaptiveAudit(0.1, 0.2).aimed_at(0.01, 0.002, "exact") == AdaptiveAudit(0.1, 0.2, rule="exact")
    assert AdaptiveAudit(0.1, 0.2, 0.05, "exact").aimed_at(0.01) == AdaptiveAudit(0.1, 0.2, 0.05, "exact")
    assert AdaptiveAudit(0.1, rule="joint").aimed_at(0.01, 0.002, "binomial") == AdaptiveAudit(0.1, 0.01, rule="joint")
    assert AdaptiveAudit(0.1, rule="exact").aimed_at(0.01) == AdaptiveAudit(0.1, 0.01, rule="exact")
    assert FixedAudit(7).aimed_at(0.01) == FixedAudit(7)
    votes = votes_of(9500, 10_000)
    sizes = [audit.aimed_at(alpha).size(votes) for alpha in (0.1, 0.001)]
    assert sizes[0] < sizes[1] == audit.size(votes)


@pytest.mark.parametrize("audit", [FixedAudit(), AdaptiveAudit(), AdaptiveAudit(rule="exact")])
def test_audit_sizes_share_one_contract(audit):
    assert isinstance(audit, AuditSize)
    for n_a in (0, 1, 60, 100):
        for escalated_a in (0, n_a // 2, n_a):
            votes = votes_of(n_a, 100, escalated_a)
            assert 0 <= audit.size(votes) <= n_a - escalated_a == votes.auditable("one")
            assert 0 <= audit.size(votes, "two") <= 100 - escalated_a == votes.auditable("two")
    with pytest.raises(dataclasses.FrozenInstanceError):
        audit.alpha = 0.1


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: FixedAudit(0), "samples"),
        (lambda: FixedAudit(2.5), "samples"),
        (lambda: AdaptiveAudit(radius_loss=0.0), "radius_loss"),
        (lambda: AdaptiveAudit(radius_loss=1.0), "radius_loss"),
        (lambda: AdaptiveAudit(alpha_audit=0.0005), "alpha_audit"),
        (lambda: AdaptiveAudit(alpha=1.0), "alpha"),
        (lambda: AdaptiveAudit(alpha=0.01, alpha_audit=0.01), "alpha_audit"),
        (lambda: AdaptiveAudit(alpha=0.01, alpha_audit=0.0), "alpha_audit"),
        (lambda: AdaptiveAudit(alpha=0.01, alpha_audit=0.005, rule="joint"), "alpha_audit"),
        (lambda: AdaptiveAudit(alpha=0.01, alpha_audit=0.005).aimed_at(0.01), "alpha_audit"),
        (lambda: AdaptiveAudit(rule="binomial"), "rule"),
    ],
)
def test_audit_sizes_name_the_bad_setting(make, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        make()
