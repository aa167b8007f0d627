"""How fast a network will certify, measured while it is validated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from deqcert.errors import SettingError, require_count
from deqcert.files import write_atomically
from deqcert.models import DEQ
from deqcert.smoothing import ConvergenceReport, ConvergenceSettings, MismatchCount, convergence_report
from deqcert.solvers import Anderson

_TREND_STEPS = (1, 3, 5, 10)
"""Steps whose residuals are logged and printed, besides the last one."""


class ConvergenceHealth(Callback):
    """Measures residuals over solver steps, cold and warm, and the mismatch rates of cheap warm-started labels.

    Together they decide how fast serialized smoothing (Gao et al., NeurIPS 2024) certifies: how few warm-started
    steps still give the labels of the base classifier. Each validation logs ``convergence/cold/residual_at_k``,
    ``convergence/warm/residual_at_k`` and ``convergence_mismatch/after_k`` and writes ``convergence.tsv`` into
    the log directory; the verb ``validate`` prints the table.

    Only rank 0 measures, on the first images of its first validation batch; weight averaging is seen as validated.

    Args:
        images: Images to measure, at most one batch of them, >= 1.
        max_steps: Anderson steps of the base classifier, and the length of the curves, >= 1.
        mismatch_steps: Warm-started steps whose cheap predictions are audited, distinct, from 1 to max_steps.
        copies: Noisy samples per image that are classified cheaply and audited, >= 1.
        every_n_epochs: In training, measure every so many epochs, >= 1.
        seed: Seed of the noise, in [0, 2^64).

    Raises:
        SettingError: If a setting is out of range; in ``setup``, if the module has no DEQ ``network`` or no ``sigma``.
    """

    def __init__(
        self,
        images: int = 8,
        max_steps: int = 30,
        mismatch_steps: Sequence[int] = (1, 2, 3, 5),
        copies: int = 64,
        every_n_epochs: int = 1,
        seed: int = 0,
    ) -> None:
        require_count("images", images, minimum=1)
        require_count("every_n_epochs", every_n_epochs, minimum=1)
        self.images = images
        self.every_n_epochs = every_n_epochs
        self.settings = ConvergenceSettings(
            solver=Anderson(max_steps=max_steps), mismatch_steps=tuple(mismatch_steps), copies=copies, seed=seed
        )
        self._report: ConvergenceReport | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take sigma from the module; find the directory of the table."""
        if stage not in (TrainerFn.FITTING, TrainerFn.VALIDATING):
            return
        owner = type(pl_module).__name__
        network, sigma = getattr(pl_module, "network", None), getattr(pl_module, "sigma", None)
        if not isinstance(network, DEQ):
            raise SettingError(f"{owner}.network", type(network).__name__, "must be a DEQ for ConvergenceHealth")
        if not isinstance(sigma, (int, float)):
            raise SettingError(f"{owner}.sigma", sigma, "must be a number for ConvergenceHealth")
        self.settings = dataclasses.replace(self.settings, sigma=sigma)
        # A broadcast, so not where rank 0 works alone.
        self._directory = Path(trainer.log_dir or trainer.default_root_dir)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: tuple[Tensor, Tensor, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure on the first batch: at the end of the epoch, averaged weights may already be swapped out."""
        if batch_idx == dataloader_idx == 0 and trainer.is_global_zero and self._due(trainer):
            images, _, indices = (part[: self.images] for part in batch)
            network = cast(DEQ, pl_module.network)
            with torch.no_grad(), trainer.precision_plugin.val_step_context():
                self._report = convergence_report(network, images, indices, self.settings)

    def _due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        return trainer.state.fn == TrainerFn.VALIDATING or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the measurement, write the table and, in ``validate``, print it."""
        if self._report is None:
            return
        report, self._report = self._report, None
        for logger in trainer.loggers:
            logger.log_metrics(_metrics(report), step=trainer.global_step)
        path = self._directory / "convergence.tsv"
        write_atomically(path, _tsv(report).encode())
        if trainer.state.fn == TrainerFn.VALIDATING:
            pl_module.print(_table(report))  # unlike print, it leaves the progress bar whole
            pl_module.print(f"{report.images} images, sigma = {self.settings.sigma:g}; all steps in {path}")


def _metrics(report: ConvergenceReport) -> dict[str, float]:
    metrics = {
        f"convergence/{name}/residual_at_{step}": curve[step - 1]
        for name, curve in (("cold", report.cold), ("warm", report.warm))
        for step in _trend_steps(report)
    }
    rates = {f"convergence_mismatch/after_{count.steps}": count.rate for count in report.mismatches if count.audited}
    return metrics | rates


def _trend_steps(report: ConvergenceReport) -> list[int]:
    last = len(report.cold)
    return [*(step for step in _TREND_STEPS if step < last), last]


def _tsv(report: ConvergenceReport) -> str:
    """Return one line for each step; the last two columns are empty where labels were not audited."""
    counts = {count.steps: count for count in report.mismatches}
    lines = ["step\tcold\twarm\tmismatches\taudited"]
    for step, (cold, warm) in enumerate(zip(report.cold, report.warm, strict=True), start=1):
        audit = f"{counts[step].mismatches}\t{counts[step].audited}" if step in counts else "\t"
        lines.append(f"{step}\t{cold:.6g}\t{warm:.6g}\t{audit}")
    return "\n".join([*lines, ""])


def _table(report: ConvergenceReport) -> str:
    """Return the steps that matter as plain text."""
    counts = {count.steps: count for count in report.mismatches}
    header = f"{'step':>4} {'cold':>9} {'warm':>9} {'mismatch':>9} {'of audited':>11}  95% interval"
    lines = ["relative residual from the cold and the warm start; labels unlike the base classifier's", header]
    lines.append("-" * max(map(len, lines)))
    for step in sorted({*counts, *_trend_steps(report)}):
        residuals = f"{step:>4} {report.cold[step - 1]:>9.2e} {report.warm[step - 1]:>9.2e}"
        lines.append(f"{residuals} {_audit_cells(counts[step])}" if step in counts else residuals)
    return "\n".join(lines)


def _audit_cells(count: MismatchCount) -> str:
    low, high = count.interval()
    rate = "-" if math.isnan(count.rate) else f"{100 * count.rate:.1f}%"
    return f"{rate:>9} {f'{count.mismatches}/{count.audited}':>11}  {100 * low:.1f}% to {100 * high:.1f}%"
