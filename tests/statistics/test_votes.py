from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deqcert.errors import DataError
from deqcert.statistics import CertificationRule, Votes

ESCALATED = {"escalations": 100, "escalated": (5, 80, 12), "escalated_from": (15, 60, 25)}
ALL = {"audited": 300, "audited_as": (10, 300, 20), "mistaken": (3, 5, 2)}  # of all classes


def test_selected_is_the_most_frequent_class_and_the_lowest_on_ties(make_votes):
    assert make_votes().selected == 1
    assert make_votes(selection=(10, 40, 40)).selected == 1
    assert make_votes(selection=(0, 0, 0)).selected == 0


def test_n_a_counts_the_selected_class_not_the_most_frequent_estimate(make_votes):
    assert make_votes().n_a == 950
    assert make_votes(selection=(60, 30, 10)).n_a == 20


def test_the_population_of_the_audit_leaves_out_what_was_escalated(make_votes):
    assert make_votes().population == 950
    assert [make_votes().known(c) for c in range(3)] == [0, 0, 0]
    votes = make_votes(**ESCALATED)
    assert votes.population == 890
    assert [votes.known(c) for c in range(3)] == [5, 80, 12]


def test_consistent_votes_pass(make_votes, standard_votes):
    make_votes().validate()
    standard_votes.validate()
    standard_votes._replace(anytime=True).validate()
    make_votes(anytime=True).validate()
    make_votes(selection=(0, 79, 0), estimation=(0, 950, 0)).validate()  # non-finite samples vote for nobody
    make_votes(audited=0, mismatches=0).validate()
    make_votes(**ESCALATED).validate()  # 3 of them diverged
    make_votes(**{**ESCALATED, "estimation": (20, 850, 30), "escalated_from": (0, 0, 0)}).validate()
    make_votes(**{**ESCALATED, "escalated": (0, 100, 0), "escalated_from": (0, 100, 0), "audited": 850}).validate()
    make_votes(**ALL).validate()
    make_votes(**ESCALATED, **{**ALL, "audited_as": (5, 300, 5)}).validate()
    make_votes(audited=0, mismatches=0, audited_as=(0, 0, 0), mistaken=(0, 0, 0)).validate()
    make_votes(anytime=True, alpha_share=0.25).validate()
    make_votes(anytime=True, alpha_share=1).validate()
    make_votes(residual=math.inf).validate()  # a diverged solve is a fact, not an error


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("index", {"index": -1}),
        ("index", {"index": np.int64(3)}),
        ("label", {"label": -1}),
        ("label", {"label": 3}),
        ("n0", {"n0": True}),
        ("n0", {"n0": 0, "selection": (0, 0, 0)}),
        ("n", {"n": 1000.0}),
        ("n", {"n": 0, "estimation": (0, 0, 0), "audited": 0, "mismatches": 0}),
        ("selection", {"selection": (-1, 80, 10)}),
        ("selection", {"selection": (10, 81, 10)}),
        ("selection", {"selection": [10, 80, 10]}),
        ("selection", {"selection": (), "estimation": ()}),
        ("estimation", {"estimation": (21, 950, 30)}),
        ("estimation", {"estimation": (20, 950.0, 30)}),
        ("estimation", {"estimation": (20, 950)}),
        ("audited", {"audited": 951}),
        ("audited", {"audited": -1}),
        ("audited", {"audited": 400.0}),
        ("mismatches", {"mismatches": 401}),
        ("mismatches", {"mismatches": -1}),
        ("mismatches", {"audited": None, "nfe_audit": 0}),
        ("nfe_audit", {"audited": None, "mismatches": 0}),
        ("nfe_audit", {"nfe_audit": -1}),
        ("nfe_fast", {"nfe_fast": -1}),
        ("residual", {"residual": -0.1}),
        ("residual", {"residual": "small"}),
        ("seconds", {"seconds": -1.0}),
        ("seconds", {"seconds": math.nan}),
        ("seconds", {"seconds": math.inf}),
        ("sigma", {"sigma": 0.0}),
        ("sigma", {"sigma": math.inf}),
        ("sigma", {"sigma": "0.5"}),
        ("noise_error", {"noise_error": -1e-9}),
        ("noise_error", {"noise_error": 1.0}),
        ("noise_error", {"noise_error": math.nan}),
        ("anytime", {"anytime": 1}),
        ("alpha_share", {"anytime": True, "alpha_share": 0.0}),
        ("alpha_share", {"anytime": True, "alpha_share": 1.0000000000000002}),
        ("alpha_share", {"anytime": True, "alpha_share": math.nan}),
        ("alpha_share", {"anytime": True, "alpha_share": True}),
        ("alpha_share", {"alpha_share": 0.5}),
        ("escalations", {**ESCALATED, "escalations": -1}),
        ("escalations", {**ESCALATED, "escalations": 100.0}),
        ("escalations", {**ESCALATED, "escalations": 1001}),
        ("escalations", {**ESCALATED, "audited": None, "mismatches": 0, "nfe_audit": 0}),
        ("escalated", {**ESCALATED, "escalated": (5, 80)}),
        ("escalated", {**ESCALATED, "escalated": ()}),
        ("escalated", {**ESCALATED, "escalated": [5, 80, 12]}),
        ("escalated", {**ESCALATED, "escalated": (-1, 80, 12)}),
        ("escalated", {**ESCALATED, "escalated": (5, 80, 16)}),
        ("escalated", {"escalated": (0, 0, 0)}),
        ("escalated_from", {**ESCALATED, "escalated_from": (-1, 60, 25)}),
        ("escalated_from", {**ESCALATED, "escalated_from": (10, 66, 25)}),
        ("escalated_from", {**ESCALATED, "escalated_from": (10, 60)}),
        ("escalated_from", {"escalated_from": (0, 1, 0)}),
        ("escalated_from", {**ESCALATED, "escalated_from": (15, 60, 20)}),
        ("escalated_from", {**ESCALATED, "estimation": (490, 50, 460), "audited": 0, "mismatches": 0}),
        ("audited_as", {**ALL, "audited_as": (10, 300)}),
        ("audited_as", {**ALL, "audited_as": (21, 300, 20)}),
        ("audited_as", {**ALL, "audited_as": (10, 300, 20.0)}),
        ("audited_as", {**ALL, **ESCALATED}),
        ("audited_as", {**ALL, "audited": None, "mismatches": 0, "nfe_audit": 0}),
        ("audited_as", {"mistaken": (0, 0, 0)}),
        ("audited", {**ALL, "audited_as": (10, 299, 20)}),
        ("mistaken", {**ALL, "mistaken": ()}),
        ("mistaken", {**ALL, "mistaken": (3, 31, 2)}),
        ("mistaken", {**ALL, "mistaken": (200, 0, 150)}),
        ("mistaken", {**ALL, "mistaken": (-1, 5, 2)}),
        ("audited", {**ESCALATED, "audited": 891}),
    ],
)
def test_validate_names_the_inconsistent_field(make_votes, field, changes):
    with pytest.raises(DataError, match=rf"votes of image .*: {field} = .*: expected"):
        make_votes(**changes).validate()


def through_json(votes: Votes) -> Votes:
    return Votes.from_json(json.loads(json.dumps(votes.to_json(), allow_nan=False)))


@st.composite
def arbitrary_votes(draw: st.DrawFn) -> Votes:
    classes = draw(st.integers(1, 4))
    counts = st.lists(st.integers(0, 50), min_size=classes, max_size=classes).map(tuple)
    selection, estimation = draw(counts), draw(counts)
    n_a = estimation[selection.index(max(selection))]
    n = max(sum(estimation), 1) + 50
    asked = draw(st.just(0) | st.integers(0, 50))
    escalated_a = draw(st.integers(0, min(asked, n_a)))
    audited = draw(st.integers(0, n_a - escalated_a) if asked else st.none() | st.integers(0, n_a))
    of_a = [c == selection.index(max(selection)) for c in range(classes)]
    of_all = audited is not None and draw(st.booleans())
    anytime = draw(st.booleans())
    return Votes(
        index=draw(st.integers(0, 10**6)),
        label=draw(st.integers(0, classes - 1)),
        n0=max(sum(selection), 1),
        n=n,
        selection=selection,
        estimation=estimation,
        audited=audited,
        mismatches=draw(st.integers(0, audited)) if audited else 0,
        nfe_fast=draw(st.integers(0, 10**9)),
        nfe_audit=draw(st.integers(0, 10**9)) if audited or asked else 0,
        residual=draw(st.floats(0, 1e6)),
        seconds=draw(st.floats(0, 1e6)),
        sigma=draw(st.floats(1e-6, 100)),
        noise_error=draw(st.floats(0, 0.5)),
        anytime=anytime,
        alpha_share=draw(st.floats(1e-6, 1)) if anytime else 1.0,
        escalations=asked,
        escalated=(asked, *[0] * (classes - 1)) if asked else (),
        escalated_from=tuple(escalated_a * own for own in of_a) if asked else (),
        audited_as=tuple((audited or 0) * own for own in of_a) if of_all else (),
        mistaken=tuple(draw(st.integers(0, 0 if own else (audited or 0) // classes)) for own in of_a) if of_all else (),
    )


@given(arbitrary_votes())
def test_votes_survive_json(votes):
    assert through_json(votes) == votes


def test_json_leaves_out_what_says_nothing(make_votes):
    optional = {"alpha_share", "escalations", "escalated", "escalated_from", "audited_as", "mistaken"}
    assert not optional & make_votes().to_json().keys()
    assert optional & make_votes(anytime=True).to_json().keys() == {"alpha_share"}
    assert optional & make_votes(**ESCALATED).to_json().keys() == {"escalations", *ESCALATED}
    assert optional & make_votes(**ALL).to_json().keys() == {"audited_as", "mistaken"}


def test_votes_written_before_there_were_optional_fields_read_as_before(make_votes):
    old = {
        "index": 7, "label": 1, "n0": 100, "n": 1000, "selection": [10, 80, 10], "estimation": [20, 950, 30],
        "audited": 400, "mismatches": 2, "nfe_fast": 3300, "nfe_audit": 12000, "residual": 0.01, "seconds": 1.5,
        "sigma": 0.5, "noise_error": 0.0, "anytime": False,
    }  # fmt: skip
    assert Votes.from_json(old) == make_votes()
    assert json.dumps(make_votes().to_json()) == json.dumps(old)


def test_votes_of_a_stopping_rule_that_is_unknown_are_refused(standard_votes):
    """A certificate from them needs a bound that holds at every n; that of a look would be false."""
    record = standard_votes._replace(anytime=True, alpha_share=0.25).to_json()
    assert CertificationRule().certify(Votes.from_json(record)).sound
    del record["alpha_share"]
    with pytest.raises(DataError, match="stopping rule"):
        Votes.from_json(record)


@pytest.mark.parametrize("residual", [math.nan, math.inf])
def test_a_residual_that_is_not_finite_is_null_in_json_and_nan_after_it(make_votes, residual):
    votes = make_votes(residual=residual)
    assert votes.to_json()["residual"] is None
    again = through_json(votes)
    assert math.isnan(again.residual)
    assert again._replace(residual=0.0) == votes._replace(residual=0.0)


def test_from_json_refuses_missing_and_unknown_fields(make_votes):
    record = make_votes().to_json()
    with pytest.raises(DataError, match="votes lack audited, seconds"):
        Votes.from_json({k: v for k, v in record.items() if k not in ("audited", "seconds")})
    with pytest.raises(DataError, match="votes lack anytime"):  # nothing is assumed of how n came about
        Votes.from_json({k: v for k, v in record.items() if k != "anytime"})
    with pytest.raises(DataError, match="votes have no field alpha"):
        Votes.from_json({**record, "alpha": 0.001})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("index", "7"),
        ("index", None),
        ("label", True),
        ("n", 1000.0),
        ("selection", None),
        ("selection", "012"),
        ("estimation", [20, 950.0, 30]),
        ("estimation", [20, [950], 30]),
        ("audited", False),
        ("audited", [400]),
        ("mismatches", 2.0),
        ("residual", "nan"),
        ("seconds", None),
        ("seconds", True),
        ("anytime", None),
        ("anytime", 0),
        ("alpha_share", None),
        ("alpha_share", "1"),
        ("escalations", None),
        ("escalations", True),
        ("escalated", None),
        ("escalated", [1, 2.0, 3]),
        ("escalated_from", [10, 60.0, 25]),
        ("escalated_from", "60"),
        ("audited_as", None),
    ],
)
def test_from_json_refuses_wrong_types(make_votes, field, value):
    with pytest.raises(DataError, match=rf"{field} = .*: expected"):
        Votes.from_json({**make_votes(**ESCALATED).to_json(), field: value})


def test_from_json_refuses_inconsistent_votes(make_votes):
    with pytest.raises(DataError, match="mismatches"):
        Votes.from_json({**make_votes().to_json(), "mismatches": 500})
