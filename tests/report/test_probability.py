import numpy as np
import pytest

from deqcert.errors import SettingError
from deqcert.report import probability_of_label, projected_certificates
from deqcert.report.probability import survival
from deqcert.statistics import CertificationRule


def test_the_probability_is_that_of_the_true_class(make_votes):
    assert probability_of_label(make_votes(audited=None, mismatches=0)) == 0.95
    assert probability_of_label(make_votes(label=1, audited=None, mismatches=0)) == 0.03


def test_cheap_labels_count_as_far_as_the_audit_found_them_true(make_votes):
    assert probability_of_label(make_votes(audited=20, mismatches=5)) == pytest.approx(0.95 * 0.75)
    assert probability_of_label(make_votes(label=1, audited=20, mismatches=5)) == 0.03
    assert probability_of_label(make_votes(audited=0, mismatches=0)) == 0.95


def test_the_projection_to_the_same_budget_is_what_standard_smoothing_certifies(make_votes):
    votes = [make_votes(i, audited=None, mismatches=0, estimation=(i, 0, 0, 100 - i)) for i in range(0, 60, 7)]
    projected = projected_certificates(votes, n=100, alpha=0.001)
    certified = [CertificationRule(alpha=0.001).certify(vote) for vote in votes]
    assert [each._replace(sound=False) for each in certified] == projected


def test_a_projection_is_marked_and_grows_with_the_budget(make_votes):
    votes = [make_votes(audited=None, mismatches=0)]
    small, large = (projected_certificates(votes, n, 0.001)[0] for n in (100, 100_000))
    assert not small.sound
    assert not large.sound
    assert small.radius < large.radius
    assert projected_certificates(votes, 100, 0.1)[0].radius > small.radius


def test_a_wrong_class_stays_wrong(make_votes):
    (projection,) = projected_certificates([make_votes(label=0)], 1000, 0.001)
    assert (projection.label, projection.prediction, projection.correct) == (0, 3, False)


@pytest.mark.parametrize(("n", "alpha", "field"), [(0, 0.001, "n"), (100, 0.0, "alpha")])
def test_a_bad_budget_is_refused(make_votes, n, alpha, field):
    with pytest.raises(SettingError, match=field):
        projected_certificates([make_votes()], n, alpha)


def test_survival_counts_images_at_least_as_probable():
    np.testing.assert_array_equal(survival([0.2, 0.5, 1.0], np.array([0.0, 0.5, 0.6, 1.0])), [1, 2 / 3, 1 / 3, 1 / 3])
