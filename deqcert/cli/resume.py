"""Where fit begins: at the newest checkpoint of its run, or anew where that loses nothing."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from deqcert.errors import require

LAST, LAST_OR_NEW = "last", "last_or_new"

_OTHER_RUN = "another trainer.logger.version or trainer.default_root_dir is another run"


def beginning(trainer: Any, ckpt_path: str | None) -> str | None:
    """Return the ``ckpt_path`` to give to the trainer's ``fit``.

    Lightning begins anew where ``last`` finds nothing, and writes a ``last-v1.ckpt`` beside the one it finds where
    nothing was to be resumed.

    Args:
        trainer: The trainer, which knows the folder of its run.
        ckpt_path: A file; "last", which must exist; "last_or_new", for jobs that are queued again; None for a new run.

    Raises:
        SettingError: There is nothing to resume, or a new run would leave the checkpoint of another one beside its own.
    """
    if trainer.fast_dev_run or ckpt_path not in (None, LAST, LAST_OR_NEW):
        return ckpt_path
    savers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    found = sorted(path for saver in savers for path in saver._find_last_checkpoints(trainer))
    if ckpt_path is None:
        existing = f"{', '.join(found)} exists; last resumes that run, {_OTHER_RUN}"
        require(not found, "ckpt_path", ckpt_path, existing)
    if ckpt_path == LAST:
        nothing = f"there is no last.ckpt to resume; {_OTHER_RUN}, and {LAST_OR_NEW} begins a new run"
        require(bool(found), "ckpt_path", ckpt_path, nothing)
    return LAST if found else None
