"""What to do with a network that has just been trained."""

from __future__ import annotations

import shlex
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class FitSummary(Callback):
    """Ends ``fit`` by printing the checkpoint, its accuracy under noise and the command that certifies it."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print in the first process, however training came to its end."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast, so on every rank
        saver = trainer.checkpoint_callback
        path = (saver.last_model_path or saver.best_model_path) if isinstance(saver, ModelCheckpoint) else ""
        if not path:
            pl_module.print("no checkpoint was saved")
            return
        accuracy = trainer.callback_metrics.get("val/accuracy_under_noise")
        found = "not validated" if accuracy is None else f"{100 * float(accuracy):.1f} % in the last validation"
        sigma = getattr(pl_module, "sigma", None)
        command = ["deqcert", "certify", "--config", str(folder / "fit.yaml"), "--ckpt_path", path]
        if sigma:  # without noise in training, noise in certification is the user's choice
            command += ["--smoothing.sigma", str(sigma)]
        command += ["--ledger_dir", str(folder / "certify")]
        pl_module.print(f"checkpoint: {path}")
        pl_module.print(f"accuracy under noise (sigma = {sigma}): {found}")
        pl_module.print(f"certify it: {shlex.join(command)}")
