import math

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from deqcert.errors import DataError, SettingError
from deqcert.metrics import functional as F

IMAGES = st.lists(st.tuples(st.floats(0, 4), st.booleans()), min_size=1, max_size=30)
RADII = st.lists(st.floats(0, 4), min_size=1, max_size=6)


@given(IMAGES)
def test_average_certified_radius_counts_wrong_images_as_zero(images):
    radius, correct = map(np.array, zip(*images, strict=True))
    acr = F.average_certified_radius(radius, correct)
    assert acr == pytest.approx(radius[correct].sum() / len(radius))


@given(IMAGES, RADII)
def test_certified_accuracy_matches_counting(images, radii):
    radius, correct = map(np.array, zip(*images, strict=True))
    counted = [sum(c and r >= threshold for r, c in images) / len(images) for threshold in radii]
    accuracy = F.certified_accuracy(radius, correct, radii)
    assert accuracy.tolist() == pytest.approx(counted)


@given(IMAGES, RADII)
def test_certified_accuracy_falls_with_the_radius_from_the_clean_accuracy(images, radii):
    radius, correct = map(np.array, zip(*images, strict=True))
    accuracy = F.certified_accuracy(radius, correct, [0.0, *sorted(radii)])
    assert accuracy[0] == pytest.approx(correct.mean())
    assert (np.diff(accuracy) <= 0).all()


def test_area_under_certified_accuracy_is_the_average_certified_radius():
    generator = np.random.default_rng(0)
    radius, correct = generator.random(200), generator.random(200) < 0.6
    grid = np.linspace(0, 1, 20_001)
    area = scipy.integrate.trapezoid(F.certified_accuracy(radius, correct, grid), grid)
    assert area == pytest.approx(F.average_certified_radius(radius, correct), abs=1e-4)


def test_a_radius_counts_at_exactly_itself():
    accuracy = F.certified_accuracy([0.25], [True], [0.25, math.nextafter(0.25, 1)])
    assert accuracy.tolist() == [1.0, 0.0]


@given(st.lists(st.integers(-1, 3), min_size=1))
def test_abstention_rate(prediction):
    assert F.abstention_rate(prediction) == prediction.count(-1) / len(prediction)


@pytest.mark.parametrize("radius", [[math.nan, 0.0], [-0.1, 0.0], [math.inf, 0.0], [0.0], [[0.0, 0.0]]])
def test_bad_radius_is_refused(radius):
    correct = [True, False]
    with pytest.raises(DataError):
        F.average_certified_radius(radius, correct)
    with pytest.raises(DataError):
        F.certified_accuracy(radius, correct, [0.0])


@pytest.mark.parametrize("radii", [[], [-0.25], [0.0, math.nan], [math.inf]])
def test_bad_radii_are_refused(radii):
    with pytest.raises(SettingError, match=r"^radii = "):
        F.certified_accuracy([0.5], [True], radii)
