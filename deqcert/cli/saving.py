"""What the verbs of the trainer leave behind, and where ``fit`` begins."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from deqcert.deterministic import Deterministic, IntervalBounds, Lipschitz
from deqcert.errors import require
from deqcert.lightning import CertificationCallback, CertificationRun

LAST, LAST_OR_NEW = "last", "last_or_new"
_OTHER_RUN = "another trainer.logger.version or trainer.default_root_dir is another run"


class SaveVerbConfig(SaveConfigCallback, CertificationCallback):
    """Saves the configuration as ``fit.yaml``, … in the log directory, ``certify.yaml`` beside the ledger.

    After fit the settings of model and data go to TensorBoard, with the last metrics, and it is printed where the
    checkpoint is, its accuracy under noise and the command that certifies it.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save before work begins; certify only after its ledger has accepted the run."""
        if stage != "predict":
            super().setup(trainer, pl_module, stage)

    def on_certify_start(self, trainer: Trainer, module: LightningModule, run: CertificationRun) -> None:
        """Save beside the ledger."""
        if trainer.is_global_zero:
            self.parser.save(self.config, run.directory / self.config_filename, skip_none=False, overwrite=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the settings beside what came of them, and print what to do next."""
        settings = self.config.as_dict()
        chosen = {key: settings[key] for key in ("model", "data")}
        chosen["trainer"] = {key: settings["trainer"][key] for key in ("max_epochs", "max_steps", "precision")}
        results = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(chosen, results, trainer.global_step)
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast, so on every rank
        for line in next_steps(trainer, pl_module, folder):
            pl_module.print(line)


def next_steps(trainer: Any, module: Any, folder: Path) -> Iterator[str]:
    """Yield the lines that end ``fit``, however it came to its end; its configuration is in ``folder``."""
    saver = trainer.checkpoint_callback
    path = (saver.last_model_path or saver.best_model_path) if isinstance(saver, ModelCheckpoint) else ""
    if not path:
        yield "no checkpoint was saved"
        return
    accuracy = trainer.callback_metrics.get("val/accuracy_under_noise")
    found = "not validated" if accuracy is None else f"{100 * float(accuracy):.1f} % in the last validation"
    command = ["deqcert", "certify", "--config", str(folder / "fit.yaml"), "--ckpt_path", path]
    if module.sigma:  # without noise in training, noise in certification is the user's choice
        command += ["--smoothing.sigma", str(module.sigma)]
    elif certification := _without_noise(module.network):
        command += ["--certification", certification.__name__]
    command += ["--ledger_dir", str(folder / "certify")]
    yield f"checkpoint: {path}"
    yield f"accuracy under noise (sigma = {module.sigma}): {found}"
    yield f"certify it: {shlex.join(command)}"


def _without_noise(network: nn.Module) -> type[Deterministic] | None:
    """Return the certificate that a network was built for, boxes first; None if it has none without noise."""
    kinds: tuple[type[Deterministic], ...] = (IntervalBounds, Lipschitz)
    return next((kind for kind in kinds if isinstance(network, kind.contract)), None)


def where_to_begin(trainer: Any, ckpt_path: str | None) -> str | None:
    """Return the ``ckpt_path`` for Lightning's ``fit``, given a file, "last", "last_or_new" or None for a new run.

    Lightning begins anew where ``last`` finds nothing, and writes a ``last-v1.ckpt`` beside the one it finds where
    nothing was to be resumed.

    Raises:
        SettingError: There is nothing to resume, or a new run would leave the checkpoint of another one beside its own.
    """
    if trainer.fast_dev_run or ckpt_path not in (None, LAST, LAST_OR_NEW):
        return ckpt_path
    savers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    found = sorted(path for saver in savers for path in saver._find_last_checkpoints(trainer))
    existing = f"{', '.join(found)} exists; last resumes that run, {_OTHER_RUN}"
    require(ckpt_path is not None or not found, "ckpt_path", ckpt_path, existing)
    nothing = f"there is no last.ckpt to resume; {_OTHER_RUN}, and {LAST_OR_NEW} begins a new run"
    require(ckpt_path != LAST or bool(found), "ckpt_path", ckpt_path, nothing)
    return LAST if found else None
