from __future__ import annotations

import math

import pytest
import torch
from sampling_runs import SMALL, noisy, recorded_votes, smoothed, votes_of
from torch import nn

from deqcert.smoothing import SmoothedClassifier, Standard
from deqcert.smoothing.engine import classes_of, count_classes
from deqcert.solvers import Picard

IMAGE = torch.full((1, 4, 4), 0.5)


class NanAbove(nn.Module):
    """Class 0, but not finite where the first pixel exceeds 1/2."""

    def __init__(self, value):
        super().__init__()
        self.value = value
        self.eval()

    def forward(self, x):
        logits = torch.tensor([1.0, 0.0]).repeat(len(x), 1)
        return torch.where(x[:, 0, 0, :1] > 0.5, self.value, logits)


def test_rows_that_are_not_finite_have_no_class():
    inf = math.inf
    logits = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [0.0, inf], [0.0, -inf], [3.0, 2.0]])
    assert classes_of(logits).tolist() == [1, -1, -1, -1, 0]
    assert count_classes(classes_of(logits), 3) == (1, 1, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_predictions_that_are_not_finite_vote_for_nobody(value):
    sampling, g = Standard(n0=100, n=400, batch_size=64), smoothed(NanAbove(value))
    votes = votes_of(sampling, g, IMAGE)
    finite = int((noisy(sampling, g, IMAGE)[:, 0, 0, 0] <= 0.5).sum())
    assert 100 < finite < 300
    assert votes.estimation == (finite, 0)
    assert sum(votes.selection) < 100


def test_a_classifier_without_a_cell_costs_one_evaluation_a_sample():
    votes = votes_of(Standard(**SMALL), smoothed(NanAbove(0.0)), IMAGE)
    assert (votes.audited, votes.nfe_fast, votes.nfe_audit) == (None, 60, 0)
    assert math.isnan(votes.residual)


def test_the_cost_of_a_deq_is_counted(threshold_deq):
    classifier = threshold_deq()
    votes = recorded_votes(Standard(**SMALL), smoothed(classifier, solver=Picard(max_steps=7)), IMAGE)
    assert votes.nfe_fast == sum(classifier.rows) == 60 * 7
    assert (votes.audited, votes.nfe_audit) == (None, 0)


def test_residual_is_the_mean_over_the_estimation_samples(threshold_deq):
    # From a cold start ‖F(z) − z‖ / ‖F(z)‖ is 1 at the first step and rate^k / (1 + rate + … + rate^k) after k more.
    votes = votes_of(Standard(**SMALL), smoothed(threshold_deq(), solver=Picard(max_steps=2)), IMAGE)
    assert votes.residual == pytest.approx(0.5 / 1.5, rel=1e-5)


def test_classes_beyond_16_bits_keep_their_votes():
    class Far(nn.Module):
        """Class 5 where the mean pixel exceeds 1/2, else class 65541, which is 5 in 16 bits."""

        def forward(self, x):
            above = x.flatten(1).mean(dim=1) > 0.5
            return nn.functional.one_hot(torch.where(above, 5, 65_541), 65_546).float()

    sampling, g = Standard(n0=10, n=90, batch_size=16), SmoothedClassifier(Far().eval(), 0.5)
    votes = votes_of(sampling, g, IMAGE)
    above = int((noisy(sampling, g, IMAGE).flatten(1).mean(dim=1) > 0.5).sum())
    assert 20 < above < 70
    assert (votes.estimation[5], votes.estimation[65_541], sum(votes.estimation)) == (above, 90 - above, 90)
