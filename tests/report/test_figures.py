import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from summaries import summary_of

from deqcert.errors import DataError, SettingError
from deqcert.report import plot_curves, plot_probabilities, plot_retention, plot_tradeoff, read_runs, save_figure
from deqcert.report.figures import probability_of_label
from deqcert.report.style import COLORS, look
from deqcert.runs import TsvRow


@pytest.fixture
def runs(make_certificate):
    return {
        "standard": [make_certificate(i, 0.25 * i) for i in range(5)],
        "published": [make_certificate(i, 0.5 * i, sound=i > 0) for i in range(5)],
    }


def test_the_curve_counts_all_images(make_certificate):
    examples = [
        make_certificate(0, 1.0),
        make_certificate(1, 0.5),
        make_certificate(2, 2.0, label=0),
        make_certificate(3, 0.0, prediction=-1),
    ]
    (line,) = plot_curves({"run": examples}).axes[0].get_lines()
    np.testing.assert_array_equal(np.interp([0.0, 0.4, 0.75, 1.02], *line.get_data()), [0.5, 0.5, 0.25, 0.0])


def test_the_curve_of_a_table():
    (line,) = plot_curves({"table": [TsvRow(0, 3, 3, 0.5, True, 1.0)]}).axes[0].get_lines()
    np.testing.assert_array_equal(np.interp([0.4, 0.51], *line.get_data()), [1, 0])


def test_the_figure_shows_each_run_and_marks_the_unsound(runs):
    axes = plot_curves(runs).axes[0]
    assert axes.get_xlabel() == "radius r (ℓ2)"
    assert axes.get_ylabel() == "certified accuracy"
    standard, published = axes.get_lines()
    assert standard.get_label() == "standard, ACR 0.500"
    assert published.get_label() == "published (unsound), ACR 1.000"
    assert standard.get_linestyle() == "-"
    assert published.get_linestyle() == "--"
    assert (standard.get_fillstyle(), published.get_fillstyle()) == ("full", "none")
    assert standard.get_color() != published.get_color()
    assert standard.get_ydata()[0] == 1.0
    assert published.get_ydata()[-1] == 0.0


@pytest.mark.parametrize("sound", [True, False])
def test_seventy_runs_look_different_and_ten_without_color(sound):
    looks = [look(position, sound) for position in range(70)]
    assert len({(each["color"], str(each["linestyle"]), each["marker"]) for each in looks}) == 70
    assert len({each["marker"] for each in looks[:10]}) == 10
    dashes = {str(each["linestyle"]) for each in looks}
    assert len(dashes) == 5
    assert dashes.isdisjoint(str(look(position, not sound)["linestyle"]) for position in range(70))


def test_neighbors_differ_in_lightness():
    gray = [sum(part * int(color[i : i + 2], 16) for part, i in ((0.3, 1), (0.59, 3), (0.11, 5))) for color in COLORS]
    assert all(abs(one - other) > 10 for one, other in pairwise(gray))


def test_markers_of_curves_are_at_different_places(make_certificate):
    lines = plot_curves({str(i): [make_certificate()] for i in range(5)}).axes[0].get_lines()
    assert len({line.get_markevery() for line in lines}) == 5


def test_a_run_that_certifies_nothing_is_drawn(make_certificate):
    figure = plot_curves({"none": [make_certificate(0, 0.0, prediction=-1)]})
    assert figure.axes[0].get_xlim() == (0.0, 1.0)


def test_a_run_without_images_is_refused():
    with pytest.raises(DataError, match="no image"):
        plot_curves({"empty": []})


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml")])
def test_the_suffix_chooses_the_form(tmp_path, runs, name, magic):
    save_figure(plot_curves(runs), tmp_path / "new" / name)
    assert (tmp_path / "new" / name).read_bytes().startswith(magic)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


@pytest.mark.parametrize("name", ["figure", "figure.doc"])
def test_another_suffix_is_refused(tmp_path, runs, name):
    with pytest.raises(SettingError, match=r"must end in one of .*png"):
        save_figure(plot_curves(runs), tmp_path / name)


def test_pyplot_is_not_touched():
    code = (
        "import sys; from deqcert.report import *; from deqcert.runs import TsvRow; "
        "plot_curves({'run': [TsvRow(0, 3, 3, 0.5, True, 1.0)]}); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


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
    reference = run._replace(examples=tuple(e for e in run.examples if e.index in radii))
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


def test_retention_needs_the_same_images(run):
    with pytest.raises(DataError, match="not of the same images"):
        plot_retention(run, [run._replace(examples=run.examples[:1])])


def test_the_tradeoff_has_a_point_for_each_run_that_tells_its_cost():
    runs = {"a": summary_of(), "b": summary_of(costs=False), "c": summary_of(acr=0.9, sound=False)}
    axes = plot_tradeoff(runs).axes[0]
    *lines, _ = axes.get_lines()
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines] == [(15.46, 0.538), (15.46, 0.9)]
    assert [line.get_fillstyle() for line in lines] == ["full", "none"]
    assert [text.get_text() for text in axes.texts] == ["a", "c (unsound)"]
    assert axes.get_ylim()[1] > 0.9


def test_the_frontier_is_of_the_best_sound_runs():
    points = [("dear", 10.0, 0.5), ("cheap", 3.0, 0.4), ("worse", 5.0, 0.3), ("void", 2.0, 0.9)]
    runs = {name: summary_of(acr=acr, sound=name != "void")._replace(nfe_total=cost) for name, cost, acr in points}
    frontier = plot_tradeoff(runs).axes[0].get_lines()[-1]
    assert list(zip(*frontier.get_data(), strict=True))[:2] == [(3.0, 0.4), (10.0, 0.5)]
    assert frontier.get_ydata()[-1] == 0.5


@pytest.mark.parametrize("costs", [(3.0, 3.4, 4.1), (9.0, 16.0, 12.0), (1.0, 8.0, 30.0)])
def test_the_tradeoff_has_readable_ticks_and_names_apart(costs):
    runs = {f"run {i} of them": summary_of(acr=0.4 + 0.01 * i)._replace(nfe_total=cost) for i, cost in enumerate(costs)}
    figure = plot_tradeoff(runs)
    figure.canvas.draw()
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    ticks = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
    assert len(ticks) >= 3
    assert all(float(tick.get_text()) == pytest.approx(tick.get_position()[0]) for tick in ticks)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert all(one.count_overlaps([other]) == 0 for i, one in enumerate(boxes) for other in boxes[:i])


def test_the_probabilities_fall_from_one_to_the_most_certain_image(run):
    figure = plot_probabilities({"run": run.votes})
    line = figure.axes[0].get_lines()[0]
    at = dict(zip(line.get_xdata().round(3), line.get_ydata(), strict=True))
    assert (at[0.5], at[0.9], at[0.96]) == (1.0, 0.6, 0.2)
    assert labels(figure) == ["run"]


def test_a_long_legend_stands_above_the_axes(run):
    few = plot_probabilities({str(i): run.votes for i in range(3)})
    many = plot_probabilities({str(i): run.votes for i in range(8)})
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
    for figure in (
        plot_probabilities(dict.fromkeys(names, run.votes)),
        plot_curves(dict.fromkeys(names, run.examples)),
    ):
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


def test_the_probability_is_that_of_the_true_class(make_votes):
    assert probability_of_label(make_votes(audited=None, mismatches=0)) == 0.95
    assert probability_of_label(make_votes(label=1, audited=None, mismatches=0)) == 0.03


def test_srs_predictions_count_as_far_as_the_audit_confirmed_them(make_votes):
    assert probability_of_label(make_votes(audited=20, mismatches=5)) == pytest.approx(0.95 * 0.75)
    assert probability_of_label(make_votes(label=1, audited=20, mismatches=5)) == 0.03
    assert probability_of_label(make_votes(audited=0, mismatches=0)) == 0.95
