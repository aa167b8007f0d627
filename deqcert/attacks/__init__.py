"""Attacks, for training and on certificates: attacks cannot prove a certificate right, but they can expose a bug.

Read :mod:`pgd` and :mod:`networks` (which training uses too), :mod:`targets` (what is attacked, and when a
certificate is refuted), :mod:`attack` (how points near an image are looked for), :mod:`campaign` and :mod:`summary`.
"""

from deqcert.attacks.attack import CertificateAttack, distances
from deqcert.attacks.campaign import Campaign, Outcome
from deqcert.attacks.networks import Classifier, WarmStarted, classify_noisy, few_step_logits, frozen, log_smoothed
from deqcert.attacks.pgd import PGD, shift_noise
from deqcert.attacks.summary import CampaignSummary, campaign_table, finding_lines, found_violation, summarize_campaign
from deqcert.attacks.targets import ExactTarget, SmoothedTarget, Target

__all__ = [
    "PGD",
    "Campaign",
    "CampaignSummary",
    "CertificateAttack",
    "Classifier",
    "ExactTarget",
    "Outcome",
    "SmoothedTarget",
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
