from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc

from deqcert.errors import SettingError
from deqcert.statistics import (
    AdaptiveAudit,
    AuditSize,
    FixedAudit,
    binomial_effective_count,
    certified_radius,
    clopper_pearson_lower,
    clopper_pearson_upper,
    exact_effective_count,
    hypergeometric_upper,
    published_p_a_lower,
    split_alpha,
)

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


def test_fixed_audit_takes_all_if_there_are_fewer():
    assert FixedAudit().size(9000, 10_000) == 400
    assert FixedAudit(50).size(30, 100) == 30
    assert FixedAudit(50).size(0, 100) == 0


@pytest.mark.parametrize("alpha_audit", [None, 0.005])
@pytest.mark.parametrize("radius_loss", [0.03, 0.2])
def test_adaptive_audit_is_the_smallest_that_reaches_the_target(radius_loss, alpha_audit):
    n, alpha = 150, 0.05
    audit = AdaptiveAudit(radius_loss, alpha, alpha_audit)
    shares = split_alpha(alpha, alpha_audit)
    sizes = []
    for n_a in range(60, n + 1, 6):
        standard = float(certified_radius(clopper_pearson_lower(n_a, n, alpha), 1.0))
        radii = [zero_mismatch_radius(n_a, n, audited, *shares) for audited in range(n_a + 1)]
        sufficient = [audited for audited in range(n_a + 1) if radii[audited] >= (1 - radius_loss) * standard]
        expected = 0 if standard == 0 else min(sufficient, default=n_a)
        assert audit.size(n_a, n) == expected
        sizes.append(expected)
    assert 0 in sizes
    assert any(0 < size < n for size in sizes)


def test_adaptive_audit_takes_all_where_sharing_alpha_alone_costs_too_much():
    n_a, n, audit = 5200, 10_000, AdaptiveAudit(radius_loss=0.05, alpha=0.001)
    standard = float(certified_radius(clopper_pearson_lower(n_a, n, audit.alpha), 1.0))
    assert zero_mismatch_radius(n_a, n, n_a, 0.0005, 0.0005) < 0.95 * standard
    assert audit.size(n_a, n) == n_a


def test_adaptive_audit_grows_with_the_radius_at_full_size():
    sizes = [AdaptiveAudit().size(n_a, 10_000) for n_a in (5000, 8000, 9000, 9900, 9990, 10_000)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[1] < 600
    assert sizes[-1] > 9000


def test_an_audit_without_alpha_takes_that_of_the_certificate():
    audit = AdaptiveAudit(0.1)
    assert audit.aimed_at(0.01, 0.002) == AdaptiveAudit(0.1, 0.01, 0.002)
    assert AdaptiveAudit(0.1, 0.2).aimed_at(0.01, 0.002) == AdaptiveAudit(0.1, 0.2)
    assert FixedAudit(7).aimed_at(0.01) == FixedAudit(7)
    sizes = [audit.aimed_at(alpha).size(9500, 10_000) for alpha in (0.1, 0.001)]
    assert sizes[0] < sizes[1] == audit.size(9500, 10_000)


def test_adaptive_audit_is_fast():
    audit = AdaptiveAudit()
    audit.size(9000, 10_000)
    fastest = math.inf
    for _ in range(10):  # the fastest of several: other work may share the processor
        start = time.perf_counter()
        audit.size(9900, 10_000)
        fastest = min(fastest, time.perf_counter() - start)
    assert fastest < 0.02


@pytest.mark.parametrize("audit", [FixedAudit(), AdaptiveAudit()])
def test_audit_sizes_share_one_contract(audit):
    assert isinstance(audit, AuditSize)
    for n_a in (0, 1, 60, 100):
        assert 0 <= audit.size(n_a, 100) <= n_a
    for n_a in (-1, 101):
        with pytest.raises(SettingError, match="must be"):
            audit.size(n_a, 100)
    with pytest.raises(dataclasses.FrozenInstanceError):
        audit.alpha = 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedAudit(0), "samples = 0: must be an integer >= 1"),
        (lambda: FixedAudit(2.5), r"samples = 2\.5: must be an integer >= 1"),
        (lambda: AdaptiveAudit(radius_loss=0.0), r"radius_loss = 0\.0: must be in \(0, 1\)"),
        (lambda: AdaptiveAudit(radius_loss=1.0), r"radius_loss = 1\.0: must be in \(0, 1\)"),
        (lambda: AdaptiveAudit(alpha_audit=0.0005), r"alpha_audit = 0\.0005: must be None if alpha is"),
        (lambda: AdaptiveAudit(alpha=1.0), r"alpha = 1\.0: must be in \(0, 1\)"),
        (lambda: AdaptiveAudit(alpha=0.01, alpha_audit=0.01), r"alpha_audit = 0\.01: must be in \(0, alpha"),
        (lambda: AdaptiveAudit(alpha=0.01, alpha_audit=0.0), r"alpha_audit = 0\.0: must be in \(0, alpha"),
    ],
)
def test_audit_sizes_name_the_bad_setting(make, message):
    with pytest.raises(SettingError, match=message):
        make()
