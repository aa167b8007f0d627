"""Warnings about a network whose certificates may not say what one expects."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from deqcert.report import CONVERGENCE_ADVICE
from deqcert.smoothing import Engine, SolvedClassifier

_UNCONVERGED = 0.1  # share of solves that may end above their tolerance without a word


def warn_of_another_sigma(module: LightningModule, sigma: float) -> None:
    """Say so if the checkpoint of ``module`` was trained with other noise than that of g."""
    trained = getattr(module, "checkpoint_sigma", None)
    if trained not in (None, sigma):
        rank_zero_warn(f"The checkpoint was trained at sigma = {trained}, but is certified at sigma = {sigma}.")


def warned_of_unconverged(engine: Engine) -> bool:
    """Say so, and return True, if many solves so far ended at their step limit: the tolerance says nothing about f."""
    share = engine.unconverged
    if share <= _UNCONVERGED or not isinstance(engine.base, SolvedClassifier):
        return False
    solver = engine.base.solver
    rank_zero_warn(
        f"{share:.0%} of the solves of the base classifier ended after {solver.max_steps} steps above "
        f"their tolerance of {solver.tolerance:g}. The mean relative residual is {engine.mean_residual:.2g}. "
        f"{CONVERGENCE_ADVICE}"
    )
    return True
