"""The progress bar of a certification run."""

from __future__ import annotations

import sys

from lightning.pytorch import LightningModule, Trainer
from tqdm import tqdm

from deqcert.lightning.hooks import CertificationCallback, CertificationRun
from deqcert.lightning.sample_progress import SampleProgress
from deqcert.statistics import Record

_LINE_SECONDS = 60  # between two lines of a log about the same images


class CertificationProgress(CertificationCallback):
    """Shows images done, images/s and time left on rank 0.

    Also, over all images so far, evaluations per noisy sample, audit and escalation included, as in the tables; and,
    after a :class:`CertifiedRadius`, the ACR. Of an image that takes longer than a second, a terminal shows how many
    noisy samples are done; a log gets a line about it each minute.
    """

    def on_certify_start(self, trainer: Trainer, module: LightningModule, run: CertificationRun) -> None:
        """Open the bar at what the ledger holds."""
        total, done, hidden = len(run.examples), len(run.done), not trainer.is_global_zero
        self._evaluations = self._samples = 0
        self._postfix, self._line = "", ""
        for votes in run.done:
            self._add(votes)
        self._bar = tqdm(desc="certify", total=total, initial=done, unit="image", dynamic_ncols=True, disable=hidden)
        self._close_if_complete()

    def on_certify_example_end(self, trainer: Trainer, module: LightningModule, votes: Record) -> None:
        """Advance by one image."""
        self._add(votes)
        metrics = trainer.progress_bar_metrics
        acr = f"ACR={metrics['certify/acr']:.3f}, " if "certify/acr" in metrics else ""
        self._postfix = f"{acr}NFE/sample={self._evaluations / self._samples:.1f}"
        self._bar.set_postfix_str(self._postfix, refresh=False)
        self._bar.update()
        self._close_if_complete()

    def on_certify_samples(self, trainer: Trainer, module: LightningModule, progress: SampleProgress) -> None:
        """Show how far the current images are."""
        if sys.stderr.isatty():
            self._bar.set_postfix_str(", ".join(filter(None, [self._postfix, str(progress)])))
            return
        lines = int(progress.seconds // _LINE_SECONDS)
        line = f"{lines} {progress.indices}"
        if lines and line != self._line:
            self._line = line
            tqdm.write(str(progress), file=sys.stderr)

    def _add(self, votes: Record) -> None:
        self._evaluations += votes.cost.nfe_fast + votes.cost.nfe_audit
        self._samples += votes.cost.samples

    def _close_if_complete(self) -> None:
        """End the line of the bar before other callbacks print the summary."""
        if self._bar.n >= self._bar.total:
            self._bar.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Close the bar so that the error stands below it."""
        if hasattr(self, "_bar"):
            self._bar.close()
