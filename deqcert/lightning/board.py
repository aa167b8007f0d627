"""What TensorBoard shows of a certification run besides its curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor

from deqcert.lightning.hooks import CertificationRun
from deqcert.lightning.hyperparameters import log_hyperparameters
from deqcert.report import ShownExample, plot_curves, plot_examples
from deqcert.runs import Summary
from deqcert.seeding import Purpose
from deqcert.smoothing.noise import Stream, noisy_batches
from deqcert.statistics import Certificate, CertificationRule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = 16
"""Images on the page."""

_LAYOUT = {
    "certify": {
        "certified accuracy at radius": ["Multiline", ["certify_accuracy/.*"]],
        "ACR and abstention": ["Multiline", ["certify/acr", "certify/abstention"]],
        "cell evaluations per noisy sample": ["Multiline", ["certify_cost/nfe_per_sample_.*"]],
    }
}


class CertificationBoard:
    """Draws a run into the TensorBoard loggers of a trainer; does nothing if there are none.

    Args:
        loggers: The loggers of the trainer.
        run: The run.
        name: Its name in figures.
    """

    def __init__(self, loggers: Sequence[Logger], run: CertificationRun, name: str) -> None:
        self._boards = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
        self._run = run
        self._name = name
        self._drawn = 0
        for board in self._boards:
            board.experiment.add_custom_scalars(_LAYOUT)

    def update(self, certificates: Sequence[Certificate]) -> None:
        """Draw again once there are 16, 32, 64, … images: a long run has few pictures, a young one has some."""
        count = len(certificates)
        if count >= _PAGE and count & (count - 1) == 0:
            self.draw(certificates)

    def draw(self, certificates: Sequence[Certificate]) -> None:
        """Draw the curve, the histogram of radii and the page of images, unless that has been done."""
        count = len(certificates)
        if count == self._drawn:
            return
        self._drawn = count
        radii = torch.tensor([certificate.radius for certificate in certificates])
        for board in self._boards:
            board.experiment.add_histogram("certify/radius", radii, count)
            board.experiment.add_figure("certify/certified_accuracy", plot_curves({self._name: certificates}), count)
            board.experiment.add_figure("certify/images", self._page(certificates), count)

    def finish(self, rule: CertificationRule, summary: Summary) -> None:
        """Log the settings with what came of them, for the table of hyperparameters."""
        settings = {"run": self._name, "alpha": rule.alpha, "smoothing": self._run.identity["smoothing"]}
        settings["sampling"] = self._run.identity["sampling"]
        results = {
            "certify/acr": summary.average_certified_radius,
            "certify/abstention": summary.abstention_rate,
            "certify_cost/seconds_per_image": summary.seconds_per_image,
            "certify_cost/nfe_per_sample": summary.nfe_total,
        }
        for radius, accuracy in zip(summary.radii, summary.certified_accuracy, strict=True):
            results[f"certify_accuracy/at_{radius:g}"] = accuracy
        log_hyperparameters(self._boards, settings, results, step=summary.examples)

    def _page(self, certificates: Sequence[Certificate]) -> Figure:
        positions = {index: position for position, index in enumerate(self._run.examples.indices)}
        shown: list[ShownExample] = []
        for certificate in sorted(certificates, key=lambda each: each.index):
            if certificate.index in positions and len(shown) < _PAGE:
                image, _, _ = self._run.examples[positions[certificate.index]]
                shown.append(ShownExample(_array(image), _array(self._noisy(image, certificate.index)), certificate))
        return plot_examples(shown, self._run.examples.classes)

    def _noisy(self, image: Tensor, index: int) -> Tensor:
        """Return a noisy sample for the eye."""
        stream, smoothing = Stream(self._run.seed, index), self._run.smoothing
        sizes = {"sigma": smoothing.sigma, "count": 1, "batch_size": 1}
        return next(noisy_batches(image, stream, Purpose.SELECTION, noise=smoothing.noise, **sizes))[0]  # type: ignore[arg-type]


def _array(image: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = image.numpy(force=True)
    return array
