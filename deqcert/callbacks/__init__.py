"""Callbacks: certificates and their metrics, progress, and the health of a network that is to be certified."""

from deqcert.callbacks.certified_radius import CertifiedRadius
from deqcert.callbacks.convergence_health import ConvergenceHealth
from deqcert.callbacks.hyperparameters import log_hyperparameters
from deqcert.callbacks.progress import CertificationProgress

__all__ = ["CertificationProgress", "CertifiedRadius", "ConvergenceHealth", "log_hyperparameters"]
