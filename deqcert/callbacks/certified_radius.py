"""From votes to certificates, metrics, files and TensorBoard."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torchmetrics import MetricCollection

from deqcert.callbacks.board import CertificationBoard
from deqcert.callbacks.cost import RunningCost
from deqcert.certification.hooks import CertificationCallback, CertificationRun
from deqcert.files import file_digest
from deqcert.metrics.certified import AbstentionRate, AverageCertifiedRadius, CertifiedAccuracy
from deqcert.report import format_text, plot_curves, save_figure, summary_table
from deqcert.runs import automatic_radii, certify_votes, votes_digest, write_results
from deqcert.statistics import AuditRule, Certificate, CertificationRule, Votes


class CertifiedRadius(CertificationCallback):
    """Certifies the radius of every image and reports the run.

    Logs the running ACR, certified accuracies, abstention rate and cost, to TensorBoard also the curve, the radii and a
    page of images; at the end writes ``certificates.tsv`` (the field's format), ``certificates.json`` and ``curve.png``
    beside the ledger and prints a table.

    Args:
        alpha: Probability with which a certificate may be false, in (0, 1).
        alpha_audit: Share of alpha that the audit may use, in (0, alpha); null = one half.
        audit: Rule for audited votes: exact, binomial, or published (not sound, for comparison only).
        radii: Radii of the certified accuracies, in l2 pixel units; null = chosen from sigma, alpha and n.

    Raises:
        SettingError: If a setting is out of range.
    """

    def __init__(
        self,
        alpha: float = 0.001,
        alpha_audit: float | None = None,
        audit: AuditRule = "exact",
        radii: list[float] | None = None,
    ) -> None:
        self.rule: CertificationRule = CertificationRule(alpha, alpha_audit, audit)
        self.radii = radii
        if radii is not None:
            CertifiedAccuracy(radii)  # reports bad radii before any work

    def on_certify_start(self, trainer: Trainer, module: LightningModule, run: CertificationRun) -> None:
        """Begin with the votes that the ledger already holds."""
        self._run = run
        self._radii = self.radii or list(automatic_radii(run.smoothing.sigma, self.rule.alpha, run.sampling.n))
        # Rank 0 hears of every image, so nothing is left to reduce; a collective would wait for busy ranks.
        self._metrics = MetricCollection(
            {
                "acr": AverageCertifiedRadius(sync_on_compute=False),
                "accuracy": CertifiedAccuracy(self._radii, sync_on_compute=False),
                "abstention": AbstentionRate(sync_on_compute=False),
            },
            compute_groups=False,
        )
        self._cost = RunningCost()
        self._certificates: list[Certificate] = []
        for votes in run.done:
            self._certify(votes)
        if trainer.is_global_zero:
            self._board = CertificationBoard(trainer.loggers, run, self.run_name)

    def on_certify_example_end(self, trainer: Trainer, module: LightningModule, votes: Votes) -> None:
        """Update and log the running metrics."""
        self._certify(votes)
        if not trainer.is_global_zero:
            return
        metrics = self.running_metrics()
        trainer.progress_bar_metrics.update(metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=len(self._certificates))
        self._board.update(self._certificates)

    def running_metrics(self) -> dict[str, float]:
        """Return the metrics over all images so far, the cost per image or noisy sample included."""
        values = self._metrics.compute()
        fast, audit = self._cost.evaluations
        metrics = {
            "certify/acr": float(values["acr"]),
            "certify/abstention": float(values["abstention"]),
            "certify_cost/nfe_per_sample_fast": fast,
            "certify_cost/nfe_per_sample_audit": audit,
            "certify_cost/seconds_per_image": self._cost.seconds,
        }
        for radius, accuracy in zip(self._radii, values["accuracy"].reshape(-1).tolist(), strict=True):
            metrics[f"certify_accuracy/at_{radius:g}"] = accuracy
        if math.isfinite(self._cost.residual):
            metrics["certify_cost/residual"] = self._cost.residual
        if self._cost.mismatch_rate is not None:
            metrics["certify_cost/mismatch_rate"] = self._cost.mismatch_rate
        return metrics

    def on_certify_end(self, trainer: Trainer, module: LightningModule, votes: Sequence[Votes]) -> None:
        """Write the files, print the table, and log the curve and the radii."""
        if not trainer.is_global_zero:
            return
        name, directory = self.run_name, Path(self._run.directory)
        certificates = certify_votes(votes, self.rule)
        save_figure(plot_curves({name: certificates}), directory / "curve.png")
        settings = {
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "checkpoint_sha256": file_digest(trainer.ckpt_path) if trainer.ckpt_path else None,
            "classes": list(self._run.examples.classes),
            **self._run.identity,
        }
        summary = write_results(directory, votes, self.rule, settings, radii=self._radii)
        self._board.draw(certificates)
        self._board.finish(self.rule, summary)
        print(format_text(summary_table({name: summary})))
        sigma = self._run.smoothing.sigma
        print(f"{len(votes)} images, sigma = {sigma:g}, alpha = {self.rule.alpha:g}; results in {directory}")
        verify = shlex.join(["deqcert", "verify", str(directory)])
        print(f"votes sha256 {votes_digest(votes)}; {verify} computes everything again")

    @property
    def run_name(self) -> str:
        """Name of the run in tables, e.g. ``SRS-3A exact``."""
        name, audited = self._run.name, hasattr(self._run.sampling, "audit")
        return f"{name} {self.rule.audit}" if audited else name

    def _certify(self, votes: Votes) -> None:
        (certificate,) = certify_votes([votes], self.rule)
        self._certificates.append(certificate)
        self._cost.add(votes)
        self._metrics.update(
            prediction=torch.tensor([certificate.prediction]),
            radius=torch.tensor([certificate.radius], dtype=torch.float64),
            label=torch.tensor([certificate.label]),
        )
