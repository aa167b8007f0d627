"""Files that a verb is to write."""

from __future__ import annotations

from pathlib import Path

from deqcert.errors import require


def demand_free(target: Path, source: Path, overwrite: bool) -> None:
    """Raise :class:`SettingError` unless ``target`` may be written: it is no directory, not ``source``, and new.

    Args:
        target: File to write, the setting ``to``.
        source: File that is read, which need not exist.
        overwrite: Whether an existing file may be replaced.
    """
    require(not target.is_dir(), "to", str(target), "is a directory")
    folder = next((parent for parent in target.parents if parent.exists()), Path())
    require(folder.is_dir(), "to", str(target), f"cannot be written: {folder} is no directory")
    if target.exists():
        require(overwrite, "to", str(target), "exists; --overwrite replaces it")
        require(not source.exists() or not target.samefile(source), "to", str(target), "is SOURCE itself")
