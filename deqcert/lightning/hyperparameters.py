"""The settings of a run beside its results, in TensorBoard's table of hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

_CLASS = ("class", "class_path")


def log_hyperparameters(
    loggers: Sequence[Logger], settings: Mapping[str, Any], results: Mapping[str, float | None], step: int
) -> None:
    """Log a row of the table.

    Args:
        loggers: The loggers of a trainer; those of TensorBoard take part.
        settings: Nested settings; ``class`` or ``class_path`` name the class of the group they are in.
        results: Final metrics by the tags of their curves; None is left out.
        step: Where the curves end.
    """
    known = {tag: value for tag, value in results.items() if value is not None}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(flat_settings(settings), known, step=step)


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return nested settings as one level of numbers and words, which is all that TensorBoard shows.

    Example:
        >>> flat_settings({"solver": {"class_path": "deqcert.solvers.Anderson", "init_args": {"max_steps": 3}}})
        {'solver': 'Anderson', 'solver.max_steps': 3}
    """
    flat: dict[str, bool | int | float | str] = {}
    for key, value in settings.items():
        name = f"{prefix}.{key}" if prefix else key
        if key in _CLASS:
            flat[prefix or key] = str(value).rpartition(".")[2]
        elif isinstance(value, Mapping):
            flat |= flat_settings(value, prefix if key == "init_args" else name)
        elif isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
            flat[name] = value
        else:
            flat[name] = str(value)
    return flat
