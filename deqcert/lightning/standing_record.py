"""What is kept of a training without an end: a log, and a state small enough to be committed."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from deqcert.checkpoints import read_checkpoint, save_checkpoint
from deqcert.files import write_atomically

_METRICS = ("accuracy", "accuracy_under_noise", "loss_under_noise", "forward_residual", "spectral_radius")


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
        self._hours = self._core_hours = 0.0
        self._since = self._cpu_since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks; take rows that were logged after the checkpoint was saved from the log itself."""
        self._since, self._cpu_since = time.monotonic(), time.process_time()
        known = {row["step"] for row in self._rows}
        self._rows += [row for row in self._logged() if row["step"] <= trainer.global_step and row["step"] not in known]
        self._rows.sort(key=lambda row: row["step"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both files."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        hours, core_hours = self._spent()
        epochs = trainer.global_step * trainer.accumulate_grad_batches / trainer.num_training_batches
        row = {"epochs": epochs, "step": trainer.global_step, "hours": hours, "core_hours": core_hours}
        for name in _METRICS:
            if f"val/{name}" in trainer.callback_metrics:
                row[name] = float(trainer.callback_metrics[f"val/{name}"])
        self._rows = [each for each in self._rows if each["step"] < row["step"]] + [row]
        write_atomically(self.folder / "log.tsv", self._table().encode())
        saver = trainer.checkpoint_callback
        if isinstance(saver, ModelCheckpoint) and Path(saver.last_model_path).is_file():
            checkpoint = read_checkpoint(saver.last_model_path)
            checkpoint["callbacks"][self.state_key] = self.state_dict()
            save_checkpoint(without_moments(checkpoint), self.folder / "state.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """Return the log and the hours."""
        hours, core_hours = self._spent()
        return {"rows": self._rows, "hours": hours, "core_hours": core_hours}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the log and the hours."""
        self._rows = state_dict["rows"]
        self._hours, self._core_hours = state_dict["hours"], state_dict["core_hours"]

    def _spent(self) -> tuple[float, float]:
        if not self._since:
            return self._hours, self._core_hours
        wall, cpu = time.monotonic() - self._since, time.process_time() - self._cpu_since
        return self._hours + wall / 3600, self._core_hours + cpu / 3600

    def _table(self) -> str:
        text = io.StringIO()
        columns = ["epochs", "step", "hours", "core_hours", *_METRICS]
        writer = csv.DictWriter(text, columns, restval="", delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self._rows)
        return text.getvalue()

    def _logged(self) -> list[dict[str, float]]:
        path = self.folder / "log.tsv"
        if not path.is_file():
            return []
        with path.open(newline="") as stream:
            rows = csv.DictReader(stream, delimiter="\t")
            return [{name: float(value) for name, value in row.items() if value} for row in rows]


def without_moments(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of ``fit`` from which training goes on with an optimizer that starts again.

    What it does not keep: the optimizer's moments, and the paths of ``ModelCheckpoint``, which are those of a machine.
    """
    optimizers = [{**state, "state": {}} for state in checkpoint["optimizer_states"]]
    callbacks = {key: state for key, state in checkpoint["callbacks"].items() if not key.startswith("ModelCheckpoint")}
    return {**checkpoint, "optimizer_states": optimizers, "callbacks": callbacks}
