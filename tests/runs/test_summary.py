import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deqcert.errors import DataError, SettingError
from deqcert.runs import TsvRow, automatic_radii, summarize
from deqcert.runs.summary import match_votes
from deqcert.statistics import certified_radius, clopper_pearson_lower


def test_the_numbers_of_a_small_run(make_certificate, make_votes):
    certificates = [
        make_certificate(2, 1.0),
        make_certificate(0, 0.5),
        make_certificate(1, 2.0, label=1),
        make_certificate(3, 0.0, prediction=-1),
    ]
    votes = [
        make_votes(0, seconds=4.5, residual=5e-3),
        make_votes(1),
        make_votes(2, mismatches=3),
        make_votes(3),
    ]
    summary = summarize(certificates, votes, [0.0, 0.5, 0.75])
    assert summary.examples == 4
    assert summary.radii == (0.0, 0.5, 0.75)
    assert summary.certified_accuracy == (0.5, 0.5, 0.25)
    assert summary.clean_accuracy == 0.5
    assert summary.average_certified_radius == 0.375
    assert summary.abstention_rate == 0.25
    assert summary.nfe_fast == pytest.approx(3.0)
    assert summary.nfe_audit == pytest.approx(600 / 110)
    assert summary.nfe_total == pytest.approx(930 / 110)
    assert summary.mismatch_rate == pytest.approx(6 / 80)
    assert summary.mean_residual == pytest.approx(2e-3)
    assert summary.seconds_per_image == pytest.approx(2.25)
    assert summary.sound


def test_the_cost_is_weighted_by_the_number_of_copies(make_certificate, make_votes):
    votes = [make_votes(0, n0=0, n=100, nfe_fast=100), make_votes(1, n0=0, n=300, nfe_fast=1500)]
    assert summarize([make_certificate(0), make_certificate(1)], votes, [0.0]).nfe_fast == 4.0


def test_one_certificate_without_proof_makes_a_run_unsound(make_certificate, make_votes):
    certificates = [make_certificate(0), make_certificate(1, sound=False)]
    assert not summarize(certificates, [make_votes(0), make_votes(1)], [0.0]).sound


def test_without_audit_there_is_no_mismatch_rate(make_certificate, make_votes):
    votes = make_votes(audited=None, mismatches=0, nfe_audit=0)
    summary = summarize([make_certificate()], [votes], [0.0])
    assert summary.mismatch_rate is None
    assert summary.nfe_audit == 0.0


@pytest.mark.parametrize("residual", [math.nan, math.inf])
def test_a_residual_that_is_no_number_gives_no_mean(make_certificate, make_votes, residual):
    votes = [make_votes(0, residual=residual), make_votes(1)]
    assert summarize([make_certificate(0), make_certificate(1)], votes, [0.0]).mean_residual is None


def test_a_table_has_accuracies_and_time_but_no_other_cost():
    rows = [TsvRow(0, 3, 3, 0.5, True, 2.0), TsvRow(1, 3, -1, 0.0, False, 4.0, sound=False)]
    summary = summarize(rows, None, [0.25, 0.75], [row.seconds for row in rows])
    assert summary.certified_accuracy == (0.5, 0.0)
    assert summary.clean_accuracy == 0.5
    assert summary.seconds_per_image == 3.0
    assert summary.nfe_fast is summary.nfe_audit is summary.nfe_total is summary.mismatch_rate is None
    assert not summary.sound


def test_no_image_is_refused():
    for summarized in (lambda: summarize([], [], [0.0]), lambda: summarize([], None, [0.0])):
        with pytest.raises(DataError, match="no image"):
            summarized()


@pytest.mark.parametrize("radii", [[], [-0.25], [math.nan], [0.0, math.inf]])
def test_bad_radii_are_refused(make_certificate, make_votes, radii):
    with pytest.raises(SettingError, match=r"^radii = "):
        summarize([make_certificate()], [make_votes()], radii)


@pytest.mark.parametrize("indices", [[0], [0, 2], [0, 1, 2], [0, 1, 1]])
def test_votes_of_other_images_are_refused(make_certificate, make_votes, indices):
    with pytest.raises(DataError, match="same images"):
        match_votes([make_certificate(0), make_certificate(1)], [make_votes(index) for index in indices])


def test_votes_are_matched_by_index(make_certificate, make_votes):
    pairs = match_votes([make_certificate(i) for i in (4, 0, 2)], [make_votes(i) for i in (2, 4, 0)])
    assert [(certificate.index, votes.index) for certificate, votes in pairs] == [(0, 0), (2, 2), (4, 4)]


@pytest.mark.parametrize(
    ("sigma", "radii"),
    [
        (0.12, (0, 0.125, 0.25, 0.375)),
        (0.25, (0, 0.25, 0.5, 0.75)),
        (0.5, (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5)),
        (0.6, (0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8)),
        (1.0, (0, 0.5, 1, 1.5, 2, 2.5, 3)),
    ],
)
def test_automatic_radii_are_those_of_published_tables(sigma, radii):
    assert automatic_radii(sigma, alpha=0.001, n=10_000) == radii


@given(st.floats(0.02, 4), st.floats(1e-4, 0.2), st.integers(1, 1_000_000))
def test_automatic_radii_reach_the_largest_radius_and_fit_a_table(sigma, alpha, n):
    radii = automatic_radii(sigma, alpha, n)
    largest = float(certified_radius(clopper_pearson_lower(n, n, alpha), sigma))
    assert radii[0] == 0
    assert radii[-1] <= largest + 1e-9
    assert len(radii) <= 9
    assert list(radii) == sorted(set(radii))
    if len(radii) > 1:
        assert largest < radii[-1] + radii[1]


def test_too_few_copies_certify_nothing():
    assert automatic_radii(0.5, alpha=0.001, n=5) == (0.0,)


@pytest.mark.parametrize("settings", [(0.0, 0.001, 100), (0.5, 0.0, 100), (0.5, 1.0, 100), (0.5, 0.001, 0)])
def test_automatic_radii_refuse(settings):
    with pytest.raises(SettingError):
        automatic_radii(*settings)
