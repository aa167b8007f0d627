"""Training a deep equilibrium classifier so that it can be certified."""

from deqcert.training.classifier import DEQClassifier
from deqcert.training.regularization import JacobianRegularization

__all__ = ["DEQClassifier", "JacobianRegularization"]
