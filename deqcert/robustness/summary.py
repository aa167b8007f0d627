"""The numbers of a campaign, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from deqcert.metrics import certified_accuracy
from deqcert.report.table import UNSOUND_NOTE, Row, Table
from deqcert.robustness.campaign import Campaign
from deqcert.robustness.outcome import Outcome
from deqcert.statistics import Certificate


class RadiusSummary(NamedTuple):
    """All attacks at one absolute or relative radius.

    Attributes:
        radius: Radius in pixels; None if it is relative.
        factor: Radius in units of each certified radius; None if it is absolute.
        attacks: Attacks made.
        inside: Those that stayed strictly inside of the certified radius.
        successes: Attacks after which the fresh votes elect another class.
        violations: Attacks that refute the certificate.
        certified_accuracy: Fraction of all images whose certificate has the true class and at least this radius: a
            lower bound on robust accuracy. None for a relative radius.
        empirical_accuracy: Fraction of all images whose certificate has the true class and whose attacked point is
            still elected into it: an estimate that is an upper bound up to chance in votes near 1/2. As in certified
            accuracy, abstentions and wrong classes count as not robust. None for a relative radius.
    """

    radius: float | None
    factor: float | None
    attacks: int
    inside: int
    successes: int
    violations: int
    certified_accuracy: float | None
    empirical_accuracy: float | None


class CampaignSummary(NamedTuple):
    """What a campaign has found.

    Attributes:
        images: Images in all.
        certified: Images with a certificate.
        sound: Whether every certificate has a proof.
        attacks: Attacks made, each with one test.
        attacks_inside: Those that stayed strictly inside of the certified radius.
        violations: Attacks that refute a certificate.
        refuted_images: Images whose certificate is refuted.
        false_certificates_expected: Largest number of false certificates to be expected of sound ones, their error
            probability times their number.
        radii: One entry for each absolute radius, then for each factor.
    """

    images: int
    certified: int
    sound: bool
    attacks: int
    attacks_inside: int
    violations: int
    refuted_images: int
    false_certificates_expected: float
    radii: tuple[RadiusSummary, ...]


def summarize_campaign(
    campaign: Campaign, certificates: Sequence[Certificate], outcomes: Sequence[Outcome], alpha: float
) -> CampaignSummary:
    """Summarize a campaign.

    Args:
        campaign: What was done.
        certificates: Those of all images, abstentions included, at least one.
        outcomes: All that came of it.
        alpha: Error probability of a certificate.
    """
    absolute = [
        _at_radius([each for each in outcomes if each.factor is None and each.epsilon == radius], radius, certificates)
        for radius in campaign.radii
    ]
    relative = [
        _counted([each for each in outcomes if each.factor == factor], factor=factor) for factor in campaign.factors
    ]
    certified = len({each.index for each in outcomes})
    return CampaignSummary(
        images=len(certificates),
        certified=certified,
        sound=all(certificate.sound for certificate in certificates),
        attacks=len(outcomes),
        attacks_inside=sum(each.inside for each in outcomes),
        violations=sum(each.violation for each in outcomes),
        refuted_images=len({each.index for each in outcomes if each.violation}),
        false_certificates_expected=alpha * certified,
        radii=(*absolute, *relative),
    )


def campaign_table(summary: CampaignSummary) -> Table:
    """Return a table with a row for each radius; without proofs, each row is marked."""
    return Table(
        corner="l2 radius",
        group="",
        grouped=("certified%", "empirical%"),
        further=("attacks", "inside R", "successes", "refuted"),
        rows=tuple(_table_row(row, summary.sound) for row in summary.radii),
        notes=() if summary.sound else (UNSOUND_NOTE,),
    )


def _table_row(row: RadiusSummary, sound: bool) -> Row:
    name = f"{row.radius:g}" if row.factor is None else f"{row.factor:g} R"
    accuracies = [
        "-" if fraction is None else f"{100 * fraction:.1f}"
        for fraction in (row.certified_accuracy, row.empirical_accuracy)
    ]
    counts = [str(count) for count in (row.attacks, row.inside, row.successes, row.violations)]
    return Row(name, (*accuracies, *counts), (False,) * 6, sound)


def _at_radius(outcomes: Sequence[Outcome], radius: float, certificates: Sequence[Certificate]) -> RadiusSummary:
    correct = [certificate.correct for certificate in certificates]
    certified = certified_accuracy([certificate.radius for certificate in certificates], correct, [radius])
    robust = sum(each.prediction == each.label and not each.success for each in outcomes)
    return _counted(outcomes, radius=radius)._replace(
        certified_accuracy=float(certified[0]), empirical_accuracy=robust / len(certificates)
    )


def _counted(outcomes: Sequence[Outcome], radius: float | None = None, factor: float | None = None) -> RadiusSummary:
    return RadiusSummary(
        radius=radius,
        factor=factor,
        attacks=len(outcomes),
        inside=sum(each.inside for each in outcomes),
        successes=sum(each.success for each in outcomes),
        violations=sum(each.violation for each in outcomes),
        certified_accuracy=None,
        empirical_accuracy=None,
    )
