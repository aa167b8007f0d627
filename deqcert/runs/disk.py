"""Files of a ledger on disk, and locks that die with their owner, also by SIGKILL. What fails raises LedgerError."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from deqcert.errors import LedgerError


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file without following a symbolic link, and without waiting at a pipe."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise LedgerError(f"{path}: must be a regular file")
    return descriptor


def lines_from(path: Path, first: int = 0) -> Iterator[bytes]:
    """Yield the lines of a regular file from byte ``first`` on, without their ends; a torn last one is left out."""
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as stream:
            stream.seek(first)
            for line in stream:
                if not line.endswith(b"\n"):
                    return  # its writer may go on: what stream gives next would begin in the middle
                yield line[:-1]
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror})") from error


def open_locked(path: Path, flags: int = 0) -> int | None:
    """Open a regular file to read and write it and take its lock; return None if somebody else has it."""
    descriptor = open_regular(path, os.O_RDWR | flags)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, (BlockingIOError, PermissionError)):
            return None
        raise LedgerError(
            f"{path}: cannot be locked ({error.strerror}). Two runs in one directory could not be told apart; "
            "use a file system with flock (Lustre: mount option flock)"
        ) from error
    return descriptor


def sync_directory(directory: Path) -> None:
    """Wait until a new file's name is on disk too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
