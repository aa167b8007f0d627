"""From votes to certificates, metrics, files and TensorBoard."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torchmetrics import MetricCollection
from tqdm import tqdm

from deqcert.files import file_digest
from deqcert.lightning.board import CertificationBoard
from deqcert.lightning.forecast import Forecast
from deqcert.lightning.hooks import CertificationCallback, CertificationRun
from deqcert.lightning.methods import Method, Smoothed
from deqcert.metrics.certified import AbstentionRate, AverageCertifiedRadius, CertifiedAccuracy
from deqcert.names import checkpoint_path
from deqcert.report import (
    DETERMINISTIC,
    format_text,
    plot_curves,
    run_settings,
    save_figure,
    step_limit_caution,
    summary_table,
)
from deqcert.runs import automatic_radii, certify_all, votes_digest, write_results
from deqcert.statistics import AuditRule, Certificate, CertificationRule, Cost, Record, Sides

_RADII_WITHOUT_NOISE = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


class CertifiedRadius(CertificationCallback):
    """Certifies the radius of every image and reports the run.

    Before the first image is done it prints the largest radius that n and alpha can give, and what the run will cost.
    It logs the running ACR, certified accuracies, abstention rate and cost, to TensorBoard also the curve and the
    radii; at the end it writes ``certificates.tsv`` (the field's format), ``certificates.json`` and ``curve.png``
    beside the ledger and prints a table.

    Args:
        alpha: Probability with which a certificate may be false, in (0, 1).
        alpha_audit: Share of alpha that the audit may use by the exact and the binomial rule, in (0, alpha); null =
            half.
        audit: Rule for audited votes: joint, exact, binomial, or published (not sound, for comparison only).
        sides: "one" bounds p_A only, as published tables do; "two" bounds p_B of the runner-up as well.
        alpha_b: Share of alpha for the bound on p_B, in (0, alpha); null = a tenth. Two sides only.
        radii: Radii of the certified accuracies, in l2 pixel units; null = chosen from sigma, alpha and n. The only
            setting that a run without noise takes.

    Raises:
        SettingError: If a setting is out of range.
    """

    def __init__(
        self,
        alpha: float = 0.001,
        alpha_audit: float | None = None,
        audit: AuditRule = "joint",
        sides: Sides = "one",
        alpha_b: float | None = None,
        radii: list[float] | None = None,
    ) -> None:
        self.rule: CertificationRule = CertificationRule(alpha, alpha_audit, audit, sides, alpha_b)
        self.radii = radii
        if radii is not None:
            CertifiedAccuracy(radii)  # reports bad radii before any work

    def on_certify_start(self, trainer: Trainer, module: LightningModule, run: CertificationRun) -> None:
        """Begin with the votes that the ledger already holds."""
        self._run = run
        self._name = f"{run.name}{_manner(run.method)}"
        self._radii = self.radii or _radii(run.method)
        # Rank 0 hears of every image, so nothing is left to reduce; a collective would wait for busy ranks.
        self._metrics = MetricCollection(
            {
                "acr": AverageCertifiedRadius(sync_on_compute=False),
                "accuracy": CertifiedAccuracy(self._radii, sync_on_compute=False),
                "abstention": AbstentionRate(sync_on_compute=False),
            },
            compute_groups=False,
        )
        self._certificates: list[Certificate] = []
        self._cost = Cost(0, 0, 0, 0, 0, 0.0, 0.0)
        self._board = CertificationBoard(trainer.loggers, run, self._name)
        if run.done:
            self._certify(run.done)
        if trainer.is_global_zero and isinstance(run.method, Smoothed):
            sampling, rule = run.method.sampling, run.method.rule
            largest = sampling.largest_radius(rule, run.method.smoothing.sigma)
            tqdm.write(f"n = {sampling.n} and alpha = {rule.alpha:g} certify radii up to about {largest:.3g}")

    def on_certify_forecast(self, trainer: Trainer, module: LightningModule, forecast: Forecast) -> None:
        """Print what the run will cost."""
        tqdm.write(str(forecast))

    def on_certify_example_end(self, trainer: Trainer, module: LightningModule, votes: Record) -> None:
        """Update and log the running metrics."""
        self._certify([votes])
        if trainer.is_global_zero:
            metrics = self.running_metrics()
            trainer.progress_bar_metrics.update(metrics)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=len(self._certificates))
            self._board.update(self._certificates)

    def _certify(self, votes: Sequence[Record]) -> None:
        certificates = certify_all(self._run.method.rule, votes)
        self._certificates += certificates
        self._cost = Cost(*map(sum, zip(self._cost, *(each.cost for each in votes), strict=True)))
        self._metrics.update(
            prediction=torch.tensor([each.prediction for each in certificates]),
            radius=torch.tensor([each.radius for each in certificates], dtype=torch.float64),
            label=torch.tensor([each.label for each in certificates]),
        )

    def running_metrics(self) -> dict[str, float]:
        """Return the metrics over all images so far, with the cost per image or noisy sample."""
        values, images, cost = self._metrics.compute(), len(self._certificates), self._cost
        metrics = {
            "certify/acr": float(values["acr"]),
            "certify/abstention": float(values["abstention"]),
            "certify_cost/nfe_per_sample_fast": cost.nfe_fast / cost.samples,
            "certify_cost/nfe_per_sample_audit": cost.nfe_audit / cost.samples,
            "certify_cost/seconds_per_image": cost.seconds / images,
        }
        for radius, accuracy in zip(self._radii, values["accuracy"].reshape(-1).tolist(), strict=True):
            metrics[f"certify_accuracy/at_{radius:g}"] = accuracy
        if math.isfinite(cost.residual):
            metrics["certify_cost/residual"] = cost.residual / images
        if cost.audited:
            metrics["certify_cost/mismatch_rate"] = cost.mismatches / cost.audited
        return metrics

    def on_certify_end(self, trainer: Trainer, module: LightningModule, votes: Sequence[Record]) -> None:
        """Write the files, print the table, and log the curve and the radii."""
        if not trainer.is_global_zero:
            return
        run, rule = self._run, self._run.method.rule
        certificates = certify_all(rule, votes)
        save_figure(plot_curves({self._name: certificates}), run.directory / "curve.png")
        path = str(trainer.ckpt_path) if trainer.ckpt_path else None
        settings: dict[str, object] = {"checkpoint": path}
        settings |= {"checkpoint_sha256": path and file_digest(checkpoint_path(path))}
        settings |= {"classes": list(run.examples.classes), **run.identity}
        summary = write_results(run.directory, votes, rule, settings, radii=self._radii)
        self._board.finish(certificates, path, self.running_metrics())
        print(format_text(summary_table({self._name: summary})))
        if caution := step_limit_caution(run.identity, votes):
            print(f"warning: {caution}")
        verify = shlex.join(["deqcert", "verify", str(run.directory)])
        said = ", ".join([f"{len(votes)} images", *run_settings(run.identity, rule, votes)])
        print(f"{said}; results in {run.directory}")
        print(f"votes sha256 {votes_digest(votes)}; {verify} computes everything again")


def _manner(method: Method) -> str:
    """Say what else the row of a table is called by: audit rule, two sides, or that there is no failure probability."""
    if not isinstance(method, Smoothed):
        return f" {DETERMINISTIC}"
    audited = f" {method.rule.audit}" if hasattr(method.sampling, "audit") else ""
    return f"{audited}{' two-sided' if method.rule.sides == 'two' else ''}"


def _radii(method: Method) -> list[float]:
    if isinstance(method, Smoothed):
        return list(automatic_radii(method.smoothing.sigma, method.rule.alpha, method.sampling.n))
    return list(_RADII_WITHOUT_NOISE)
