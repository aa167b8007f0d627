"""f is a fixed function of one input: the network solved by its solver from its start."""

from __future__ import annotations

import warnings

import pytest
import torch
from sampling_runs import group_votes_of, measurement, noisy, shipped_network, smoothed, votes_of
from torch import nn

from deqcert.errors import SettingError
from deqcert.models import MDEQ
from deqcert.smoothing import SolvedClassifier, Standard
from deqcert.solvers import Anderson, Broyden, Picard
from deqcert.statistics import CertificationRule, GroupSequential

IMAGE = torch.full((1, 4, 4), 0.5)
SAMPLING = Standard(n0=20, n=200, batch_size=64)


@pytest.fixture
def make_anchored(threshold_deq):
    """z* = u / (1 - rate); the anchor is ``factor`` times the fixed point."""

    class AnchoredDEQ(threshold_deq):
        start_kind, start_sigma = "mean", 0.5

        def __init__(self, factor=0.0, sigma=0.5, **settings):
            super().__init__(**settings)
            self.factor, self.start_sigma = factor, sigma

        def anchor(self, injection):
            return self.factor * injection / (1 - self.rate)

    return AnchoredDEQ


@pytest.mark.parametrize("solver", [Anderson(max_steps=8, tolerance=1e-3), Broyden(max_steps=8), Picard(max_steps=3)])
def test_logits_are_the_same_alone_and_in_a_batch_and_at_every_call(solver):
    f, x = SolvedClassifier(shipped_network(), solver), torch.rand(6, 1, 8, 8)
    together = f(x)
    torch.testing.assert_close(torch.cat([f(each[None]) for each in x]), together, rtol=1e-4, atol=1e-3)
    assert torch.equal(f(x), together)


def test_logits_are_those_of_k_steps_from_the_start(make_anchored):
    network = make_anchored(factor=0.9)
    x = torch.rand(5, 1, 4, 4)
    u = x.flatten(1).mean(dim=1)
    anchored, cold = (SolvedClassifier(network, Picard(max_steps=2), start)(x)[:, 0] for start in ("anchor", "zero"))
    torch.testing.assert_close(anchored, 2 * u * (1 - 0.1 * 0.25))  # the error of the start is halved twice
    torch.testing.assert_close(cold, 1.5 * u)


@pytest.mark.parametrize("start", ["zero", "anchor"])
def test_what_is_certified_is_what_forward_computes(make_anchored, start):
    g = smoothed(make_anchored(factor=0.9), solver=Picard(max_steps=2), start=start)
    votes = votes_of(SAMPLING, g, IMAGE, index=3)
    predicted = g.base(noisy(SAMPLING, g, IMAGE, index=3)).argmax(dim=1)
    assert votes.estimation == tuple(torch.bincount(predicted, minlength=2).tolist())
    assert 0 < votes.estimation[0] < 200
    assert (votes.audited, votes.nfe_fast, votes.nfe_audit) == (None, 2 * 220, 0)


def test_votes_from_an_anchor_do_not_depend_on_batches_or_neighbors(make_anchored):
    g = smoothed(make_anchored(factor=0.7), solver=Picard(max_steps=1), start="anchor")
    images = torch.stack([IMAGE, IMAGE + 0.1])
    alone = [votes_of(SAMPLING, g, image, index) for index, image in enumerate(images)]
    assert list(map(measurement, group_votes_of(SAMPLING, g, images))) == list(map(measurement, alone))


def test_sampling_from_an_anchor_may_stop(make_anchored):
    g = smoothed(make_anchored(factor=0.9, threshold=0.0), solver=Anderson(max_steps=3), start="anchor")
    rule = GroupSequential(radius_in_sigma=0.5, alpha=0.001)
    stopped = votes_of(Standard(n0=20, n=2000, batch_size=64, stopping=rule), g, IMAGE)
    assert (stopped.n, stopped.anytime) == (64, True)
    assert CertificationRule().certify(stopped).radius > 0.25


def test_names_are_those_of_the_field(make_anchored):
    network = make_anchored()
    assert SolvedClassifier(network).name == "standard-30A"
    assert SolvedClassifier(network, Broyden(max_steps=14)).name == "standard-14B"
    f = SolvedClassifier(network, Picard(max_steps=3), "anchor")
    assert f.name == Standard().name(f) == "anchored-3N-mean"
    assert Standard().name(nn.Flatten()) == "standard"


def test_a_start_at_another_sigma_is_warned_of(make_anchored):
    with pytest.warns(UserWarning, match=r"sigma = 0.25.*sigma = 0.5"):
        votes_of(SAMPLING, smoothed(make_anchored(sigma=0.25), start="anchor"), IMAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        votes_of(SAMPLING, smoothed(make_anchored(sigma=0.5), start="anchor"), IMAGE)
        votes_of(SAMPLING, smoothed(make_anchored(sigma=0.25)), IMAGE)


def test_a_start_that_is_not_there_is_refused(make_anchored, threshold_deq):
    never_computed = MDEQ(channels=(8,), head_channels=(2,), final_channels=8, image_size=8, start="mean").eval()
    for network in (make_anchored(sigma=0.0), threshold_deq(), never_computed, nn.Linear(2, 2).eval()):
        with pytest.raises(SettingError, match=r"^start = 'anchor'"):
            smoothed(network, start="anchor")
    with pytest.raises(SettingError, match=r"^start = 'warm'"):
        SolvedClassifier(threshold_deq(), start="warm")


def test_another_module_is_a_base_classifier_as_it_is():
    module = nn.Flatten()
    assert smoothed(module, solver=Picard(max_steps=3)).base is module
