"""The smoothed classifier: what it predicts and certifies, against a classifier of which everything is known."""

from __future__ import annotations

import dataclasses
import json
import math
from statistics import NormalDist

import pytest
import torch
from sampling_runs import CHECKPOINT, SMALL, shipped_network, smoothed, votes_of
from scipy.stats import binom
from torch import nn

from deqcert.errors import CheckpointError, DataError, SettingError
from deqcert.models import MDEQ, CifarResNet
from deqcert.smoothing import Serialized, SmoothedClassifier, Smoothing, SolvedClassifier, Standard, Stream
from deqcert.smoothing.identity import describe
from deqcert.solvers import Anderson, Picard
from deqcert.statistics import ABSTAIN, CertificationRule, FixedAudit

IMAGE = torch.full((1, 4, 4), 0.5)
SIGMA = 0.7


class Linear(nn.Module):
    """Class 0 where w · x + b > 0, else class 1; class 0 has the given probability around ``IMAGE``."""

    def __init__(self, probability):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 2, 16))
        margin = SIGMA * float(self.weight.detach().norm()) * NormalDist().inv_cdf(probability)
        self.bias = margin - 0.5 * float(self.weight.detach().sum())
        self.eval()

    def forward(self, x):
        score = x.flatten(1) @ self.weight + self.bias
        return torch.stack([score, torch.zeros_like(score)], dim=1)


def linear(probability):
    return SmoothedClassifier(Linear(probability), SIGMA)


def test_votes_have_the_probability_of_the_closed_form():
    n, p = 20_000, 0.7
    votes = votes_of(Standard(n0=10, n=n), linear(p), IMAGE)
    assert abs(votes.estimation[0] - n * p) < 4 * math.sqrt(n * p * (1 - p))


# PREDICT.


def predictions(g, times, **settings):
    return [g.predict(IMAGE, stream=Stream(0, index), **settings) for index in range(times)]


def test_a_prediction_is_wrong_with_probability_alpha_at_most():
    alpha, times = 0.1, 600
    wrong = predictions(linear(0.505), times, n=61, alpha=alpha).count(1)
    assert 0 < wrong <= binom.ppf(1 - 1e-4, times, alpha)
    assert predictions(linear(0.5), times, n=61, alpha=alpha).count(ABSTAIN) >= binom.ppf(1e-4, times, 1 - alpha)


def test_a_clear_class_is_predicted_and_a_tie_is_not():
    assert predictions(linear(0.9), 20, n=100) == [0] * 20
    assert predictions(linear(0.1), 20, n=100) == [1] * 20
    assert predictions(linear(0.5), 20, n=100) == [ABSTAIN] * 20
    assert linear(0.999).predict(IMAGE, n=1) == ABSTAIN  # one sample cannot tell


def test_noise_is_fresh_unless_a_stream_is_given(threshold_deq):
    network = threshold_deq()
    g = smoothed(network, solver=Picard(max_steps=1))

    def seen(stream):
        network.inputs.clear()
        g.predict(IMAGE, n=9, stream=stream)
        return network.inputs[-1]

    assert len(seen(None)) == 9
    assert not torch.isin(seen(None), seen(None)).any()
    assert torch.equal(seen(Stream(3, 1)), seen(Stream(3, 1)))
    assert not torch.isin(seen(Stream(3, 1)), seen(Stream(3, 2))).any()


@pytest.mark.parametrize(
    ("settings", "field"), [({"n": 0}, "n"), ({"n": 2.5}, "n"), ({"alpha": 0.0}, "alpha"), ({"alpha": 1.0}, "alpha")]
)
def test_settings_of_a_prediction_are_refused_by_name(settings, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        linear(0.9).predict(IMAGE, **settings)


# CERTIFY.


def test_a_certificate_needs_neither_label_nor_index():
    certificate = linear(0.9).certify(IMAGE)
    assert (certificate.prediction, certificate.index, certificate.label, certificate.correct) == (0, -1, -1, False)
    assert 0.85 < certificate.p_a_lower <= 0.9
    assert certificate.radius == pytest.approx(SIGMA * NormalDist().inv_cdf(certificate.p_a_lower))
    nothing = linear(0.5).certify(IMAGE, sampling=Standard(**SMALL))
    assert (nothing.prediction, nothing.radius, nothing.correct) == (ABSTAIN, 0.0, False)


def test_a_certificate_is_the_rule_s_of_the_sampling_s_votes(threshold_deq):
    g, stream = smoothed(threshold_deq(0.6), solver=Picard(max_steps=30)), Stream(7, 2)
    sampling = Serialized(n0=20, n=200, batch_size=50, proposal=Picard(max_steps=3), audit=FixedAudit(50))
    rule = CertificationRule(alpha=0.01)
    given = g.certify(IMAGE, sampling=sampling, rule=rule, stream=stream)
    assert given == g.certify(IMAGE, sampling=sampling, rule=rule, stream=stream)
    assert given == rule.certify(sampling.votes(g, IMAGE, stream))
    assert given != g.certify(IMAGE, sampling=sampling, rule=CertificationRule(alpha=0.05), stream=stream)


def test_certificates_draw_fresh_noise():
    sampling = Standard(n0=10, n=1000)
    bounds = {linear(0.7).certify(IMAGE, sampling=sampling).p_a_lower for _ in range(6)}
    assert len(bounds) > 1
    seeds = {Stream.fresh() for _ in range(100)}
    assert len({stream.seed for stream in seeds}) == len({stream.index for stream in seeds}) == 100


# What is refused.


@pytest.mark.parametrize("ask", [SmoothedClassifier.predict, SmoothedClassifier.certify])
@pytest.mark.parametrize(
    ("base", "image", "error", "field"),
    [
        (Linear(0.9), torch.full((1, 4, 4), 128, dtype=torch.uint8), DataError, "image: "),
        (Linear(0.9), IMAGE + 1, DataError, "image: "),
        (CifarResNet(depth=8, image_size=8).eval(), torch.full((1, 8, 8), 0.5), SettingError, "image = "),
        (MDEQ(image_size=8).eval(), torch.full((1, 8, 8), 0.5), SettingError, "image = "),
        (Linear(0.9).train(), IMAGE, SettingError, "classifier = "),
        (MDEQ(image_size=8).train(), torch.full((3, 8, 8), 0.5), SettingError, "classifier = "),
        (nn.Sequential(Linear(0.9), nn.BatchNorm1d(2).train()).eval(), IMAGE, None, ""),
    ],
    ids=["uint8", "beyond 1", "gray, ResNet", "gray, MDEQ", "training", "training, DEQ", "part"],
)
def test_images_and_classifiers_that_do_not_fit_are_refused_by_name(ask, base, image, error, field):
    if error is None:  # training mode of one part only
        base[1].train()
        error, field = SettingError, "classifier = "
    with pytest.raises(error, match=f"^{field}"):
        ask(SmoothedClassifier(base, 0.5), image)


@pytest.mark.parametrize(
    ("field", "value"),
    [("sigma", 0.0), ("sigma", -1.0), ("sigma", math.inf), ("sigma", math.nan), ("sigma", "0.5"), ("noise", "float64")],
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    for build in (Smoothing, lambda **settings: SmoothedClassifier(nn.Flatten(), **{"sigma": 0.5, **settings})):
        with pytest.raises(SettingError, match=f"^{field} = "):
            build(**{field: value})


def test_quantized_noise_has_a_largest_sigma_and_smoothing_two_starts():
    with pytest.raises(SettingError, match=r"^sigma = 20"):
        Smoothing(sigma=20.0, noise="quantised")
    with pytest.raises(SettingError, match=r"^start = 'learned'"):
        Smoothing(start="learned")


# What makes it.


def test_a_deq_by_itself_stands_for_what_its_own_solver_makes(threshold_deq):
    g = SmoothedClassifier(threshold_deq(), 0.5)
    assert isinstance(g.base, SolvedClassifier)
    assert (g.base.solver, g.base.start) == (Picard(max_steps=60), "zero")
    assert Smoothing(solver=Anderson(max_steps=3)).of(threshold_deq()).base.solver == Anderson(max_steps=3)


CHANGES = {"sigma": 0.25, "noise": "quantised", "solver": Anderson(max_steps=2), "start": "anchor"}


def test_the_description_is_json_and_changes_with_every_setting():
    own = describe(Smoothing())
    assert json.loads(json.dumps(own)) == own
    for field in dataclasses.fields(Smoothing):
        other = describe(dataclasses.replace(Smoothing(), **{field.name: CHANGES[field.name]}))
        assert {key for key in own if own[key] != other[key]} == {field.name}


def test_a_checkpoint_makes_the_classifier_that_was_trained(tmp_path):
    g = SmoothedClassifier.from_checkpoint(CHECKPOINT)
    by_hand = SmoothedClassifier(SolvedClassifier(shipped_network()), g.sigma)
    image, sampling = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)), Standard(**SMALL)
    given, expected = (each.certify(image, sampling=sampling, stream=Stream(0, 0)) for each in (g, by_hand))
    assert given == expected
    assert SmoothedClassifier.from_checkpoint(CHECKPOINT, sigma=0.125, solver=Picard(max_steps=2)).sigma == 0.125
    with pytest.raises(CheckpointError):
        SmoothedClassifier.from_checkpoint(tmp_path / "missing.ckpt")
    with pytest.raises(SettingError, match=r"^start = "):
        SmoothedClassifier.from_checkpoint(CHECKPOINT, start="anchor")
