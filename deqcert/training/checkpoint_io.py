"""How checkpoints get onto the disk and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins import TorchCheckpointIO

from deqcert.checkpoints import read_checkpoint, save_checkpoint
from deqcert.checkpoints.files import load_plain


class SafeCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint in one step, and runs no code when it reads one.

    Lightning moves the file from the system's temporary folder, which copies it if that is another file system: a kill
    in that moment leaves half a ``last.ckpt``. Paths with a protocol (``s3://…``) are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``; a reader sees the old file or the new one."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read tensors and plain data only; a local file with more, or a damaged one, raises CheckpointError."""
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        if Path(path).name == ".temp.ckpt":  # bare weights, which Lightning's launcher brings back from a process
            return dict(load_plain(path, str(path)))
        return {"pytorch-lightning_version": lightning.__version__, **read_checkpoint(path)}
