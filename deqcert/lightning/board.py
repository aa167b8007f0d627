"""What TensorBoard shows of a certification run besides its curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from deqcert.lightning.hooks import CertificationRun
from deqcert.lightning.methods import Smoothed
from deqcert.report import plot_curves
from deqcert.statistics import Certificate

_THUMBNAIL = 2.2, 1.65  # inches: TensorBoard shows pictures small, and letters are then as large as its own
_LAYOUT = {
    "certify": {
        "certified accuracy at radius": ["Multiline", ["certify_accuracy/.*"]],
        "ACR and abstention": ["Multiline", ["certify/acr", "certify/abstention"]],
        "cell evaluations per noisy sample": ["Multiline", ["certify_cost/nfe_per_sample_.*"]],
    }
}


class CertificationBoard:
    """Draws a run by its ``name`` into the TensorBoard loggers of a trainer; does nothing if there are none."""

    def __init__(self, loggers: Sequence[Logger], run: CertificationRun, name: str) -> None:
        self._boards = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
        self._run, self._name = run, name
        self._drawn = 0
        for board in self._boards:
            board.experiment.add_custom_scalars(_LAYOUT)

    def update(self, certificates: Sequence[Certificate]) -> None:
        """Draw again once there are 16, 32, 64, … images: a long run has few pictures, a young one has some."""
        count = len(certificates)
        if count >= 16 and count & (count - 1) == 0:
            self._draw(certificates)

    def finish(
        self,
        certificates: Sequence[Certificate],
        checkpoint: str | None,
        metrics: Mapping[str, float],
    ) -> None:
        """Draw the end, and log the settings with what came of them for the table of hyperparameters.

        What one looks for comes first: sigma, checkpoint, strategy, n and the rule.
        """
        if len(certificates) > self._drawn:
            self._draw(certificates)
        method = self._run.method
        settings: dict[str, Any] = {"checkpoint": checkpoint or "none", "strategy": self._name}
        if isinstance(method, Smoothed):
            settings = {"sigma": method.smoothing.sigma, **settings, "n": method.sampling.n}
        settings |= {**asdict(method.rule), **method.settings()}
        for board in self._boards:
            board.log_hyperparams(settings, dict(metrics), step=len(certificates))

    def _draw(self, certificates: Sequence[Certificate]) -> None:
        """Draw the curve and the histogram of radii."""
        self._drawn = count = len(certificates)
        radii = torch.tensor([certificate.radius for certificate in certificates])
        for board in self._boards:
            curve = plot_curves({self._name: certificates})
            curve.set_size_inches(_THUMBNAIL)
            board.experiment.add_histogram("certify/radius", radii, count)
            board.experiment.add_figure("certify/certified_accuracy", curve, count)
