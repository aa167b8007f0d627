"""Locks that die with their owner, also by SIGKILL."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from deqcert.errors import LedgerError


def open_regular(path: Path, flags: int) -> int:
    """Open a file without following a symbolic link, and without waiting at a pipe.

    Raises:
        LedgerError: It cannot be opened, or is not a regular file.
        FileNotFoundError: It does not exist, and ``flags`` do not create it.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise LedgerError(f"{path}: cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise LedgerError(f"{path}: must be a regular file")
    return descriptor


def try_lock(descriptor: int, path: Path) -> bool:
    """Take the lock of an open file; return False if another process has it.

    Raises:
        LedgerError: The file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise LedgerError(
            f"{path}: cannot be locked ({error.strerror}). Two runs in one directory could not be told apart; "
            "use a file system with flock (Lustre: mount option flock)"
        ) from error
    return True


def is_locked(path: Path) -> bool:
    """Whether a process has the lock of a file.

    Raises:
        LedgerError: It cannot be opened, or the file system has no locks.
    """
    descriptor = open_regular(path, os.O_RDWR)
    try:
        return not try_lock(descriptor, path)
    finally:
        os.close(descriptor)
