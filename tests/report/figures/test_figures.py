import math

import numpy as np
import pytest
from summaries import summary_of

from deqcert.errors import DataError
from deqcert.report import (
    ResidualCurves,
    plot_curves,
    plot_probabilities,
    plot_residuals,
    plot_retention,
    plot_tradeoff,
    read_residuals,
    read_runs,
)
from deqcert.report.figures.plots import probability_of_label
from deqcert.report.figures.style import COLOURS


@pytest.fixture
def run(make_run):
    return read_runs(make_run(), "run")[0]


def labels(figure):
    legend = figure.legends[0] if figure.legends else figure.axes[0].get_legend()
    return [text.get_text() for text in legend.get_texts()]


def test_retention_pairs_the_radii_of_each_image(run, make_certificate):
    other = run._replace(name="half", examples=tuple(e._replace(radius=e.radius / 2) for e in run.examples))
    figure = plot_retention(run, [other])
    _, points = figure.axes[0].get_lines()
    radii = [e.radius for e in run.examples if e.radius > 0]
    np.testing.assert_allclose(points.get_xdata(), radii)
    np.testing.assert_allclose(points.get_ydata(), np.array(radii) / 2)
    assert labels(figure) == ["half: 50 % kept"]


def test_what_is_kept_is_a_share_of_the_sum_of_radii(run):
    radii = {0: 1.0, 10: 0.01}
    reference = run.restricted(radii)
    examples = tuple(e._replace(radius=radii[e.index]) for e in reference.examples)
    other = tuple(e._replace(radius=0.5) for e in reference.examples)
    figure = plot_retention(reference._replace(examples=examples), [reference._replace(name="o", examples=other)])
    assert labels(figure) == ["o: 99 % kept"]


def test_retention_counts_another_class_as_nothing_and_marks_the_unsound(run):
    examples = tuple(e._replace(prediction=2 if e.radius else -1, sound=False) for e in run.examples)
    figure = plot_retention(run, [run._replace(name="other", examples=examples)])
    points = figure.axes[0].get_lines()[1]
    assert set(points.get_ydata()) == {0.0}
    assert points.get_fillstyle() == "none"
    assert labels(figure) == ["other (unsound): 0 % kept"]


def test_retention_needs_two_runs_on_the_same_images(run):
    with pytest.raises(DataError, match="second run"):
        plot_retention(run, [])
    with pytest.raises(DataError, match="not of the same images"):
        plot_retention(run, [run.restricted([0])])


def test_the_tradeoff_has_a_point_for_each_run_that_tells_its_cost():
    runs = {"a": summary_of(), "b": summary_of(costs=False), "c": summary_of(acr=0.9, sound=False)}
    figure = plot_tradeoff(runs)
    lines = figure.axes[0].get_lines()
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines] == [(15.46, 0.538), (15.46, 0.9)]
    assert [line.get_fillstyle() for line in lines] == ["full", "none"]
    assert labels(figure) == ["a", "c (unsound)"]
    assert figure.axes[0].get_ylim()[1] > 0.9
    with pytest.raises(DataError, match="no run tells"):
        plot_tradeoff({"b": summary_of(costs=False)})


def test_the_probabilities_fall_from_one_to_the_most_certain_image(run):
    figure = plot_probabilities([run, run._replace(name="table", votes=None)])
    line = figure.axes[0].get_lines()[0]
    at = dict(zip(line.get_xdata().round(3), line.get_ydata(), strict=True))
    assert (at[0.5], at[0.9], at[0.96]) == (1.0, 0.6, 0.2)
    assert labels(figure) == ["run"]
    with pytest.raises(DataError, match="no run has votes"):
        plot_probabilities([run._replace(votes=None)])


def test_a_long_legend_stands_above_the_axes(run):
    few = plot_probabilities([run._replace(name=str(i)) for i in range(3)])
    many = plot_probabilities([run._replace(name=str(i)) for i in range(8)])
    assert not few.legends
    assert many.axes[0].get_legend() is None
    assert labels(many) == [str(i) for i in range(8)]
    assert many.get_size_inches()[1] > few.get_size_inches()[1]


NAMES = [
    [f"consistency-{weight} at the noise level of the published runs" for weight in (0.25, 0.5, 1, 2, 4)],
    [f"run {letter}, twenty-eight of them" for letter in "ABCDE"],
    ["three words of " + "x" * 120, "a", "b"],
    ["standard smoothing with a cold start of thirty Anderson steps per noisy sample"],
]


@pytest.mark.parametrize("names", NAMES)
def test_nothing_of_a_legend_is_cut_off(run, names):
    runs = [run._replace(name=name) for name in names]
    for figure in (plot_probabilities(runs), plot_curves({each.name: each.examples for each in runs})):
        figure.canvas.draw()
        legend = figure.legends[0] if figure.legends else figure.axes[0].get_legend()
        extent, whole = legend.get_window_extent(), figure.bbox
        assert whole.x0 <= extent.x0 < extent.x1 <= whole.x1
        assert whole.y0 <= extent.y0 < extent.y1 <= whole.y1
        plot = figure.axes[0].get_window_extent()
        assert plot.width > 0.7 * whole.width
        assert plot.height > 200  # of 2.55 inches in 300 dots each
        for name, label in zip(names, labels(figure), strict=True):
            assert label.replace("\n", "").replace(" ", "").startswith(name.replace(" ", ""))


def test_retention_needs_the_same_labels(run):
    other = run._replace(examples=tuple(e._replace(label=e.label + 1) for e in run.examples))
    with pytest.raises(DataError, match="not of the same images with the same labels"):
        plot_retention(run, [other])


def test_residuals_leave_a_gap_where_they_diverged():
    figure = plot_residuals({"": ResidualCurves([0.1, math.inf], [0.01, 0.001])})
    cold, warm = figure.axes[0].get_lines()
    assert cold.get_ydata()[0] == 0.1
    assert math.isnan(cold.get_ydata()[1])
    assert list(warm.get_xdata()) == [1, 2]
    assert (cold.get_color(), warm.get_color()) == COLOURS[:2]
    assert labels(figure) == ["cold start", "warm start"]
    assert figure.axes[0].get_yscale() == "log"


def test_residuals_of_several_models_have_a_colour_each():
    curves = ResidualCurves([0.1], [0.01])
    figure = plot_residuals({"a": curves, "b": curves})
    colours = [line.get_color() for line in figure.axes[0].get_lines()]
    assert colours == [COLOURS[0], COLOURS[0], COLOURS[1], COLOURS[1]]
    assert labels(figure) == ["a, cold start", "a, warm start", "b, cold start", "b, warm start"]
    with pytest.raises(DataError, match="no residuals"):
        plot_residuals({})


HEADER = "step\tcold\twarm\tmismatches\taudited\n"


def test_residuals_are_read_as_validate_writes_them(tmp_path):
    (tmp_path / "c.tsv").write_text(HEADER + "1\t0.5\t0.25\t3\t64\n2\tinf\t0.1\t\t\n")
    assert read_residuals(tmp_path / "c.tsv") == ResidualCurves([0.5, math.inf], [0.25, 0.1])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1: expected the columns step cold warm"),
        ("step\tcold\n", "line 1: expected"),
        (HEADER, "line 2: expected a step, found none"),
        (HEADER + "2\t0.5\t0.25\t\t\n", "line 2: expected step 1"),
        (HEADER + "1\t0.5\t0.25\t\t\n2\tx\t0.1\t\t\n", "line 3: expected step 2"),
        (HEADER + "1\t0.5\n", "line 2: expected step 1"),
        (HEADER + "1\t-0.5\t0.25\t\t\n", "line 2: a residual is negative"),
        (HEADER + "1\tnan\t0.25\t\t\n", "line 2: a residual is negative or nan"),
    ],
)
def test_a_bad_file_of_residuals_is_named(tmp_path, text, complaint):
    (tmp_path / "c.tsv").write_text(text)
    with pytest.raises(DataError, match=f"c.tsv, {complaint}"):
        read_residuals(tmp_path / "c.tsv")


def test_the_probability_is_that_of_the_true_class(make_votes):
    assert probability_of_label(make_votes(audited=None, mismatches=0)) == 0.95
    assert probability_of_label(make_votes(label=1, audited=None, mismatches=0)) == 0.03


def test_cheap_predictions_count_as_far_as_the_audit_confirmed_them(make_votes):
    assert probability_of_label(make_votes(audited=20, mismatches=5)) == pytest.approx(0.95 * 0.75)
    assert probability_of_label(make_votes(label=1, audited=20, mismatches=5)) == 0.03
    assert probability_of_label(make_votes(audited=0, mismatches=0)) == 0.95
