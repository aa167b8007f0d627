"""Callbacks: certificates and metrics, progress, health of a network to be certified, training by the clock."""

from deqcert.callbacks.certified_radius import CertifiedRadius
from deqcert.callbacks.convergence_health import ConvergenceHealth
from deqcert.callbacks.fit_summary import FitSummary
from deqcert.callbacks.hyperparameters import log_hyperparameters
from deqcert.callbacks.progress import CertificationProgress
from deqcert.callbacks.standing_record import StandingRecord
from deqcert.callbacks.time_budget import TimeBudget

__all__ = [
    "CertificationProgress",
    "CertifiedRadius",
    "ConvergenceHealth",
    "FitSummary",
    "StandingRecord",
    "TimeBudget",
    "log_hyperparameters",
]
