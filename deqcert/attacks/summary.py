"""What a campaign has found: its numbers, its table, and what it says in the end, the louder the worse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from deqcert.attacks.campaign import Campaign, Outcome
from deqcert.deterministic import Norm
from deqcert.metrics import certified_accuracy
from deqcert.report.table import UNSOUND_NOTE, Row, Table
from deqcert.statistics import Certificate

_MAXIMUM_LINES = 20


class RadiusSummary(NamedTuple):
    """All attacks at one radius, and how many of them are inside, successes and violations (:class:`Outcome`).

    Attributes:
        radius: Radius in pixels; None if it is relative.
        factor: Radius in units of each certified radius; None if it is absolute.
        certified_accuracy: Fraction of all images whose certificate has the true class and at least this radius: a
            lower bound on robust accuracy. None for a relative radius.
        empirical_accuracy: Fraction of all images whose certificate has the true class and whose attacked point is
            still elected into it: an upper bound up to chance in votes near 1/2. None for a relative radius.
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
        certified: Images with a certificate.
        sound: Whether every certificate has a proof.
        attacks: Attacks made, each with one test.
        false_certificates_expected: Error probability of a certificate times their number; 0 without noise.
        norm: Norm of all radii.
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
    norm: Norm
    radii: tuple[RadiusSummary, ...]


def summarize_campaign(
    campaign: Campaign,
    certificates: Sequence[Certificate],
    outcomes: Sequence[Outcome],
    alpha: float,
    norm: Norm = "l2",
) -> CampaignSummary:
    """Summarize all outcomes of a campaign; ``certificates``, of error probability alpha, include abstentions."""
    chosen = [(radius, None) for radius in campaign.radii] + [(None, factor) for factor in campaign.factors]
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
        norm=norm,
        radii=tuple(_at_radius(radius, factor, certificates, outcomes) for radius, factor in chosen),
    )


def _at_radius(
    radius: float | None, factor: float | None, certificates: Sequence[Certificate], outcomes: Sequence[Outcome]
) -> RadiusSummary:
    outcomes = [each for each in outcomes if each.factor == factor and radius in (None, each.epsilon)]
    certified = empirical = None
    if radius is not None:
        radii, correct = [each.radius for each in certificates], [each.correct for each in certificates]
        certified = float(certified_accuracy(radii, correct, [radius])[0])
        empirical = sum(each.prediction == each.label and not each.success for each in outcomes) / len(certificates)
    return RadiusSummary(
        radius=radius,
        factor=factor,
        attacks=len(outcomes),
        inside=sum(each.inside for each in outcomes),
        successes=sum(each.success for each in outcomes),
        violations=sum(each.violation for each in outcomes),
        certified_accuracy=certified,
        empirical_accuracy=empirical,
    )


def campaign_table(summary: CampaignSummary) -> Table:
    """Return a table with a row for each radius; without proofs, each row is marked."""
    rows = []
    for row in summary.radii:
        name = f"{row.radius:g}" if row.factor is None else f"{row.factor:g} R"
        accuracies = (row.certified_accuracy, row.empirical_accuracy)
        cells = ["-" if fraction is None else f"{100 * fraction:.1f}" for fraction in accuracies]
        cells += [str(count) for count in (row.attacks, row.inside, row.successes, row.violations)]
        rows.append(Row(name, tuple(cells), (False,) * len(cells), summary.sound))
    return Table(
        corner=f"{summary.norm} radius",
        group="",
        grouped=("certified%", "empirical%"),
        further=("attacks", "inside R", "successes", "refuted"),
        rows=tuple(rows),
        notes=() if summary.sound else (UNSOUND_NOTE,),
    )


def found_violation(outcomes: Sequence[Outcome]) -> bool:
    """Whether a certificate that has a proof is refuted."""
    return any(each.violation and each.sound for each in outcomes)


def finding_lines(summary: CampaignSummary, outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each attack that refutes a certificate, and what is to be thought of them."""
    refuting = [each for each in outcomes if each.violation]
    if not refuting:
        kind = "sound certificates" if summary.sound else "certificates"
        return [
            f"no violation found in {summary.attacks} attacks on {kind}, {summary.attacks_inside} of them inside of "
            "the radius (this proves nothing, it looks for bugs)"
        ]
    exact = summary.false_certificates_expected == 0
    lines = [
        f"{'violation of a sound certificate' if each.sound else 'refutes an unsound certificate'}: image "
        f"{each.index}, class {each.prediction}, radius {each.radius:.4f}, {summary.norm} norm {each.norm:.4f}: "
        + (f"class {each.counts.index(max(each.counts))} beyond solver and rounding error" if exact else _votes(each))
        for each in refuting[:_MAXIMUM_LINES]
    ]
    if len(refuting) > _MAXIMUM_LINES:
        lines.append(f"and {len(refuting) - _MAXIMUM_LINES} more attacks that refute a certificate")
    if not found_violation(outcomes):
        return [*lines, f"{summary.refuted_images} unsound certificates are refuted; they never had a proof"]
    lines.append(
        f"{summary.refuted_images} of {summary.certified} sound certificates are refuted; "
        + (
            "they hold with certainty, so this is a bug in model, bounds or rounding."
            if exact
            else f"at most {summary.false_certificates_expected:.2g} false ones are to be expected of their error "
            "probability. More than chance explains is a bug in model, noise or statistics."
        )
    )
    return ["!" * 78, *(line.upper() for line in lines), "!" * 78]


def _votes(each: Outcome) -> str:
    return (
        f"n_A = {each.n_a} of n = {each.n}, thus p_A <= {each.p_a_upper:.4f}, but the certificate claims p_A >= "
        f"{each.claimed:.4f}"
        + ("" if each.claimed_b is None else f"; p_B >= {each.p_b_lower:.4f}, claimed is p_B <= {each.claimed_b:.4f}")
    )
