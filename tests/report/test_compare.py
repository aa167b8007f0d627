import numpy as np
import pytest
from scipy.stats import binom

from deqcert.errors import DataError
from deqcert.report import compare, comparison_table


def run(make_certificate, radii, **settings):
    return [make_certificate(index, radius, **settings) for index, radius in enumerate(radii)]


def test_images_are_counted_by_who_certifies_them(make_certificate):
    first = [*run(make_certificate, [0.5, 0.5, 0.1, 0.1]), make_certificate(4, 0.9, label=0)]
    second = [*run(make_certificate, [0.5, 0.1, 0.5, 0.1]), make_certificate(4, 0.9, label=0)]
    (counts,) = compare(first, second, [0.3]).counts
    assert counts == (0.3, 1, 1, 1, 2, 1.0)


def test_the_p_value_is_the_exact_sign_test(make_certificate):
    first, second = run(make_certificate, [0.5] * 9 + [0.1]), run(make_certificate, [0.1] * 9 + [0.5])
    (counts,) = compare(first, second, [0.3]).counts
    assert counts.p_value == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    assert compare(first, first, [0.3]).counts[0].p_value == 1.0


def test_the_difference_of_acr_counts_wrong_classes_as_zero(make_certificate):
    first, second = run(make_certificate, [0.5, 0.5]), run(make_certificate, [0.7, 0.9], prediction=2)
    assert compare(first, second, [0.0]).acr_difference == pytest.approx(-0.5)


def test_equal_differences_have_an_interval_of_no_width(make_certificate):
    first, second = run(make_certificate, [0.5, 0.25, 1.0]), run(make_certificate, [0.75, 0.5, 1.25])
    assert compare(first, second, [0.0]).interval == (0.25, 0.25)
    assert compare(first[:1], second[:1], [0.0]).interval == (0.25, 0.25)


def test_the_interval_covers_the_true_difference_as_often_as_it_says(make_certificate):
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        radii = generator.uniform(0, 1, 40)
        first = run(make_certificate, radii)
        second = run(make_certificate, radii + generator.uniform(0.0, 0.4, 40))
        low, high = compare(first, second, [0.0]).interval
        covered += low <= 0.2 <= high
    assert 87 <= covered < 100  # 95 expected; fewer by chance: 0.1 %, all: 0.6 %


def test_the_same_runs_have_the_same_interval(make_certificate):
    first, second = run(make_certificate, [0.5, 0.2, 0.3]), run(make_certificate, [0.1, 0.4, 0.35])
    assert compare(first, second, [0.0]) == compare(first, second, [0.0])


def test_other_images_or_labels_are_refused(make_certificate):
    first = run(make_certificate, [0.5, 0.5])
    for second in (first[:1], first[::-1], [first[0], make_certificate(1, 0.5, label=2)]):
        with pytest.raises(DataError, match="not of the same images"):
            compare(first, second, [0.0])
    with pytest.raises(DataError, match="no image"):
        compare([], [], [0.0])


def test_the_table_says_what_was_compared_and_marks_the_unsound(make_certificate):
    first, second = run(make_certificate, [0.5, 0.1]), run(make_certificate, [0.1, 0.2])
    comparison = compare(first, second, [0.0, 0.4])
    table = comparison_table(comparison, "A", "B", sound=True)
    assert table.headings == ("both", "only A", "only B", "neither", "p (sign test)")
    assert [(row.name, *row.cells) for row in table.rows] == [
        ("0", "2", "0", "0", "0", "1"),
        ("0.4", "0", "1", "0", "1", "1"),
    ]
    assert table.notes[0].startswith("ACR of B minus ACR of A: -0.1500, 95 % bootstrap interval over 2 images [")
    assert len(table.notes) == 1
    unsound = comparison_table(comparison, "A", "B", sound=False)
    assert "UNSOUND" in unsound.notes[1]
    assert not any(row.sound for row in unsound.rows)
