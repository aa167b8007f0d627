"""Training a deep equilibrium classifier so that it can be certified."""

from deqcert.attacks import PGD
from deqcert.training.checkpoint_io import SafeCheckpointIO
from deqcert.training.classifier import DEQClassifier
from deqcert.training.objectives import CATRS, Consistency, Gaussian, LipschitzMargin, Objective, SmoothAdv
from deqcert.training.regularization import JacobianRegularization
from deqcert.training.worst_case import WorstCase

__all__ = [
    "CATRS",
    "PGD",
    "Consistency",
    "DEQClassifier",
    "Gaussian",
    "JacobianRegularization",
    "LipschitzMargin",
    "Objective",
    "SafeCheckpointIO",
    "SmoothAdv",
    "WorstCase",
]
