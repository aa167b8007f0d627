"""From margins to certificates: arithmetic that may only round down."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deqcert.errors import DataError
from deqcert.statistics import ABSTAIN, MarginRule, Margins

MARGINS = Margins(
    selected=1,
    gaps=(0.5, 0.0, 0.3),
    errors=(0.1, 0.0, 0.0),
    constants=(2.0, 0.0, 1.0),
    epsilon=None,
    nfe_fast=7,
    residual=1e-9,
    seconds=0.1,
    index=4,
    label=1,
)
BOX = MARGINS._replace(constants=(), epsilon=0.25)


def test_the_nearest_class_decides():
    certificate = MarginRule().certify(MARGINS)
    assert certificate.radius == pytest.approx(0.2, abs=1e-12)
    assert (certificate.prediction, certificate.index, certificate.label, certificate.sound) == (1, 4, 1, True)
    assert certificate.correct
    assert certificate.p_a_lower is None
    assert certificate.p_b_upper is None


def test_a_box_has_its_own_radius():
    assert MarginRule().certify(BOX).radius == 0.25


@pytest.mark.parametrize("margins", [MARGINS, BOX])
def test_one_class_that_is_not_proved_to_be_behind_is_enough_to_abstain(margins):
    for gap in (0.1, 0.05, -1.0):
        certificate = MarginRule().certify(margins._replace(gaps=(gap, 0.0, 0.3)))
        assert (certificate.prediction, certificate.radius) == (ABSTAIN, 0.0)


positive = st.floats(1e-300, 1e300)


@given(gap=positive, error=st.floats(0, 1e300), constant=positive)
def test_radii_are_rounded_down(gap, error, constant):
    margins = Margins(0, (0.0, gap), (0.0, error), (0.0, constant), None, 1, 0.0, 0.0)
    radius = margins.radius
    exact = (Fraction(gap) - Fraction(error)) / Fraction(constant)
    assert radius == 0 or (math.isfinite(radius) and Fraction(radius) <= exact)


def test_a_class_that_cannot_come_nearer_does_not_bound_the_radius():
    assert MARGINS._replace(constants=(0.0, 0.0, 0.0)).radius == 1e9  # finite: JSON and means need that
    assert MARGINS._replace(constants=(0.0, 0.0, 1.0)).radius == pytest.approx(0.3)


def test_records_survive_json():
    for margins in (MARGINS, BOX, MARGINS._replace(residual=math.nan)):
        read = Margins.from_json(json.loads(json.dumps(margins.to_json(), allow_nan=False)))
        assert repr(read) == repr(margins)


@pytest.mark.parametrize(
    "change",
    [
        {"selected": 3},
        {"selected": True},
        {"label": 3},
        {"index": -1},
        {"gaps": (0.5,)},
        {"gaps": (0.5, 0.0, math.inf)},
        {"errors": (0.1, 0.0)},
        {"errors": (0.1, 0.0, -1e-9)},
        {"constants": ()},
        {"constants": (2.0, 0.0, -1.0)},
        {"epsilon": 0.1},
        {"epsilon": -0.1, "constants": ()},
        {"nfe_fast": -1},
        {"nfe_fast": 1.5},
        {"residual": -1.0},
        {"seconds": math.nan},
    ],
)
def test_what_cannot_be_is_refused(change):
    record = {**MARGINS._replace(**change)._asdict()}
    with pytest.raises(DataError, match=r"margins of image .* = .*expected"):
        Margins.from_json(record)


def test_fields_are_those_of_the_record():
    for record in (
        {**MARGINS.to_json(), "votes": 1},
        {key: each for key, each in MARGINS.to_json().items() if key != "gaps"},
    ):
        with pytest.raises(DataError, match="have or lack"):
            Margins.from_json(record)
