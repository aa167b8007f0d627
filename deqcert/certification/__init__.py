"""The Lightning seam of certification: the trainer with ``certify``, its loop and the callback hooks."""

from deqcert.certification.hooks import CertificationCallback, CertificationRun
from deqcert.certification.trainer import Trainer

__all__ = ["CertificationCallback", "CertificationRun", "Trainer"]
