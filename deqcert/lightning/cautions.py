"""Warnings about a network whose certificates may not say what one expects."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from deqcert.smoothing import Engine, SolvedClassifier

_UNCONVERGED = 0.1  # share of solves that may end above their tolerance without a word


def warn_of_another_sigma(module: LightningModule, sigma: float) -> None:
    """Say so if the checkpoint of ``module`` was trained with other noise than that of g."""
    trained = getattr(module, "checkpoint_sigma", None)
    if trained not in (None, sigma):
        rank_zero_warn(f"The checkpoint was trained at sigma = {trained}, but is certified at sigma = {sigma}.")


def warn_of_unconverged(engine: Engine) -> None:
    """Say so if many solves ended at their step limit: the tolerance then says nothing about f."""
    share = engine.unconverged
    if share > _UNCONVERGED and isinstance(engine.base, SolvedClassifier):
        solver = engine.base.solver
        rank_zero_warn(
            f"{share:.0%} of the solves of the base classifier ended after {solver.max_steps} steps above "
            f"their tolerance of {solver.tolerance:g}. "
            "Certificates are about the network solved this far, which is not at its fixed points."
        )
