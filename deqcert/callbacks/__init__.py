"""Callbacks of a certification run: certificates and their metrics, and progress."""

from deqcert.callbacks.certified_radius import CertifiedRadius
from deqcert.callbacks.progress import CertificationProgress

__all__ = ["CertificationProgress", "CertifiedRadius"]
