"""Errors that a user can cause and fix: the command line prints them without a traceback, which all others keep."""

from __future__ import annotations

import math
import signal

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that SIGTERM has ended, as a shell reports it: the same command resumes it."""


class DeqcertError(Exception):
    """Base of every error whose message is meant for the user."""


class SettingError(DeqcertError, ValueError):
    """A setting, named as the user writes it, is outside of what is ``allowed``, e.g. ``"must be > 0"``."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field} = {value!r}: {allowed}")


class DataError(DeqcertError, ValueError):
    """A data set, an image or a label cannot be used."""


class CheckpointError(DeqcertError):
    """A checkpoint is missing, damaged or does not belong to this model."""


class TrainingError(DeqcertError):
    """Training cannot go on."""


class LedgerError(DeqcertError):
    """A ledger of votes is damaged or belongs to another run."""


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise :class:`SettingError` unless ``condition`` holds."""
    if not condition:
        raise SettingError(field, value, allowed)


def require_count(field: str, value: int, minimum: int) -> None:
    """Raise :class:`SettingError` unless ``value`` is an integer >= ``minimum``; neither a bool nor 2.0 is one."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and value >= minimum, field, value, f"must be an integer >= {minimum}")


def is_real(value: object) -> bool:
    """Whether ``value`` is an int or a float, NaN and infinities included; a parser may let None pass for either."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def require_nonnegative(field: str, value: float) -> None:
    """Raise :class:`SettingError` unless ``value`` is finite and >= 0."""
    require(is_real(value) and math.isfinite(value) and value >= 0, field, value, "must be finite and >= 0")


def reason(error: Exception) -> str:
    """Return what went wrong; of an error of the system in words alone, for messages that name the file themselves."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
