"""What TensorBoard shows of a certification run besides its curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from deqcert.lightning.hooks import CertificationRun
from deqcert.report import plot_curves
from deqcert.statistics import Certificate

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

    def finish(self, certificates: Sequence[Certificate], alpha: float, metrics: Mapping[str, float]) -> None:
        """Draw the end, and log the settings with what came of them for the table of hyperparameters."""
        if len(certificates) > self._drawn:
            self._draw(certificates)
        settings = {"run": self._name, "alpha": alpha}
        settings |= {key: self._run.identity[key] for key in ("smoothing", "sampling")}
        for board in self._boards:
            board.log_hyperparams(settings, dict(metrics), step=len(certificates))

    def _draw(self, certificates: Sequence[Certificate]) -> None:
        """Draw the curve and the histogram of radii."""
        self._drawn = count = len(certificates)
        radii = torch.tensor([certificate.radius for certificate in certificates])
        for board in self._boards:
            board.experiment.add_histogram("certify/radius", radii, count)
            board.experiment.add_figure("certify/certified_accuracy", plot_curves({self._name: certificates}), count)
