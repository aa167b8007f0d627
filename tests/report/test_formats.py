import pytest
from hypothesis import given
from hypothesis import strategies as st
from summaries import summary_of

from deqcert.report import Row, Table, format_latex, format_markdown, format_text, summary_table
from deqcert.report.formats import WIDTH, _shortened_names


def test_the_table_of_two_runs():
    runs = {"MDEQ-30A": summary_of(costs=False), "SRS-MDEQ-3A": summary_of(accuracy=1.0, sound=False)}
    assert format_text(summary_table(runs)).splitlines() == [
        "            certified accuracy in % at l2 radius",
        "run             0 0.25   ACR abstain% NFE/sample s/image",
        "----------------------------------------------------------------",
        "MDEQ-30A     67.0 33.5 0.538     12.3          -    12.9",
        "SRS-MDEQ-3A 100.0 50.0 0.538     12.3   3.0+12.4    12.9 UNSOUND",
        "UNSOUND: the radii of this run have no proof; compare them with published tables only.",
    ]


def test_sound_runs_have_no_mark():
    assert "UNSOUND" not in format_text(summary_table({"run": summary_of()}))
    assert "UNSOUND" not in format_markdown(summary_table({"run": summary_of()}))


def test_too_many_radii_are_left_out_by_name():
    many = [0.1 * i for i in range(30)]
    table = format_text(summary_table({"many": summary_of(many), "few, but with a long name": summary_of([0.0, 2.0])}))
    header = table.splitlines()[1].split()
    assert header[1] == "0"
    assert "2" in header  # two runs have it
    assert "2.9" not in header
    assert table.splitlines()[-1].startswith("Left out for want of room: 1.")
    assert "| % at 2.9 |" in format_markdown(summary_table({"many": summary_of(many)}))


@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
        st.builds(
            summary_of,
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
    lines = format_text(summary_table(runs)).splitlines()
    assert max(map(len, lines)) <= WIDTH
    unsound = [not summary.sound for summary in runs.values()]
    assert [line.endswith(" UNSOUND") for line in lines[3 : 3 + len(runs)]] == unsound
    assert lines[-1].startswith("UNSOUND: ") == any(unsound)


def test_the_markdown_table():
    runs = {"MDEQ|30A": summary_of(), "SRS": summary_of(sound=False)}
    assert format_markdown(summary_table(runs)).splitlines() == [
        "| run | % at 0 | % at 0.25 | ACR | abstain% | NFE/sample | s/image |  |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        r"| MDEQ\|30A | 67.0 | 33.5 | 0.538 | 12.3 | 3.0+12.4 | 12.9 |  |",
        "| SRS | 67.0 | 33.5 | 0.538 | 12.3 | 3.0+12.4 | 12.9 | UNSOUND |",
        "",
        "UNSOUND: the radii of this run have no proof; compare them with published tables only.",
    ]


def test_the_latex_table_is_booktabs_with_the_best_in_bold_and_the_unsound_marked():
    runs = {"a_b & 50%": summary_of(), "better": summary_of(accuracy=0.7), "SRS": summary_of(accuracy=1, sound=False)}
    assert format_latex(summary_table(runs)).splitlines() == [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{lrrrrrrr}",
        r"\toprule",
        r" & \multicolumn{2}{c}{certified accuracy in \% at $\ell_2$ radius} & & & & & \\",
        r"\cmidrule(lr){2-3}",
        r"run & 0 & 0.25 & ACR & abstain\% & NFE/sample & s/image &  \\",
        r"\midrule",
        r"a\_b \& 50\% & 67.0 & 33.5 & \textbf{0.538} & \textbf{12.3} & \textbf{3.0+12.4} & \textbf{12.9} &  \\",
        r"better & \textbf{70.0} & \textbf{35.0} & \textbf{0.538} & \textbf{12.3} & \textbf{3.0+12.4} & "
        r"\textbf{12.9} &  \\",
        r"SRS & 100.0 & 50.0 & 0.538 & 12.3 & 3.0+12.4 & 12.9 & UNSOUND \\",
        r"\bottomrule",
        r"\multicolumn{8}{l}{\footnotesize UNSOUND: the radii of this run have no proof; compare them with published "
        r"tables only.} \\",
        r"\end{tabular}",
    ]


def test_latex_has_no_character_with_a_meaning():
    table = Table("run", "", (), ("x",), (Row("\\~^&%$#_{}", ("1",), (False,), True),), ())
    row = format_latex(table).splitlines()[-3]
    assert row == (r"\textbackslash{}\textasciitilde{}\textasciicircum{}\&\%\$\#\_\{\} & 1 \\")


def test_a_table_without_a_group_has_no_line_for_it():
    table = Table("class", "", (), ("images",), (Row("3", ("7",), (False,), True),), ("A note.",))
    assert format_text(table).splitlines() == ["class images", "------------", "3          7", "A note."]
    assert format_markdown(table).splitlines() == ["| class | images |", "| --- | ---: |", "| 3 | 7 |", "", "A note."]
    assert "multicolumn{1}" not in format_latex(table)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["abcdefghijklmnop", "abcdefghijklmnoq"], ["abcde...mnop", "abcde...mnoq"]),
        (["abcdefghijklmnop", "bbcdefghijklmnop"], ["abcdefghi...", "bbcdefghi..."]),
        (["a" * 20 + "b" + "c" * 20, "a" * 20 + "d" + "c" * 20, "x"], ["1 aaaaaaa...", "2 aaaaaaa...", "3 x"]),
        (["abc", ""], ["abc", ""]),
    ],
)
def test_names_that_are_cut_stay_different(names, expected):
    assert _shortened_names(names, 12) == expected
