"""The seam to Lightning: the trainer with ``certify``, its loop and hooks, and all callbacks."""

from deqcert.lightning.certified_radius import CertifiedRadius
from deqcert.lightning.collect_weights import CollectWeights
from deqcert.lightning.convergence_health import ConvergenceHealth
from deqcert.lightning.forecast import Forecast
from deqcert.lightning.hooks import CertificationCallback, CertificationRun
from deqcert.lightning.progress import CertificationProgress
from deqcert.lightning.standing_record import StandingRecord
from deqcert.lightning.time_budget import TimeBudget
from deqcert.lightning.trainer import Trainer

__all__ = [
    "CertificationCallback",
    "CertificationProgress",
    "CertificationRun",
    "CertifiedRadius",
    "CollectWeights",
    "ConvergenceHealth",
    "Forecast",
    "StandingRecord",
    "TimeBudget",
    "Trainer",
]
