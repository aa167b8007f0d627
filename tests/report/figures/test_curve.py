import subprocess
import sys

import numpy as np
import pytest

from deqcert.errors import DataError, SettingError
from deqcert.report import plot_curves, save_figure
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
    assert standard.get_color() != published.get_color()
    assert standard.get_ydata()[0] == 1.0
    assert published.get_ydata()[-1] == 0.0


def test_twenty_one_sound_runs_look_different_and_none_is_dashed(make_certificate):
    lines = plot_curves({str(i): [make_certificate()] for i in range(21)}).axes[0].get_lines()
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == 21
    assert "--" not in {style for _, style in looks}


def test_a_run_that_certifies_nothing_is_drawn(make_certificate):
    figure = plot_curves({"none": [make_certificate(0, 0.0, prediction=-1)]})
    assert figure.axes[0].get_xlim() == (0.0, 1.0)


@pytest.mark.parametrize("bad", [{}, {"empty": []}])
def test_nothing_to_draw_is_refused(bad):
    with pytest.raises(DataError):
        plot_curves(bad)


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
