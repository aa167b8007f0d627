"""Attacks on classifiers, for training and for testing certificates: geometry, PGD, networks as attacks see them."""

from deqcert.attacks.networks import Classifier, WarmStarted, few_step_logits, frozen
from deqcert.attacks.pgd import PGD, Attack, Score, ScoreFunction, shift_noise

__all__ = [
    "PGD",
    "Attack",
    "Classifier",
    "Score",
    "ScoreFunction",
    "WarmStarted",
    "few_step_logits",
    "frozen",
    "shift_noise",
]
