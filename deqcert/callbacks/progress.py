"""The progress bar of a certification run."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from tqdm import tqdm

from deqcert.certification.hooks import CertificationCallback, CertificationRun
from deqcert.statistics import Votes


class CertificationProgress(CertificationCallback):
    """Shows images done, images/s, time left, running ACR and cell evaluations per sample on rank 0."""

    def on_certify_start(self, trainer: Trainer, module: LightningModule, run: CertificationRun) -> None:
        """Open the bar at what the ledger holds."""
        self._bar = tqdm(
            desc="certify",
            total=run.total,
            initial=len(run.done),
            unit="image",
            dynamic_ncols=True,
            disable=not trainer.is_global_zero,
        )
        self._close_if_complete()

    def on_certify_example_end(self, trainer: Trainer, module: LightningModule, votes: Votes) -> None:
        """Advance by one image."""
        evaluations = (votes.nfe_fast + votes.nfe_audit) / (votes.n0 + votes.n)
        shown = {"NFE/sample": f"{evaluations:.1f}"}
        if (acr := trainer.progress_bar_metrics.get("certify/acr")) is not None:
            shown = {"ACR": f"{acr:.3f}", **shown}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
        self._close_if_complete()

    def _close_if_complete(self) -> None:
        """End the line of the bar before other callbacks print the summary."""
        if self._bar.n >= self._bar.total:
            self._bar.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Close the bar so that the error stands below it."""
        if hasattr(self, "_bar"):
            self._bar.close()
