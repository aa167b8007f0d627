"""When sampling stops, and what that does to certificates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr

from deqcert.errors import SettingError
from deqcert.statistics import GroupSequential, clopper_pearson_lower, clopper_pearson_upper, radius_of_count

N_MAX, BATCH, ALPHA = 1000, 50, 0.05
SIMULATIONS = 20_000


def stopped(rule, p, simulations=SIMULATIONS, seed=0):
    """Counts, sizes and shares of alpha where sampling stops, and the counts at all looks."""
    schedule = rule.schedule(N_MAX, BATCH)
    looks = list(schedule)
    draws = np.random.default_rng(seed).binomial(np.diff([0, *looks]), p, (simulations, len(looks)))
    counts = draws.cumsum(axis=1)
    known = {}
    k, n, share = np.zeros(simulations, np.int64), np.zeros(simulations, np.int64), np.zeros(simulations)
    for i, seen in enumerate(counts.tolist()):
        for place in zip(seen, looks, strict=True):
            if place not in known:
                known[place] = rule.settled(*place, schedule)
            if known[place]:
                k[i], n[i], share[i] = *place, schedule[place[1]]
                break
    return k, n, share, counts


def false(k, n, share, p):
    return float((clopper_pearson_lower(k, n, ALPHA * share) > p).mean())


def at_most(share):
    """The largest frequency that chance explains if the probability is ``share``."""
    return share + 4 * math.sqrt(share * (1 - share) / SIMULATIONS)


@pytest.mark.parametrize("p", [0.55, float(ndtr(0.3)) - 1e-3, float(ndtr(0.8)) - 1e-3, 0.95])
@pytest.mark.parametrize(
    "rule",
    [
        GroupSequential(alpha=ALPHA),
        GroupSequential(0.3, alpha=ALPHA, looks=(100, 200, 500, 1000)),
        GroupSequential(radius_in_sigma=0.3, alpha=ALPHA),
        GroupSequential(radius_in_sigma=0.8, alpha=ALPHA, looks=(100, 1000), shares=(0.8, 0.2)),
    ],
    ids=str,
)
def test_certificates_of_what_a_rule_has_stopped_are_false_at_most_with_alpha(rule, p):
    k, n, share, _ = stopped(rule, p)
    assert n.min() < N_MAX
    assert false(k, n, share, p) <= at_most(ALPHA)


@pytest.mark.parametrize("p", [0.6, 0.787, 0.9])
@pytest.mark.parametrize("looks", [None, tuple(range(50, 1001, 50))])
def test_so_are_those_of_whoever_stops_at_the_best_look_of_all(looks, p):
    """No rule can do worse, even with sight of what comes later; without shares it is far beyond alpha."""
    rule = GroupSequential(looks=looks, alpha=ALPHA)
    schedule = rule.schedule(N_MAX, BATCH)
    counts, sizes, shares = stopped(rule, p)[3], np.array(list(schedule)), np.array(list(schedule.values()))
    rate = (clopper_pearson_lower(counts, sizes, ALPHA * shares) > p).any(axis=1).mean()
    assert 0.2 * ALPHA < rate <= at_most(ALPHA)
    assert (clopper_pearson_lower(counts, sizes, ALPHA) > p).any(axis=1).mean() > 2 * ALPHA


def test_a_target_just_out_of_reach_is_certified_as_rarely_as_allowed():
    rule, p = GroupSequential(radius_in_sigma=0.8, alpha=ALPHA), float(ndtr(0.8)) - 1e-6
    k, n, share, _ = stopped(rule, p, seed=1)
    rate = (clopper_pearson_lower(k, n, ALPHA * share) >= ndtr(0.8)).mean()
    assert 0.1 * ALPHA < rate <= at_most(ALPHA)


def test_a_target_costs_a_clear_image_little_and_is_seldom_missed():
    """Well above and well below, few samples are drawn; where a fixed n would certify with ease, so does the rule."""
    rule = GroupSequential(radius_in_sigma=0.8, alpha=ALPHA)
    for p, certified in ((0.6, 0.0), (0.95, 1.0)):
        k, n, share, _ = stopped(rule, p, 300)
        assert n.mean() < 0.25 * N_MAX
        reached = clopper_pearson_lower(k, n, ALPHA * share) >= ndtr(0.8)
        assert reached.mean() == pytest.approx(certified, abs=0.05)


@pytest.mark.parametrize("p", [0.55, 0.75, 0.95])
def test_a_smaller_gain_takes_more_samples_and_loses_less_radius(p):
    """Beside a fixed n; none loses much more than what it was content with."""
    alpha, sizes, radii = 0.001, [], []
    for gain in (0.02, 0.06, 0.2):
        k, n, share, counts = stopped(GroupSequential(gain), p, 400)
        cases = zip(k.tolist(), n.tolist(), share.tolist(), strict=True)
        radii.append(np.mean([radius_of_count(*case[:2], alpha * case[2]) for case in cases]))
        sizes.append(n.mean())
        full = np.mean([radius_of_count(count, N_MAX, alpha) for count in counts[:, -1].tolist()])
        assert full - 2 * gain - 0.05 < radii[-1] < full
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.6 * N_MAX
    assert radii == sorted(radii, reverse=True)


def test_looks_are_taken_at_the_end_of_the_batch_that_they_fall_into():
    rule = GroupSequential(looks=(100, 250, 600, 1000), shares=(0.1, 0.2, 0.3, 0.4))
    assert rule.schedule(1000, 50) == {100: 0.1, 250: 0.2, 600: 0.3, 1000: 0.4}
    assert rule.schedule(1000, 80) == {160: 0.1, 320: 0.2, 640: 0.3, 1000: 0.4}
    assert rule.schedule(1000, 300) == {300: pytest.approx(0.3), 600: 0.3, 1000: 0.4}
    assert rule.schedule(1000, 5000) == {1000: 1.0}


def test_there_are_eight_looks_unless_others_are_stated():
    schedule = GroupSequential().schedule(10_000, 1)
    assert list(schedule) == [300, 600, 1000, 1600, 2500, 4000, 6500, 10_000]
    assert GroupSequential(shares=(0.125,) * 8).schedule(10_000, 1) == dict.fromkeys(schedule, 0.125)
    assert GroupSequential(looks=(500, 700, 1000)).schedule(1000, 1) == dict.fromkeys((500, 700, 1000), 1 / 3)
    assert GroupSequential(looks=(10,)).schedule(10, 400) == {10: 1.0}


@pytest.mark.parametrize("batch_size", [1, 7, 64, 400, 10_000])
@pytest.mark.parametrize("n", [1, 2, 9, 100, 1000, 10_000])
@pytest.mark.parametrize("count", [None, 2, 9, 57, 100])
def test_shares_are_no_more_than_one_in_all(n, batch_size, count):
    """1/9 added nine times is more than 1 in floating point, which a ledger would not read again."""
    looks = None if count is None else tuple(range(n - min(count, n) + 1, n + 1))
    schedule = GroupSequential(looks=looks).schedule(n, batch_size)
    places = list(schedule)
    assert places == sorted(places)
    assert places[-1] == n
    assert all(place == n or place % batch_size == 0 for place in places)
    assert all(0 < share <= 1 for share in schedule.values())
    assert math.fsum(schedule.values()) == pytest.approx(1, rel=1e-12)


def test_shares_that_round_to_more_than_one_are_scaled():
    schedule = GroupSequential(looks=(5, 10), shares=(0.5, 0.5 + 1e-10)).schedule(10, 1)
    assert math.fsum(schedule.values()) <= 1


@pytest.mark.parametrize(("settings", "n"), [({"looks": (5, 11)}, 10), ({"looks": (5, 9)}, 10)])
def test_a_schedule_must_end_at_n(settings, n):
    with pytest.raises(SettingError, match=r"^looks = "):
        GroupSequential(**settings).schedule(n, 1)


@pytest.mark.parametrize("rule", [GroupSequential(), GroupSequential(radius_in_sigma=1.0)])
@pytest.mark.parametrize("k", [0, 40, 70, 99, 100])
def test_the_end_settles_everything(rule, k):
    assert rule.settled(k, 100, rule.schedule(100, 1))


def test_a_target_is_certified_or_out_of_reach():
    rule = GroupSequential(radius_in_sigma=1.0)
    schedule = rule.schedule(10_000, 1)
    certified = next(k for k in range(1001) if radius_of_count(k, 1000, 0.001 * schedule[1000]) >= 1.0)
    assert rule.settled(certified, 1000, schedule)
    assert not rule.settled(certified - 1, 1000, schedule)
    # The largest share of A that 1000 samples leave plausible would just not certify it at the end.
    hopeless = max(
        k
        for k in range(1001)
        if all(
            radius_of_count(
                k + math.ceil((n - 1000) * float(clopper_pearson_upper(k, 1000, 0.05))), n, 0.001 * schedule[n]
            )
            < 1.0
            for n in schedule
            if n > 1000
        )
    )
    assert 700 < hopeless < certified
    assert rule.settled(hopeless, 1000, schedule)
    assert not rule.settled(hopeless + 1, 1000, schedule)


def test_a_radius_that_cannot_grow_by_much_is_settled():
    rule = GroupSequential(0.06, alpha=0.01)
    schedule = rule.schedule(10_000, 1)
    for look, k in ((300, 250), (1000, 700), (1000, 520), (2500, 2490), (4000, 3999)):
        later = [
            radius_of_count(k + math.ceil((n - look) * k / look - 1e-9), n, 0.01 * schedule[n])
            for n in schedule
            if n > look
        ]
        gain = max(later) - radius_of_count(k, look, 0.01 * schedule[look])
        assert GroupSequential(gain + 1e-6, alpha=0.01).settled(k, look, schedule)
        assert not GroupSequential(gain - 1e-6, alpha=0.01).settled(k, look, schedule)
        assert rule.settled(k, look, schedule) == (gain < 0.06)


def test_a_class_that_all_samples_have_is_expected_of_all_others():
    """The rounding of a share of 1 must not make it more, which no count can be."""
    rule = GroupSequential(0.01)
    schedule = rule.schedule(10_000, 7)
    for look in schedule:
        assert rule.settled(look, look, schedule) == (look == 10_000)
        assert rule.settled(0, look, schedule)


@pytest.mark.parametrize("settings", [{}, {"radius_in_sigma": 1.0}])
def test_a_rule_without_alpha_takes_that_of_the_certificates(settings):
    rule, stated = GroupSequential(**settings), GroupSequential(**settings, alpha=0.01)
    assert rule.aimed_at(0.01) == stated
    assert stated.aimed_at(0.2) == stated
    schedule = rule.schedule(5000, 100)
    settled = [rule.settled(k, 300, schedule) for k in range(0, 301, 5)]
    assert settled == [rule.aimed_at(0.001).settled(k, 300, schedule) for k in range(0, 301, 5)]
    assert settled != [rule.aimed_at(0.5).settled(k, 300, schedule) for k in range(0, 301, 5)]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: GroupSequential(0.0), "radius_gain"),
        (lambda: GroupSequential(math.inf), "radius_gain"),
        (lambda: GroupSequential(None), "radius_gain"),
        (lambda: GroupSequential(radius_in_sigma=0.0), "radius_in_sigma"),
        (lambda: GroupSequential(radius_in_sigma=math.inf), "radius_in_sigma"),
        (lambda: GroupSequential(radius_in_sigma=math.nan), "radius_in_sigma"),
        (lambda: GroupSequential(looks=()), "looks"),
        (lambda: GroupSequential(looks=(0, 10)), "looks"),
        (lambda: GroupSequential(looks=(5.0, 10)), "looks"),
        (lambda: GroupSequential(looks=(5, 5, 10)), "looks"),
        (lambda: GroupSequential(looks=(6, 5, 10)), "looks"),
        (lambda: GroupSequential(looks=(5, 10), shares=(0.5, 0.4)), "shares"),
        (lambda: GroupSequential(looks=(5, 10), shares=(0.5, 0.6)), "shares"),
        (lambda: GroupSequential(looks=(5, 10), shares=(0.0, 1.0)), "shares"),
        (lambda: GroupSequential(looks=(5, 10), shares=(-0.5, 1.5)), "shares"),
        (lambda: GroupSequential(looks=(5, 10), shares=(math.nan, 0.5)), "shares"),
        (lambda: GroupSequential(looks=(5, 10), shares=(1.0,)), "shares"),
        (lambda: GroupSequential(shares=(0.5, 0.5)), "shares"),
        (lambda: GroupSequential(alpha=1), "alpha"),
        (lambda: GroupSequential(alpha=True), "alpha"),
        (lambda: GroupSequential().aimed_at(0.0), "alpha"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        make()
