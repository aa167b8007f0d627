from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from deqcert.errors import SettingError
from deqcert.statistics import predict


@given(st.lists(st.integers(0, 60), min_size=2, max_size=5), st.floats(1e-6, 0.5))
def test_predict_is_the_binomial_test_of_the_top_two(counts, alpha):
    top, second = sorted(counts, reverse=True)[:2]
    decided = top > 0 and binomtest(top, top + second, 0.5).pvalue <= alpha
    assert predict(counts, alpha) == (counts.index(top) if decided else -1)


def test_predict_at_the_edge_of_alpha():
    p_value = 2 * 0.5**10
    assert predict([0, 10, 0], p_value * 1.0001) == 1
    assert predict([0, 10, 0], p_value * 0.9999) == -1


@pytest.mark.parametrize("counts", [[0, 0, 0], [50, 50], [0]])
def test_predict_abstains_without_evidence(counts):
    assert predict(counts, 0.3) == -1


def test_predict_knows_a_single_class():
    assert predict([20], 0.001) == 0


def test_predict_names_the_wrong_class_with_probability_at_most_alpha():
    n, alpha = 60, 0.05
    wrong = [k for k in range(n + 1) if predict([k, n - k], alpha) == 0]
    assert wrong
    assert binom.pmf(wrong, n, 0.5).sum() <= alpha


@pytest.mark.parametrize("counts", [[], [[1, 2]], [1.0, 2.0], [-1, 3], 5])
def test_predict_refuses_what_are_no_counts(counts):
    with pytest.raises(SettingError, match="counts = "):
        predict(np.array(counts, dtype=np.int64) if counts == [] else counts, 0.01)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_predict_refuses_a_bad_alpha(alpha):
    with pytest.raises(SettingError, match="alpha = "):
        predict([3, 4], alpha)
