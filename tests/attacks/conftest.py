"""A smoothed classifier of which everything is known.

ThresholdDEQ puts images of mean pixel u into class 0 if u > t = threshold · (1 − rate) = 1/2, so under noise of
standard deviation σ an image of d pixels has p_A = Φ((u − t) √d / σ), and its class changes at distance (u − t) √d
exactly, along the direction in which all pixels fall alike.
"""

from __future__ import annotations

import pytest
import torch
from sampling_runs import smoothed

from deqcert.attacks import SmoothedTarget
from deqcert.solvers import Picard
from deqcert.statistics import Certificate, certified_radius

IMAGE = torch.full((1, 4, 4), 0.6)
TRUE_RADIUS = 0.4
SIGMA = 0.5


@pytest.fixture
def make_target():
    """The target of an attack on a base classifier."""

    def make(base, image=IMAGE, seed=0, **settings):
        return SmoothedTarget(smoothed(base, SIGMA, **{"solver": Picard(max_steps=40), **settings}), image, seed)

    return make


@pytest.fixture
def target(threshold_deq, make_target):
    return make_target(threshold_deq())


@pytest.fixture
def certificate():
    """A certificate of class 0 with a given radius."""

    def certificate(radius, *, index=3, label=0, prediction=0, sound=True):
        return Certificate(prediction, radius, p_a_lower=0.9, sound=sound, index=index, label=label)

    return certificate


@pytest.fixture
def two_sided():
    """A certificate of class 0 with given bounds."""

    def certificate(p_a_lower, p_b_upper, *, index=3):
        radius = float(certified_radius(p_a_lower, SIGMA, p_b_upper))
        return Certificate(0, radius, p_a_lower, sound=True, index=index, label=0, p_b_upper=p_b_upper)

    return certificate


@pytest.fixture
def image():
    return IMAGE


@pytest.fixture
def true_radius():
    return TRUE_RADIUS
