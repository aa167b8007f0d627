"""Votes that stop when the question is settled."""

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
from deqcert.statistics import CertificationRule, InputSpecific, Stopping, TargetRadius

IMAGE = torch.full((1, 4, 4), 0.5)
SIZES = {"n0": 20, "n": 1010, "batch_size": 50}
RULES = [TargetRadius(0.3, alpha=0.001), TargetRadius(1.0, alpha=0.001)]


class After(Stopping):
    """Stops after a number of samples; writes down what it was shown."""

    def __init__(self, samples):
        self.samples = samples
        self.shown = []

    def settled(self, k, n, n_max):
        self.shown.append((k, n, n_max))
        return n >= self.samples


def standard(stopping=None, **changes):
    return Standard(**{**SIZES, "stopping": stopping, **changes})


@pytest.fixture
def make_g(threshold_deq):
    return lambda *args, **settings: smoothed(threshold_deq(*args, **settings), solver=Picard(max_steps=7))


def predictions(g, sampling=None):
    """The prediction of each estimation sample, in the order in which they are drawn."""
    return g.base(noisy(sampling or standard(), g, IMAGE)).argmax(dim=1).tolist()


def expected_size(predicted, votes, sampling):
    """Look at the votes between batches, by hand."""
    for n in range(sampling.batch_size, sampling.n, sampling.batch_size):
        if sampling.stopping.settled(predicted[:n].count(votes.selected), n, sampling.n):
            return n
    return sampling.n


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9, 1.0, 1.02, 1.1, 2.0])
def test_samples_are_the_first_ones_of_a_run_that_takes_all(threshold, rule, make_g):
    g, sampling = make_g(threshold), standard(rule)
    whole, votes = predictions(g), votes_of(sampling, g, IMAGE)
    assert votes.n == expected_size(whole, votes, sampling)
    assert votes.estimation == tuple(whole[: votes.n].count(each) for each in (0, 1))
    assert votes.nfe_fast == 7 * (20 + votes.n)
    assert votes.anytime


def test_sizes_differ_from_image_to_image(make_g):
    sizes = {votes_of(standard(RULES[0]), make_g(t), IMAGE).n for t in (0.6, 0.8, 0.9, 0.95, 1.0, 1.1)}
    assert len(sizes) >= 3
    assert min(sizes) <= 100


def test_votes_that_are_not_stopped_say_so(make_g):
    votes, never = (votes_of(standard(rule), make_g(), IMAGE) for rule in (None, After(10_000)))
    assert (votes.anytime, votes.n) == (False, 1010)
    assert (never.anytime, never.n) == (True, 1010)
    assert never.estimation == votes.estimation
    rule = CertificationRule()
    assert rule.p_a_lower(never) < rule.p_a_lower(votes)


def test_a_batch_may_be_larger_than_the_budget(make_g):
    votes = votes_of(standard(After(10_000), n=30), make_g(), IMAGE)
    assert (votes.n, votes.anytime) == (30, True)


def test_samples_that_vote_for_nobody_are_not_a(make_g):
    rule, g = After(120), make_g(0.8, poison=0.55)
    votes = votes_of(standard(rule), g, IMAGE)
    means = noisy(standard(), g, IMAGE).flatten(1).mean(dim=1)[:150]
    assert (votes.selected, votes.n) == (0, 150)
    assert sum(votes.estimation) == int((means <= 0.55).sum()) < 150
    assert rule.shown[-1] == (int(((means > 0.8 / (2 - 2**-6)) & (means <= 0.55)).sum()), 150, 1010)
    assert [shown[1] for shown in rule.shown] == [50, 100, 150]


def test_a_selection_without_votes_selects_the_lowest_class(make_g):
    rule = After(120)
    votes = votes_of(standard(rule), make_g(poison=-math.inf), IMAGE)
    assert (votes.selected, votes.n, votes.n_a) == (0, 150, 0)
    assert rule.shown[-1][0] == 0


@pytest.mark.parametrize("execution", [Execution(), Execution(rows=7), Execution(rows=64, images=3)], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
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
    sampling = standard(RULES[0], execution=Execution(rows=10_000, images=2))
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
    expected = {"class": "TargetRadius", "radius_in_sigma": 1.0, "alpha": 0.001}
    assert describe(standard(RULES[1]))["stopping"] == expected
    assert describe(standard())["stopping"] is None


@pytest.mark.parametrize("threshold", [0.6, 0.9, 1.0, 1.1, 2.0])
def test_input_specific_sampling_draws_what_the_selection_asks_for(threshold, make_g):
    rule, g = InputSpecific(0.2, alpha=0.001), make_g(threshold)
    votes = votes_of(standard(rule, n0=200), g, IMAGE)
    budget = rule.budget(max(votes.selection), 200, 1010)
    assert votes.n == min(1010, math.ceil(budget / 50) * 50)
    assert votes.estimation == tuple(predictions(g)[: votes.n].count(each) for each in (0, 1))
    assert not votes.anytime


def test_a_budget_below_the_selection_is_refused():
    with pytest.raises(SettingError, match=r"^n = 100"):
        standard(InputSpecific(), n0=200, n=100)
    standard(n0=200, n=100)


def test_a_rule_that_says_it_looks_at_no_vote_is_shown_none(make_g):
    class Peeping(After):
        anytime = False

    rule = Peeping(120)
    votes = votes_of(standard(rule), make_g(), IMAGE)
    assert (votes.n, votes.anytime) == (1010, False)
    assert rule.shown == []
