"""Votes that stop when the question is settled."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from deqcert.errors import SettingError
from deqcert.seeding import Purpose
from deqcert.smoothing import Execution, Serialized, Standard
from deqcert.solvers import Picard
from deqcert.statistics import (
    CertificationRule,
    InputSpecific,
    Stopping,
    TargetRadius,
    Votes,
)

IMAGE = torch.full((1, 4, 4), 0.5)
SETTINGS = {"sigma": 0.5, "n0": 20, "n": 1010, "batch_size": 50, "solver": Picard(max_steps=7)}
RULES = [TargetRadius(0.3), TargetRadius(1.0, alpha=0.001)]


class After(Stopping):
    """Stops after a number of copies; writes down what it was shown."""

    def __init__(self, copies):
        self.copies = copies
        self.shown = []

    def settled(self, k, n, n_max):
        self.shown.append((k, n, n_max))
        return n >= self.copies


def standard(stopping=None, **changes):
    return Standard(**{**SETTINGS, "stopping": stopping, **changes})


def measurement(votes):
    return {key: value for key, value in votes.to_json().items() if key != "seconds"}


def labels_of(strategy, classifier, index=0):
    """The label of each estimation copy, in the order in which they were drawn."""
    (given,) = strategy.label_chain(strategy.engine(classifier, IMAGE), IMAGE[None], [index], chain=0)
    return given.labels.tolist()


def expected_size(labels, votes, strategy):
    """Look at the votes between batches, by hand."""
    for n in range(strategy.batch_size, strategy.n, strategy.batch_size):
        if strategy.stopping.settled(labels[:n].count(votes.selected), n, strategy.n):
            return n
    return strategy.n


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9, 1.0, 1.02, 1.1, 2.0])
def test_copies_are_the_first_ones_of_a_run_that_takes_all(threshold, rule, threshold_deq):
    whole = labels_of(standard(), threshold_deq(threshold))
    assert len(whole) == 1010
    strategy = standard(rule)
    votes = strategy.vote(threshold_deq(threshold), IMAGE, 0, 0)
    assert votes.n == expected_size(whole, votes, strategy)
    assert labels_of(strategy, threshold_deq(threshold)) == whole[: votes.n]
    assert votes.estimation == tuple(whole[: votes.n].count(label) for label in (0, 1))
    assert votes.nfe_fast == 7 * (20 + votes.n)
    assert votes.anytime
    votes.validate()


def test_sizes_differ_from_image_to_image(threshold_deq):
    sizes = {standard(RULES[0]).vote(threshold_deq(t), IMAGE, 0, 0).n for t in (0.6, 0.8, 0.9, 1.0, 1.1)}
    assert len(sizes) >= 3
    assert min(sizes) <= 100


def test_votes_that_are_not_stopped_say_so(threshold_deq):
    votes = standard().vote(threshold_deq(), IMAGE, 0, 0)
    assert (votes.anytime, votes.n) == (False, 1010)
    never = standard(After(10_000)).vote(threshold_deq(), IMAGE, 0, 0)
    assert (never.anytime, never.n) == (True, 1010)
    assert never.estimation == votes.estimation
    rule = CertificationRule()
    assert rule.p_a_lower(never) < rule.p_a_lower(votes)


def test_a_batch_may_be_larger_than_the_budget(threshold_deq):
    votes = standard(RULES[0], n=30).vote(threshold_deq(), IMAGE, 0, 0)
    assert (votes.n, votes.anytime) == (30, True)


def test_copies_that_vote_for_nobody_are_not_a(threshold_deq):
    rule = After(120)
    strategy = standard(rule)
    votes = strategy.vote(threshold_deq(0.8, poison=0.55), IMAGE, 0, 0)
    copies = torch.cat(list(strategy._noisy_batches(IMAGE, 0, Purpose.ESTIMATION)))
    means = copies.flatten(1).mean(dim=1)[:150]
    assert votes.selected == 0
    assert votes.n == 150
    assert sum(votes.estimation) == int((means <= 0.55).sum()) < 150
    assert rule.shown[-1] == (int(((means > 0.8 / (2 - 2**-6)) & (means <= 0.55)).sum()), 150, 1010)
    assert [shown[1] for shown in rule.shown] == [50, 100, 150]


def test_a_selection_without_votes_selects_the_lowest_class(threshold_deq):
    rule = After(120)
    votes = standard(rule).vote(threshold_deq(poison=-math.inf), IMAGE, 0, 0)
    assert (votes.selected, votes.n, votes.n_a) == (0, 150, 0)
    assert rule.shown[-1][0] == 0


@pytest.mark.parametrize("execution", [Execution(), Execution(rows=7), Execution(rows=64, images=3)], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_neighbours_do_not_matter(rule, execution, threshold_deq):
    strategy = standard(rule, execution=execution)
    images = torch.stack([IMAGE + shift for shift in (0.0, 0.2, -0.4, 0.06, 0.1)])
    indices, labels = [7, 3, 0, 12, 4], [0, 1, 0, 1, 0]
    alone = [strategy.vote(threshold_deq(), *each) for each in zip(images, indices, labels, strict=True)]
    assert len({votes.n for votes in alone}) >= 3
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [2, 3]):
        group = strategy.vote_group(
            strategy.engine(threshold_deq(), IMAGE),
            images[order],
            [indices[i] for i in order],
            [labels[i] for i in order],
        )
        for votes, i in zip(group, order, strict=True):
            assert measurement(votes) == measurement(alone[i])


def test_no_copy_of_a_settled_image_is_labelled(threshold_deq):
    classifier = threshold_deq()
    strategy = standard(RULES[0], execution=Execution(rows=10_000, images=2))
    images = torch.stack([IMAGE - 0.4, IMAGE + 0.06])
    engine = strategy.engine(classifier, IMAGE)
    classifier.rows.clear()  # of the engine's own checks
    group = strategy.vote_group(engine, images, [0, 1], [0, 0])
    assert group[0].n < group[1].n
    assert sum(classifier.rows) == sum(votes.nfe_fast for votes in group)


def test_time_is_shared_by_copies(threshold_deq):
    strategy = standard(RULES[0])
    images = torch.stack([IMAGE - 0.4, IMAGE + 0.06])
    one, other = strategy.vote_group(strategy.engine(threshold_deq(), IMAGE), images, [0, 1], [0, 0])
    assert one.seconds / (one.n + 20) == pytest.approx(other.seconds / (other.n + 20))


def test_several_chains_are_refused():
    with pytest.raises(SettingError, match=r"^chains = 2: must be 1 with stopping"):
        standard(RULES[0], chains=2)
    standard(chains=2)


def test_serialized_smoothing_has_no_stopping():
    assert Serialized().stopping is None
    assert "stopping" not in {field.name for field in dataclasses.fields(Serialized)}


def test_identity_names_the_rule():
    identity = standard(RULES[1]).identity
    assert json.loads(json.dumps(identity)) == identity
    assert identity["stopping"] == {
        "class": "TargetRadius",
        "radius_in_sigma": 1.0,
        "alpha": 0.001,
    }
    assert standard().identity["stopping"] is None


def test_votes_survive_json(threshold_deq):
    votes = standard(RULES[0]).vote(threshold_deq(0.8), IMAGE, 0, 0)
    assert measurement(Votes.from_json(json.loads(json.dumps(votes.to_json())))) == measurement(votes)


@pytest.mark.parametrize("threshold", [0.6, 0.9, 1.0, 1.1, 2.0])
def test_input_specific_sampling_draws_what_the_selection_asks_for(threshold, threshold_deq):
    rule = InputSpecific(0.2)
    strategy = standard(rule, n0=200)
    whole = labels_of(standard(n0=200), threshold_deq(threshold))
    votes = strategy.vote(threshold_deq(threshold), IMAGE, 0, 0)
    budget = rule.budget(max(votes.selection), 200, 1010)
    assert votes.n == min(1010, math.ceil(budget / 50) * 50)
    assert labels_of(strategy, threshold_deq(threshold)) == whole[: votes.n]
    assert not votes.anytime
    votes.validate()


def test_a_budget_below_the_selection_is_refused():
    with pytest.raises(SettingError, match=r"^n = 100: must be at least n0 = 200 with stopping"):
        standard(InputSpecific(), n0=200, n=100)
    standard(n0=200, n=100)


def test_a_rule_that_says_it_looks_at_no_vote_is_shown_none(threshold_deq):
    class Peeping(After):
        anytime = False

    rule = Peeping(120)
    votes = standard(rule).vote(threshold_deq(), IMAGE, 0, 0)
    assert (votes.n, votes.anytime) == (1010, False)
    assert rule.shown == []
