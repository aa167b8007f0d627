import csv
import io

import pytest

from deqcert.errors import DataError, SettingError
from deqcert.report import Report, read_runs
from deqcert.runs import read_tsv
from deqcert.statistics import false_certificates_upper

TABLE = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.5\t1\t2.0\n10\t3\t3\t0.25\t1\t2.0\n"


@pytest.fixture
def runs(make_run, tmp_path):
    (tmp_path / "theirs.tsv").write_text(TABLE)
    ours = read_runs(make_run(), "ours", audits=["exact", "published"])
    return [*ours, *read_runs(tmp_path / "theirs.tsv", "theirs")]


def test_a_report_has_what_was_asked_for(runs):
    slugs = [section.slug for section in Report(runs, [0.0, 0.25], per_class=True, paired=True).sections]
    assert slugs == [
        "accuracy",
        "lower_bounds",
        "classes_ours_exact",
        "classes_ours_published",
        "classes_theirs",
        "compare_ours_exact_ours_published",
        "compare_ours_exact_theirs",
    ]
    assert [section.slug for section in Report(runs[:1], [0.0]).sections] == ["accuracy", "lower_bounds"]


def test_the_title_tells_when_images_differ(runs):
    shared = "sigma = 0.5, alpha = 0.001, n0 = 10, n = 100, one-sided, Standard"
    section = Report(runs, [0.0]).sections[0]
    assert section.title == f"2 to 5 images, not the same in all runs, {shared}"
    assert section.settings == (
        "ours exact: audit rule exact",
        "ours published: audit rule published",
        "theirs: a table, which does not state its settings",
    )
    assert Report(runs[:2], [0.0]).sections[0].title == f"5 images, {shared}"


def test_settings_stand_below_the_table_and_in_the_caption(runs, tmp_path):
    report = Report(runs, [0.0])
    report.write(tmp_path / "out")
    written = [(tmp_path / "out" / name).read_text() for name in ("accuracy.tex", "report.md")]
    for text in (report.text(), *written):
        assert "n = 100, one-sided" in text
        assert "ours exact: audit rule exact" in text
    assert written[0].splitlines()[1].startswith(r"% \caption{2 to 5 images, ")


def test_a_run_at_its_step_limit_is_warned_of(runs):
    report = Report([runs[0]._replace(caution="Solves took all steps."), *runs[1:]], [0.0])
    assert "\nwarning: ours exact: Solves took all steps." in report.text()


def test_images_with_other_labels_are_not_the_same_images(runs):
    other = runs[0]._replace(name="other", examples=tuple(e._replace(label=1) for e in runs[0].examples))
    with pytest.warns(UserWarning, match="image 0 has label 3 in ours exact, but 1 in other: not the same images"):
        report = Report([runs[0], other], [0.0])
    assert report.sections[0].title.startswith("5 images, not the same in all runs, sigma = 0.5, alpha = 0.001, ")
    assert "retention" not in report.figures()
    assert "retention" in Report(runs[:2], [0.0]).figures()


def test_runs_are_compared_on_their_common_images(runs):
    section = Report(runs, [0.0], paired=True).sections[-1]
    assert "over 2 images" in section.table.notes[0]


def test_every_output_marks_the_unsound_run(runs, tmp_path):
    report = Report(runs, [0.0], per_class=True, paired=True)
    written = {path.name: path for path in report.write(tmp_path / "out")}
    assert "UNSOUND" in report.text()
    for name in ("report.md", "accuracy.tex", "lower_bounds.tex", "classes_ours_published.tex"):
        assert "UNSOUND" in written[name].read_text(), name
    assert "UNSOUND" in written["compare_ours_exact_ours_published.tex"].read_text()
    assert "UNSOUND" not in written["classes_ours_exact.tex"].read_text()
    assert [row.sound for row in read_tsv(written["ours_published.tsv"])] == [False] * 5
    figures = report.figures()
    assert any("(unsound)" in text.get_text() for text in figures["tradeoff"].axes[0].texts)
    legend = figures["curves"].legends[0] if figures["curves"].legends else figures["curves"].axes[0].get_legend()
    assert any("(unsound)" in text.get_text() for text in legend.get_texts())


def test_the_numbers_for_programs_are_whole(runs, tmp_path):
    report = Report(runs, [0.0, 0.25])
    report.write(tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
    assert [row["run"] for row in rows] == ["ours exact", "ours published", "theirs"]
    assert [row["sound"] for row in rows] == ["True", "False", "True"]
    exact, _, theirs = rows
    summary = report.summaries["ours exact"]
    assert float(exact["average_certified_radius"]) == summary.average_certified_radius
    assert float(exact["certified_accuracy_at_0.25"]) == summary.certified_accuracy[1]
    assert float(exact["nfe_total"]) == summary.nfe_total
    assert (theirs["alpha"], theirs["nfe_total"], theirs["lower_bound_at_0"]) == ("", "", "")
    false = false_certificates_upper(5, 0.001, 0.001)
    assert float(exact["lower_bound_at_0"]) == max(0.0, summary.certified_accuracy[0] - false)


def test_the_page_shows_the_figures_beside_it(runs, tmp_path):
    written = Report(runs[:2], [0.0]).write(tmp_path)
    page = (tmp_path / "report.md").read_text()
    figures = ["curves", "tradeoff", "retention", "probabilities"]
    for slug in figures:
        assert f"![{slug}]({slug}.png)" in page
        assert (tmp_path / f"{slug}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{slug}.pdf").read_bytes().startswith(b"%PDF")
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir() if path.is_file()} - {
        "theirs.tsv"
    }


def test_figures_are_those_that_there_are_numbers_for(runs):
    assert list(Report(runs[2:], [0.0]).figures()) == ["curves"]
    assert list(Report(runs, [0.0]).figures()) == ["curves", "tradeoff", "probabilities"]
    assert len(Report(runs, [0.0]).figures()["probabilities"].axes[0].get_lines()) == 2  # one run and p = 1/2


def test_a_report_needs_runs_with_names_of_their_own(runs):
    with pytest.raises(SettingError, match=r"NAME=PATH"):
        Report([runs[0], runs[0]], [0.0])
    with pytest.raises(SettingError, match=r"run = 'ours_exact'"):
        Report([runs[0], runs[1]._replace(name="ours_exact")], [0.0])
    with pytest.raises(DataError, match="no run"):
        Report([], [0.0])
