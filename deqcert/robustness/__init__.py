"""Attacks on certificates: what cannot be proven by them, a bug, may be found by them.

In come a classifier, a smoothing strategy, images and certificates; out go points near the images, what fresh noise
says of them, and which certificates that refutes. No Lightning. Read :mod:`smoothed_classifier` (what is attacked),
:mod:`smoothed_attack` (how points are looked for), :mod:`campaign` (which, and when a certificate is refuted) and
:mod:`summary`, in this order.
"""

from deqcert.robustness.campaign import Campaign
from deqcert.robustness.findings import finding_lines, found_violation
from deqcert.robustness.outcome import Outcome
from deqcert.robustness.smoothed_attack import SmoothedAttack, distances
from deqcert.robustness.summary import CampaignSummary, RadiusSummary, campaign_table, summarize_campaign
from deqcert.robustness.target import Target

__all__ = [
    "Campaign",
    "CampaignSummary",
    "Outcome",
    "RadiusSummary",
    "SmoothedAttack",
    "Target",
    "campaign_table",
    "distances",
    "finding_lines",
    "found_violation",
    "summarize_campaign",
]
