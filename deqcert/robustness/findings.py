"""What a campaign says in the end, the louder the worse."""

from __future__ import annotations

from collections.abc import Sequence

from deqcert.robustness.outcome import Outcome
from deqcert.robustness.summary import CampaignSummary

_MOST = 20


def found_violation(outcomes: Sequence[Outcome]) -> bool:
    """Whether a certificate that has a proof is refuted."""
    return any(each.violation and each.sound for each in outcomes)


def finding_lines(summary: CampaignSummary, outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each attack that refutes a certificate, and what is to be thought of them."""
    refuting = [each for each in outcomes if each.violation]
    loud = found_violation(outcomes)
    kind = "sound certificates" if summary.sound else "certificates"
    if not refuting:
        return [
            f"no violation found in {summary.attacks} attacks on {kind}, {summary.attacks_inside} of them inside of "
            "the radius (this proves nothing, it looks for bugs)"
        ]
    lines = [_line(each) for each in refuting[:_MOST]]
    if len(refuting) > _MOST:
        lines.append(f"and {len(refuting) - _MOST} more attacks that refute a certificate")
    if not loud:
        return [*lines, f"{summary.refuted_images} unsound certificates are refuted; they never had a proof"]
    rule = "!" * 78
    expected = (
        f"{summary.refuted_images} of {summary.certified} sound certificates are refuted; at most "
        f"{summary.false_certificates_expected:.2g} false ones are to be expected of their error probability. More "
        "than chance explains is a bug in model, noise or statistics."
    )
    return [rule, *(line.upper() for line in (*lines, expected)), rule]


def _line(outcome: Outcome) -> str:
    what = "violation of a sound certificate" if outcome.sound else "refutes an unsound certificate"
    return (
        f"{what}: image {outcome.index}, class {outcome.prediction}, radius {outcome.radius:.4f}, l2 norm "
        f"{outcome.norm:.4f}: n_A = {outcome.n_a} of n = {outcome.n}, thus p_A <= {outcome.p_a_upper:.4f}, but the "
        f"certificate claims p_A >= {outcome.claimed:.4f}"
    )
