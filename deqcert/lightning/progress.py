"""The progress bar of a certification run."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from tqdm import tqdm

from deqcert.lightning.cost import RunningCost
from deqcert.lightning.hooks import CertificationCallback, CertificationRun
from deqcert.statistics import Votes


class CertificationProgress(CertificationCallback):
    """Shows images done, images/s, time left, and over all images so far ACR and cell evaluations per noisy sample.

    The evaluations include the audit, as in the tables. Only rank 0 shows anything.
    """

    def on_certify_start(self, trainer: Trainer, module: LightningModule, run: CertificationRun) -> None:
        """Open the bar at what the ledger holds."""
        self._cost = RunningCost()
        for votes in run.done:
            self._cost.add(votes)
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
        self._cost.add(votes)
        shown = {"NFE/sample": f"{sum(self._cost.evaluations):.1f}"}
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
