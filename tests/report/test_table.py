import pytest
from hypothesis import given
from hypothesis import strategies as st

from deqcert.errors import DataError
from deqcert.report import Summary, format_markdown, format_table
from deqcert.report.table import WIDTH


def make_summary(radii=(0.0, 0.25), accuracy=0.67, sound=True, costs=True):
    return Summary(
        examples=500,
        radii=tuple(radii),
        certified_accuracy=tuple(accuracy / (1 + i) for i in range(len(radii))),
        clean_accuracy=accuracy,
        average_certified_radius=0.538,
        abstention_rate=0.123,
        nfe_fast=3.05 if costs else None,
        nfe_audit=12.41 if costs else None,
        nfe_total=15.46 if costs else None,
        mismatch_rate=0.01,
        mean_residual=1e-3,
        seconds_per_image=12.894,
        sound=sound,
    )


def test_the_table_of_two_runs():
    runs = {"MDEQ-30A": make_summary(costs=False), "SRS-MDEQ-3A": make_summary(accuracy=1.0, sound=False)}
    assert format_table(runs).splitlines() == [
        "            certified accuracy in % at l2 radius",
        "run             0 0.25   ACR abstain% NFE/sample s/image",
        "----------------------------------------------------------------",
        "MDEQ-30A     67.0 33.5 0.538     12.3          -    12.9",
        "SRS-MDEQ-3A 100.0 50.0 0.538     12.3   3.0+12.4    12.9 UNSOUND",
        "UNSOUND: the radii of this run have no proof; compare them with published tables only.",
    ]


def test_sound_runs_have_no_mark():
    assert "UNSOUND" not in format_table({"run": make_summary()})
    assert "UNSOUND" not in format_markdown({"run": make_summary()})


def test_a_radius_without_a_value_is_a_dash():
    table = format_table({"a": make_summary([0.0, 0.5]), "b": make_summary([0.0, 0.25])}).splitlines()
    assert table[1].split()[1:4] == ["0", "0.25", "0.5"]
    assert table[3].split()[1:4] == ["67.0", "-", "33.5"]
    assert table[4].split()[1:4] == ["67.0", "33.5", "-"]


@pytest.mark.parametrize(
    ("seconds", "cell"),
    [(0.0123, "0.0123"), (2.0, "2.00"), (88.33, "88.3"), (99.97, "100"), (1234.5, "1234")],
)
def test_times_have_three_digits(seconds, cell):
    table = format_table({"run": make_summary()._replace(seconds_per_image=seconds)})
    assert table.splitlines()[-1].split()[-1] == cell


def test_too_many_radii_are_left_out_by_name():
    many = [0.1 * i for i in range(30)]
    table = format_table({"many": make_summary(many), "few, but with a long name": make_summary([0.0, 2.0])})
    header = table.splitlines()[1].split()
    assert header[1] == "0"
    assert "2" in header  # two runs have it
    assert "2.9" not in header
    assert table.splitlines()[-1].startswith("Left out for want of room: radius 1.")
    assert "| % at 2.9 |" in format_markdown({"many": make_summary(many)})


@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
        st.builds(
            make_summary,
            st.lists(st.floats(0, 10), min_size=1, max_size=30, unique=True),
            st.floats(0, 1),
            st.booleans(),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_line_always_fits_and_a_run_is_a_row(runs):
    lines = format_table(runs).splitlines()
    assert max(map(len, lines)) <= WIDTH
    unsound = [not summary.sound for summary in runs.values()]
    assert [line.endswith(" UNSOUND") for line in lines[3 : 3 + len(runs)]] == unsound
    assert lines[-1].startswith("UNSOUND: ") == any(unsound)


def test_the_markdown_table():
    runs = {"MDEQ|30A": make_summary(), "SRS": make_summary(sound=False)}
    assert format_markdown(runs).splitlines() == [
        "| run | % at 0 | % at 0.25 | ACR | abstain% | NFE/sample | s/image |  |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        r"| MDEQ\|30A | 67.0 | 33.5 | 0.538 | 12.3 | 3.0+12.4 | 12.9 |  |",
        "| SRS | 67.0 | 33.5 | 0.538 | 12.3 | 3.0+12.4 | 12.9 | UNSOUND |",
        "",
        "UNSOUND: the radii of this run have no proof; compare them with published tables only.",
    ]


@pytest.mark.parametrize("format_runs", [format_table, format_markdown])
def test_no_run_is_refused(format_runs):
    with pytest.raises(DataError, match="no run"):
        format_runs({})
