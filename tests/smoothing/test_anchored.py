import warnings

import pytest
import torch
from torch import Tensor, nn

from deqcert.errors import SettingError
from deqcert.models import MDEQ, AnchoredClassifier
from deqcert.seeding import Purpose
from deqcert.smoothing import Anchored, Standard
from deqcert.smoothing.noise import noisy_batches
from deqcert.solvers import Anderson, Picard
from deqcert.statistics import CertificationRule, TargetRadius

IMAGE = torch.full((1, 4, 4), 0.5)


@pytest.fixture
def make_anchored(threshold_deq):
    """z* = u / (1 - rate); the anchor is ``factor`` times the fixed point."""

    class AnchoredDEQ(threshold_deq):
        def __init__(self, factor=0.0, kind="mean", sigma=0.5, **settings):
            super().__init__(**settings)
            self.factor, self.kind, self.sigma = factor, kind, sigma

        def anchor(self, injection: Tensor) -> Tensor:
            return self.factor * injection / (1 - self.rate)

        @property
        def start_kind(self):
            return self.kind

        @property
        def start_sigma(self):
            return self.sigma

    return AnchoredDEQ


def anchored(**settings):
    return Anchored(**{"sigma": 0.5, "n0": 20, "n": 200, "batch_size": 64, "start": "mean"} | settings)


def test_votes_are_those_of_k_steps_from_the_anchor(make_anchored):
    classifier = make_anchored(factor=0.9, threshold=1.0)
    votes = anchored(solver=Picard(max_steps=2)).vote(classifier, IMAGE, 3, 0)
    copies = torch.cat(list(noisy_batches(IMAGE, 3, Purpose.ESTIMATION, sigma=0.5, count=200, batch_size=64, seed=0)))
    u = copies.flatten(1).mean(dim=1)
    z = 2 * u * (1 - 0.1 * 0.25)  # the error of the start is halved twice
    assert votes.estimation == (int((z > 1.0).sum()), int((z <= 1.0).sum()))
    assert 0 < votes.estimation[0] < 200


def test_votes_need_no_audit_and_cost_k_evaluations(make_anchored):
    votes = anchored(solver=Anderson(max_steps=3)).vote(make_anchored(), IMAGE, 0, 0)
    assert votes.audited is None
    assert votes.nfe_fast == 3 * 220
    assert votes.nfe_audit == 0


def test_from_zero_it_is_standard_smoothing_of_few_steps(threshold_deq):
    settings = {"sigma": 0.5, "n0": 20, "n": 200, "batch_size": 64, "solver": Anderson(max_steps=2)}
    ours, standard = (
        kind(**settings).vote(threshold_deq(), IMAGE, 0, 0)._replace(seconds=0.0) for kind in (Anchored, Standard)
    )
    assert ours == standard


def test_votes_do_not_depend_on_batches_or_neighbours(make_anchored):
    classifier = make_anchored(factor=0.7)
    strategy = anchored(solver=Picard(max_steps=1))
    alone = [strategy.vote(classifier, image, index, 0) for index, image in enumerate((IMAGE, IMAGE + 0.1))]
    engine = strategy.engine(classifier, IMAGE)
    together = strategy.vote_group(engine, torch.stack([IMAGE, IMAGE + 0.1]), [0, 1], [0, 0])
    for one, other in zip(alone, together, strict=True):
        assert one.estimation == other.estimation
        assert one.selection == other.selection


def test_sampling_may_stop_once_the_question_is_settled(make_anchored):
    classifier = make_anchored(factor=0.9, threshold=0.0)  # every copy has class 0
    fixed, stopped = (
        anchored(n=2000, stopping=stopping).vote(classifier, IMAGE, 0, 0) for stopping in (None, TargetRadius(0.5))
    )
    assert (fixed.n, fixed.anytime) == (2000, False)
    assert (stopped.n, stopped.anytime) == (64, True)
    assert CertificationRule().certify(stopped).radius > 0.25


def test_the_identity_names_steps_and_start():
    identity = anchored(solver=Anderson(max_steps=5)).identity
    assert identity["class"] == "Anchored"
    assert identity["solver"]["max_steps"] == 5
    assert identity["start"] == "mean"
    assert anchored(solver=Anderson(max_steps=5)).label == "anchored-5A-mean"


def test_what_is_certified_can_be_deployed(make_anchored):
    classifier, strategy = make_anchored(factor=0.9), anchored(solver=Picard(max_steps=2))
    x = torch.rand(5, 1, 4, 4)
    labels = strategy.base_labels(strategy.engine(classifier, IMAGE), x).labels
    assert torch.equal(labels, AnchoredClassifier(classifier, strategy.base_solver)(x).argmax(dim=1))


def test_a_start_at_another_sigma_is_warned_of(make_anchored):
    with pytest.warns(UserWarning, match=r"computed at sigma = 0.25, but is certified at sigma = 0.5"):
        anchored().vote(make_anchored(sigma=0.25), IMAGE, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        anchored().vote(make_anchored(sigma=0.5), IMAGE, 0, 0)


def test_a_start_that_is_not_there_is_refused(make_anchored, threshold_deq):
    with pytest.raises(
        SettingError, match=r"smoothing\.start = 'mean': is missing from the checkpoint; deqcert anchor"
    ):
        anchored().vote(make_anchored(sigma=0.0), IMAGE, 0, 0)
    with pytest.raises(SettingError, match=r"smoothing\.start = 'mean': must be zero, as the network has"):
        anchored().vote(threshold_deq(), IMAGE, 0, 0)
    with pytest.raises(SettingError, match=r"smoothing\.start = 'learned': must be mean"):
        anchored(start="learned").vote(make_anchored(), IMAGE, 0, 0)
    with pytest.raises(SettingError, match="certify a Linear by Standard"):
        anchored().vote(nn.Linear(2, 2).eval(), IMAGE, 0, 0)


def test_settings_out_of_range_are_refused_by_name():
    with pytest.raises(SettingError, match=r"^start = 'warm'"):
        anchored(start="warm")
    with pytest.raises(SettingError, match="max_steps"):
        anchored(solver=Anderson(max_steps=0))


def test_a_start_that_was_never_computed_is_refused_for_a_real_network():
    network = MDEQ(channels=(8,), head_channels=(2,), final_channels=8, image_size=8, start="mean").eval()
    with pytest.raises(SettingError, match="is missing from the checkpoint"):
        anchored().vote(network, torch.rand(3, 8, 8), 0, 0)
