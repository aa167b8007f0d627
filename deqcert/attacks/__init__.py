"""Attacks on classifiers, for training and for testing certificates: geometry, PGD, networks as attacks see them."""

from deqcert.attacks.networks import Classifier, WarmStarted, classify_noisy, few_step_logits, frozen, log_smoothed
from deqcert.attacks.pgd import PGD, Attack, Score, ScoreFunction, shift_noise

__all__ = [
    "PGD",
    "Attack",
    "Classifier",
    "Score",
    "ScoreFunction",
    "WarmStarted",
    "classify_noisy",
    "few_step_logits",
    "frozen",
    "log_smoothed",
    "shift_noise",
]
