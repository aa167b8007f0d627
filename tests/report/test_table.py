import pytest
from summaries import summary_of

from deqcert.errors import SettingError
from deqcert.report import class_table, lower_bound_table, summary_table


def cells(table, position):
    return table.rows[position].cells


def test_a_radius_without_a_value_is_a_dash():
    table = summary_table({"a": summary_of([0.0, 0.5]), "b": summary_of([0.0, 0.25])})
    assert table.grouped == ("0", "0.25", "0.5")
    assert cells(table, 0)[:3] == ("67.0", "-", "33.5")
    assert cells(table, 1)[:3] == ("67.0", "33.5", "-")


@pytest.mark.parametrize(
    ("seconds", "cell"),
    [(0.0123, "0.0123"), (2.0, "2.00"), (88.33, "88.3"), (99.97, "100"), (1234.5, "1234")],
)
def test_times_have_three_digits(seconds, cell):
    assert cells(summary_table({"run": summary_of()._replace(seconds_per_image=seconds)}), 0)[-1] == cell


def test_costs_that_are_not_known_are_dashes():
    assert cells(summary_table({"run": summary_of(costs=False)}), 0)[-2] == "-"


def test_the_best_of_a_column_is_marked_among_the_sound():
    table = summary_table(
        {"a": summary_of(acr=0.5), "b": summary_of(acr=0.6), "c": summary_of(acr=0.9, accuracy=1.0, sound=False)}
    )
    acr = table.headings.index("ACR")
    assert [row.best[acr] for row in table.rows] == [False, True, False]
    assert [row.best[0] for row in table.rows] == [True, True, False]


def test_what_looks_the_same_is_equally_good():
    table = summary_table({"a": summary_of(acr=0.50004), "b": summary_of(acr=0.50001)})
    assert all(row.best[table.headings.index("ACR")] for row in table.rows)


def test_costs_and_abstentions_are_better_when_they_are_lower():
    cheap = summary_of()._replace(nfe_total=5.0, seconds_per_image=1.0, abstention_rate=0.0)
    table = summary_table({"dear": summary_of(), "cheap": cheap})
    for heading in ("NFE/sample", "s/image", "abstain%"):
        assert [row.best[table.headings.index(heading)] for row in table.rows] == [False, True], heading


def test_nothing_is_best_where_all_are_zero():
    runs = {"a": summary_of([0.0, 1.0], accuracy=0.0), "b": summary_of([0.0, 1.0], accuracy=0.0)}
    assert not any(row.best[column] for row in summary_table(runs).rows for column in (0, 1))


def test_nobody_wins_alone():
    for runs in ({"a": summary_of()}, {"a": summary_of(), "b": summary_of(sound=False)}):
        assert not any(any(row.best) for row in summary_table(runs).rows)


def test_lower_bounds_are_those_of_bernstein():
    runs = {"known": summary_of(), "unknown": summary_of(), "unsound": summary_of(sound=False)}
    alphas = {"known": 0.001, "unknown": None, "unsound": 0.001}
    table = lower_bound_table(runs, alphas, rho=0.001)
    # 0.67 - 0.001 - sqrt(2 * 0.001 * 0.999 * ln 1000 / 500) - ln 1000 / 1500
    assert cells(table, 0) == ("65.9", "32.4")
    assert cells(table, 1) == cells(table, 2) == ("-", "-")
    assert [row.sound for row in table.rows] == [True, True, False]


def test_a_lower_bound_is_never_negative():
    table = lower_bound_table({"run": summary_of(accuracy=0.001)}, {"run": 0.001}, rho=0.001)
    assert cells(table, 0) == ("0.0", "0.0")


@pytest.mark.parametrize("rho", [0.0, 1.0, float("nan")])
def test_rho_is_a_probability(rho):
    with pytest.raises(SettingError, match="rho"):
        lower_bound_table({"run": summary_of()}, {"run": 0.001}, rho)


def test_classes_are_broken_down_by_their_true_labels(make_certificate):
    certificates = [
        make_certificate(0, 0.5, label=3),
        make_certificate(1, 0.0, label=3, prediction=-1),
        make_certificate(2, 0.3, label=1, prediction=2),
        make_certificate(3, 0.3, label=1, prediction=1, sound=False),
    ]
    table = class_table(certificates, [0.0, 0.4])
    assert [row.name for row in table.rows] == ["1", "3"]
    assert cells(table, 0) == ("50.0", "0.0", "0.150", "0.0", "2")
    assert cells(table, 1) == ("50.0", "50.0", "0.250", "50.0", "2")
    assert [row.sound for row in table.rows] == [False, True]
    named = class_table(certificates, [0.0, 0.4], ("ant", "bee", "cat"))
    assert [row.name for row in named.rows] == ["bee", "3"]
    twice = class_table(certificates, [0.0, 0.4], ("ant", "crane", "cat", "crane"))
    assert [row.name for row in twice.rows] == ["crane", "crane"]
