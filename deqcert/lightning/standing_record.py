"""What is kept of a training without an end: a log, and a state small enough to be committed."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from deqcert.checkpoints import read_checkpoint, save_checkpoint
from deqcert.files import write_atomically

_METRICS = ("accuracy", "accuracy_under_noise", "loss_under_noise", "forward_residual", "spectral_radius")
_COLUMNS = ("epochs", "step", "hours", "core_hours", *_METRICS)


class StandingRecord(Callback):
    """After every validation of ``fit``, writes ``log.tsv`` and ``state.ckpt``.

    A row of the log has epochs and optimizer steps, hours and core hours (CPU time of the first process, without its
    workers) since the run began, and what validation found. The state is the last checkpoint that ``ModelCheckpoint``
    saved, without the optimizer's moments: half of its size, and ``--ckpt_path`` continues from it with moments that
    start again. The log is part of the state, so a run that goes on on another machine continues its log.

    Args:
        folder: Where both go; created if missing.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._rows: list[dict[str, float]] = []
        self._before = 0.0, 0.0  # hours and core hours of earlier processes
        self._since: tuple[float, float] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks; take rows that were logged after the checkpoint was saved from the log itself."""
        self._since = time.monotonic(), time.process_time()
        path, known = self.folder / "log.tsv", {row["step"] for row in self._rows}
        if path.is_file():
            with path.open(newline="") as stream:
                for texts in csv.DictReader(stream, delimiter="\t"):
                    row = {name: float(text) for name, text in texts.items() if text}
                    if row["step"] <= trainer.global_step and row["step"] not in known:
                        self._rows.append(row)
        self._rows.sort(key=lambda row: row["step"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both files."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        step = trainer.global_step
        epochs = step * trainer.accumulate_grad_batches / trainer.num_training_batches
        row = dict(zip(_COLUMNS, (epochs, step, *self._spent()), strict=False))
        known = trainer.callback_metrics
        row |= {name: float(known[f"val/{name}"]) for name in _METRICS if f"val/{name}" in known}
        self._rows = [each for each in self._rows if each["step"] < step] + [row]
        lines = ["\t".join(f"{each[name]:.6g}" if name in each else "" for name in _COLUMNS) for each in self._rows]
        write_atomically(self.folder / "log.tsv", "\n".join(["\t".join(_COLUMNS), *lines, ""]).encode())
        saver = trainer.checkpoint_callback
        if isinstance(saver, ModelCheckpoint) and Path(saver.last_model_path).is_file():
            checkpoint = read_checkpoint(saver.last_model_path)
            # What is left out: the optimizer's moments, and the paths of ModelCheckpoint, which are those of a machine.
            checkpoint["optimizer_states"] = [{**state, "state": {}} for state in checkpoint["optimizer_states"]]
            callbacks = {key: each for key, each in checkpoint["callbacks"].items() if "ModelCheckpoint" not in key}
            checkpoint["callbacks"] = callbacks | {self.state_key: self.state_dict()}
            save_checkpoint(checkpoint, self.folder / "state.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """Return the log and the hours."""
        hours, core_hours = self._spent()
        return {"rows": self._rows, "hours": hours, "core_hours": core_hours}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the log and the hours."""
        self._rows, self._before = state_dict["rows"], (state_dict["hours"], state_dict["core_hours"])

    def _spent(self) -> tuple[float, float]:
        """Return hours and core hours so far."""
        now = time.monotonic(), time.process_time()
        hours, core_hours = (end - start for end, start in zip(now, self._since or now, strict=True))
        return self._before[0] + hours / 3600, self._before[1] + core_hours / 3600
