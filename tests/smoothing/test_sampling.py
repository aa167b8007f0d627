"""What all sampling strategies promise."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from sampling_runs import SMALL, measurement, recorded_votes, smoothed, votes_of
from scipy.stats import norm

from deqcert.errors import DataError, SettingError
from deqcert.smoothing import Execution, Serialized, Standard, Stream
from deqcert.smoothing.identity import describe, stable_name
from deqcert.solvers import Anderson
from deqcert.statistics import AdaptiveAudit, CertificationRule, FixedAudit, GroupSequential

IMAGE = torch.full((1, 4, 4), 0.5)
STRATEGIES = [Standard(**SMALL), Serialized(**SMALL, audit=FixedAudit(20))]
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=["standard", "serialized"])


@each_strategy
def test_votes_are_a_function_of_the_stream(strategy, threshold_deq):
    one = smoothed(threshold_deq())
    first = {index: measurement(votes_of(strategy, smoothed(threshold_deq()), IMAGE, index)) for index in range(5)}
    assert {index: measurement(votes_of(strategy, one, IMAGE, index)) for index in (4, 2, 0, 0, 3, 1)} == first
    assert len({str(votes["estimation"]) for votes in first.values()}) > 1
    assert {index: measurement(votes_of(strategy, one, IMAGE, index, seed=1)) for index in first} != first


@each_strategy
def test_estimation_samples_are_fresh(strategy, threshold_deq):
    classifier = threshold_deq()
    recorded_votes(dataclasses.replace(strategy, n0=8), smoothed(classifier), IMAGE)
    selection, estimation = classifier.inputs[0], torch.cat(classifier.inputs[1:8])
    assert len(estimation) == 50
    assert not torch.isin(selection, estimation).any()


@each_strategy
@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (torch.full((1, 4, 4), 128, dtype=torch.uint8), r"torch\.uint8"),
        (torch.full((1, 4, 4), 1), r"torch\.int64"),
        (torch.full((1, 4, 4), 128.0), r"128\.0"),
        (torch.tensor([[[0.5, -1e-3], [0.0, 1.0]]]), r"-0\.001"),
        (torch.full((1, 4, 4), math.nan), "nan"),
    ],
)
def test_images_in_another_unit_are_refused(strategy, image, reason, threshold_deq):
    g = smoothed(threshold_deq())
    with pytest.raises(DataError, match=rf"^image: .*{reason}"):
        votes_of(strategy, g, image)
    with pytest.raises(DataError, match=rf"^image: .*{reason}"):
        strategy.group_votes(g, strategy.engine(g, IMAGE), image[None], [Stream(0, 0)])


@pytest.mark.parametrize("kind", [Standard, Serialized])
@pytest.mark.parametrize(
    ("field", "value"),
    [("n", 0), ("n0", 0), ("batch_size", 0), ("n", 10**30), ("batch_size", 10**12), ("n", 2.0)],
)
def test_settings_out_of_range_are_refused_by_name(kind, field, value):
    with pytest.raises(SettingError, match=f"^{field} = "):
        kind(**{field: value})


CHANGES = {
    "n0": 11, "n": 51, "batch_size": 9, "execution": Execution(rows=7), "stopping": GroupSequential(),
    "proposal": Anderson(max_steps=2), "start": "clean", "warmup_steps": 9, "audit": AdaptiveAudit(),
    "escalation": 0.1, "sides": "two", "precision": "bfloat16", "store_predictions": True,
}  # fmt: skip


@each_strategy
def test_identity_is_json_and_changes_with_every_setting(strategy):
    own = describe(strategy)
    assert json.loads(json.dumps(own)) == own
    for field in dataclasses.fields(strategy):
        other = describe(dataclasses.replace(strategy, **{field.name: CHANGES[field.name]}))
        assert {key for key in own if own[key] != other[key]} == {field.name}
    assert own["class"] == type(strategy).__name__


def test_our_classes_may_move_to_another_module_and_foreign_ones_may_not():
    moved = type("Serialized", (Serialized,), {"__module__": "deqcert.elsewhere"})
    foreign = type("Serialized", (Serialized,), {"__module__": "deqcertified"})
    assert describe(moved(**SMALL)) == describe(Serialized(**SMALL))
    assert describe(foreign(**SMALL))["class"] == "deqcertified.Serialized"
    assert (stable_name(Standard), stable_name(torch.nn.Linear)) == ("Standard", "torch.nn.modules.linear.Linear")


@each_strategy
@pytest.mark.parametrize("noise", ["float32", "quantised"])
@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_votes_carry_their_noise(strategy, sigma, noise, threshold_deq):
    image = torch.full((1, 4, 4), 51 / 255)
    votes = votes_of(strategy, smoothed(threshold_deq(), sigma, noise=noise), image)
    assert (votes.sigma, votes.noise_error) == (sigma, 16 * 2.0**-48 if noise == "quantised" else 0.0)
    rule = CertificationRule(alpha=0.05, audit="exact")
    assert rule.certify(votes).radius == sigma * norm.ppf(rule.bounds(votes)[0]) > 0


DECISIVE = CertificationRule()


@pytest.mark.parametrize(
    ("strategy", "rule", "least"),
    [
        (Standard(n=5), DECISIVE, 10),  # 0.001^(1/10) > 1/2 >= 0.001^(1/9)
        (Standard(n=9), DECISIVE, 10),
        (Standard(n=9, stopping=GroupSequential(looks=(2, 9))), DECISIVE, 10),
        (Standard(n=10), CertificationRule(sides="two"), 11),
        (Standard(n=19), CertificationRule(1e-6), 20),
        (Serialized(n=5), DECISIVE, 14),
        (Serialized(n=5, audit=FixedAudit(1)), DECISIVE, 14),
    ],
)
def test_an_n_that_can_never_decide_is_refused_with_the_least_that_can(strategy, rule, least):
    with pytest.raises(SettingError, match=rf"^sampling\.n = {strategy.n}: .*; must be at least {least}$"):
        strategy.aimed_at(rule).demand_decisive(rule)
    looks = {"stopping": None} if isinstance(strategy, Standard) else {"audit": AdaptiveAudit()}
    dataclasses.replace(strategy, n=least, **looks).aimed_at(rule).demand_decisive(rule)
    with pytest.raises(SettingError, match=r"^sampling\.n = "):
        dataclasses.replace(strategy, n=least - 1, **looks).aimed_at(rule).demand_decisive(rule)


def test_an_audit_that_can_never_decide_is_refused():
    strategy = Serialized(n=30, audit=FixedAudit(10))
    with pytest.raises(SettingError, match=r"^sampling\.n = 30: .*a larger audit is needed$"):
        strategy.demand_decisive(DECISIVE)
    dataclasses.replace(strategy, audit=FixedAudit(30)).demand_decisive(DECISIVE)


@pytest.mark.parametrize("audit", [AdaptiveAudit(), FixedAudit(8)])
def test_no_other_votes_decide_where_unanimous_ones_do_not(audit):
    """Nothing is refused that could certify."""
    for n in range(8, 16):
        strategy = Serialized(n0=10, n=n, audit=audit).aimed_at(DECISIVE)
        votes = [
            each._replace(selection=(k0, 10 - k0), audited=strategy.audit.size(each._replace(selection=(k0, 10 - k0))))
            for n_a in range(n + 1)
            for k0 in range(5, 11)
            for each in strategy.anticipated(n, n_a, 1.0)
        ]
        largest = max(DECISIVE.certify(each).radius for each in votes)
        assert (largest > 0) == (strategy.largest_radius(DECISIVE, 1.0) > 0)


def test_the_largest_radius_is_that_of_unanimous_votes(threshold_deq):
    """A class that all noisy samples have, by every strategy."""
    g = smoothed(threshold_deq(threshold=100.0))
    for strategy in (
        Standard(n0=10, n=60, batch_size=20),
        Standard(n0=10, n=60, batch_size=20, stopping=GroupSequential(radius_gain=1e-9)),
        Serialized(n0=10, n=60, batch_size=20),
        Serialized(n0=10, n=60, batch_size=20, escalation=0.2, audit=FixedAudit(40)),
    ):
        certificate = g.certify(IMAGE, sampling=strategy, stream=Stream(0, 0))
        assert certificate.radius == strategy.aimed_at(DECISIVE).largest_radius(DECISIVE, g.sigma) > 0


def test_certify_refuses_it_before_any_work(threshold_deq):
    classifier = threshold_deq()
    with pytest.raises(SettingError, match=r"^sampling\.n = 5: "):
        smoothed(classifier).certify(IMAGE, sampling=Standard(n=5))
    assert not classifier.rows
