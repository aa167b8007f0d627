"""Attacks, for training and on certificates: attacks cannot prove a certificate right, but they can expose a bug.

Read :mod:`pgd` and :mod:`networks` (which training uses too), :mod:`smoothed_attack` (how points near an image are
looked for), :mod:`campaign` (which, and when a certificate is refuted) and :mod:`summary`, in this order.
"""

from deqcert.attacks.campaign import Campaign, Outcome
from deqcert.attacks.networks import Classifier, WarmStarted, classify_noisy, few_step_logits, frozen, log_smoothed
from deqcert.attacks.pgd import PGD, shift_noise
from deqcert.attacks.smoothed_attack import SmoothedAttack, Target, distances
from deqcert.attacks.summary import CampaignSummary, campaign_table, finding_lines, found_violation, summarize_campaign

__all__ = [
    "PGD",
    "Campaign",
    "CampaignSummary",
    "Classifier",
    "Outcome",
    "SmoothedAttack",
    "Target",
    "WarmStarted",
    "campaign_table",
    "classify_noisy",
    "distances",
    "few_step_logits",
    "finding_lines",
    "found_violation",
    "frozen",
    "log_smoothed",
    "shift_noise",
    "summarize_campaign",
]
