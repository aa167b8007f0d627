from summaries import summary_of

from deqcert.report import Row, Table, format_latex, format_markdown, format_text, summary_table


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


def test_a_radius_that_one_run_lacks_is_a_dash():
    table = format_text(summary_table({"many": summary_of([0.0, 0.1]), "few": summary_of([0.0, 2.0])}))
    header, _, many, few = table.splitlines()[1:]
    assert header.split()[:4] == ["run", "0", "0.1", "2"]
    assert (many.split()[3], few.split()[2]) == ("-", "-")


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
    assert format_latex(summary_table(runs), "50% of it").splitlines() == [
        r"% \usepackage{booktabs}",
        r"% \caption{50\% of it}",
        r"\begin{tabular}{lrrrrrr}",
        r"\toprule",
        r" & \multicolumn{2}{c}{certified accuracy in \% at $\ell_2$ radius} \\",
        r"\cmidrule(lr){2-3}",
        r"run & 0 & 0.25 & ACR & abstain\% & NFE/sample & s/image \\",
        r"\midrule",
        r"a\_b \& 50\% & 67.0 & 33.5 & \textbf{0.538} & \textbf{12.3} & \textbf{3.0+12.4} & \textbf{12.9} \\",
        r"better & \textbf{70.0} & \textbf{35.0} & \textbf{0.538} & \textbf{12.3} & \textbf{3.0+12.4} & "
        r"\textbf{12.9} \\",
        r"SRS (UNSOUND) & 100.0 & 50.0 & 0.538 & 12.3 & 3.0+12.4 & 12.9 \\",
        r"\bottomrule",
        r"\multicolumn{7}{l}{\footnotesize UNSOUND: the radii of this run have no proof; compare them with published "
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
