"""Votes that stop at one of a few looks that were fixed beforehand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from sampling_runs import group_votes_of, measurement, noisy, smoothed, votes_of

from deqcert.errors import SettingError
from deqcert.smoothing import Execution, Serialized, Standard, Stream
from deqcert.smoothing.identity import describe
from deqcert.solvers import Picard
from deqcert.statistics import CertificationRule, GroupSequential, clopper_pearson_lower

IMAGE = torch.full((1, 4, 4), 0.5)
SIZES = {"n0": 20, "n": 1010, "batch_size": 50}
LOOKS = [50, 100, 150, 200, 300, 450, 700, 1010]  # 3, 6, 10, 16, 25, 40, 65 and 100 % at the ends of batches
RULES = [
    GroupSequential(0.3, alpha=0.001),
    GroupSequential(radius_in_sigma=1.0, alpha=0.001),
    GroupSequential(radius_in_sigma=0.5, looks=(120, 130, 400, 1010), shares=(0.1, 0.2, 0.3, 0.4), alpha=0.001),
]


def watched(samples):
    """A rule that stops once it has as many samples, and the counts and looks that it was shown."""
    shown = []

    class Watched(GroupSequential):
        def settled(self, k, look, schedule):
            shown.append((k, look))
            return look >= samples

    return Watched(), shown


def standard(stopping=None, **changes):
    return Standard(**{**SIZES, "stopping": stopping, **changes})


@pytest.fixture
def make_g(threshold_deq):
    return lambda *args, **settings: smoothed(threshold_deq(*args, **settings), solver=Picard(max_steps=7))


def predictions(g, sampling=None):
    """The prediction of each estimation sample, in the order in which they are drawn."""
    return g.base(noisy(sampling or standard(), g, IMAGE)).argmax(dim=1).tolist()


def expected_size(predicted, votes, sampling):
    """Look at the votes by hand, nowhere but where the schedule says."""
    schedule = sampling.stopping.schedule(sampling.n, sampling.batch_size)
    for look in schedule:
        if sampling.stopping.settled(predicted[:look].count(votes.selected), look, schedule):
            return look
    return sampling.n


@pytest.mark.parametrize("rule", RULES, ids=range(len(RULES)))
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9, 1.0, 1.02, 1.1, 2.0])
def test_samples_are_the_first_ones_of_a_run_that_takes_all(threshold, rule, make_g):
    g, sampling = make_g(threshold), standard(rule)
    whole, votes = predictions(g), votes_of(sampling, g, IMAGE)
    assert votes.n == expected_size(whole, votes, sampling)
    assert votes.estimation == tuple(whole[: votes.n].count(each) for each in (0, 1))
    assert votes.nfe_fast == 7 * (20 + votes.n)
    assert (votes.anytime, votes.alpha_share) == (True, rule.schedule(1010, 50)[votes.n])
    votes._replace(index=0, label=0).validate()


def test_sizes_differ_from_image_to_image(make_g):
    found = [votes_of(standard(RULES[0]), make_g(t), IMAGE) for t in (0.6, 0.8, 0.9, 0.95, 1.0, 1.1)]
    assert len({(votes.n, votes.alpha_share) for votes in found}) >= 3
    assert min(votes.n for votes in found) <= 100


def test_votes_are_looked_at_where_the_schedule_says_and_nowhere_else(make_g):
    rule, shown = watched(10_000)
    votes = votes_of(standard(rule), make_g(), IMAGE)
    whole = predictions(make_g())
    assert votes.n == 1010
    assert [look for _, look in shown] == LOOKS
    assert [k for k, _ in shown] == [whole[:look].count(votes.selected) for look in LOOKS]


def test_each_look_has_its_share_of_alpha(make_g):
    g, bounds = make_g(), CertificationRule(alpha=0.01)
    shares = []
    for stop in LOOKS:
        votes = votes_of(standard(watched(stop)[0]), g, IMAGE)
        assert (votes.n, votes.anytime) == (stop, True)
        shares.append(votes.alpha_share)
        lower = clopper_pearson_lower(votes.n_a, stop, 0.01 * votes.alpha_share)
        assert bounds.bounds(votes) == (float(lower), None)
    assert shares == [0.04, 0.07, 0.1, 0.13, 0.15, 0.15, 0.16, 0.2]
    assert sum(shares) == pytest.approx(1.0)


def test_looks_in_one_batch_are_one_with_their_shares_together(make_g):
    rule = dataclasses.replace(RULES[2], alpha=None)
    for stop, share in ((150, 0.3), (400, 0.3), (1010, 0.4)):

        class At(GroupSequential):
            def settled(self, k, look, schedule, stop=stop):
                return look >= stop

        votes = votes_of(standard(At(looks=rule.looks, shares=rule.shares)), make_g(), IMAGE)
        assert (votes.n, votes.alpha_share) == (stop, pytest.approx(share))


def test_votes_that_could_not_stop_say_so(make_g):
    votes, never = (votes_of(standard(rule), make_g(), IMAGE) for rule in (None, watched(10_000)[0]))
    assert (votes.anytime, votes.alpha_share, votes.n) == (False, 1.0, 1010)
    assert (never.anytime, never.alpha_share, never.n) == (True, 0.2, 1010)
    assert never.estimation == votes.estimation
    assert CertificationRule().bounds(never)[0] < CertificationRule().bounds(votes)[0]


def test_a_batch_may_be_larger_than_the_budget(make_g):
    votes = votes_of(standard(GroupSequential(), n=30), make_g(), IMAGE)
    assert (votes.n, votes.anytime, votes.alpha_share) == (30, True, 1.0)
    votes._replace(index=0, label=0).validate()


def test_samples_that_vote_for_nobody_are_not_a(make_g):
    rule, shown = watched(120)
    g = make_g(0.8, poison=0.55)
    votes = votes_of(standard(rule), g, IMAGE)
    means = noisy(standard(), g, IMAGE).flatten(1).mean(dim=1)[:150]
    assert (votes.selected, votes.n) == (0, 150)
    assert sum(votes.estimation) == int((means <= 0.55).sum()) < 150
    assert shown[-1] == (int(((means > 0.8 / (2 - 2**-6)) & (means <= 0.55)).sum()), 150)
    assert [look for _, look in shown] == [50, 100, 150]


def test_a_selection_without_votes_selects_the_lowest_class(make_g):
    rule, shown = watched(120)
    votes = votes_of(standard(rule), make_g(poison=-math.inf), IMAGE)
    assert (votes.selected, votes.n, votes.n_a) == (0, 150, 0)
    assert shown[-1][0] == 0


@pytest.mark.parametrize("execution", [Execution(), Execution(rows=7), Execution(rows=64, images=3)], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=range(len(RULES)))
def test_neighbors_do_not_matter(rule, execution, make_g):
    sampling, g = standard(rule, execution=execution), make_g()
    images = torch.stack([IMAGE + shift for shift in (0.0, 0.2, -0.4, 0.06, 0.1)])
    indices = [7, 3, 0, 12, 4]
    alone = [votes_of(sampling, g, *each) for each in zip(images, indices, strict=True)]
    assert len({votes.n for votes in alone}) >= 2
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [2, 3]):
        group = group_votes_of(sampling, g, images[order], [indices[i] for i in order])
        assert list(map(measurement, group)) == [measurement(alone[i]) for i in order]


def test_no_sample_of_a_settled_image_is_classified_and_time_is_shared_by_samples(threshold_deq):
    classifier = threshold_deq()
    g = smoothed(classifier, solver=Picard(max_steps=7))
    rule = GroupSequential(radius_in_sigma=0.3, alpha=0.001)
    sampling = standard(rule, execution=Execution(rows=10_000, images=2))
    engine = sampling.engine(g, IMAGE)
    classifier.rows.clear()  # of the engine's own checks
    images = torch.stack([IMAGE - 0.4, IMAGE + 0.06])
    one, other = sampling.group_votes(g, engine, images, [Stream(0, 0), Stream(0, 1)])
    assert one.n < other.n
    assert sum(classifier.rows) == one.nfe_fast + other.nfe_fast
    assert one.seconds / (one.n + 20) == pytest.approx(other.seconds / (other.n + 20))


def test_serialized_sampling_has_no_stopping():
    assert "stopping" not in {field.name for field in dataclasses.fields(Serialized)}


def test_identity_names_the_rule():
    expected = {"class": "GroupSequential", "radius_gain": 0.06, "radius_in_sigma": 1.0, "alpha": 0.001}
    assert describe(standard(RULES[1]))["stopping"] == expected | {"looks": None, "shares": None}
    own = describe(standard(RULES[2]))["stopping"]
    assert (list(own["looks"]), list(own["shares"])) == ([120, 130, 400, 1010], [0.1, 0.2, 0.3, 0.4])
    assert describe(standard())["stopping"] is None


def test_the_rule_aims_at_the_certificates_of_the_run_unless_it_states_its_own():
    rule = CertificationRule(alpha=0.02)
    assert standard(GroupSequential()).aimed_at(rule).stopping.alpha == 0.02
    assert standard(RULES[0]).aimed_at(rule).stopping.alpha == 0.001
    assert standard().aimed_at(rule) == standard()


@pytest.mark.parametrize("looks", [(100,), (100, 1009), (100, 1010, 2000)])
def test_looks_that_do_not_end_at_the_budget_are_refused(looks):
    with pytest.raises(SettingError, match=r"^looks = "):
        standard(GroupSequential(looks=looks))
    standard(GroupSequential(looks=(100, 1010)))


def test_a_smaller_gain_takes_more_samples(make_g):
    g = make_g(0.8)
    sizes = [votes_of(standard(GroupSequential(gain, alpha=0.001)), g, IMAGE).n for gain in (2.0, 0.1, 0.01)]
    assert sizes[0] < sizes[1] < sizes[2]
