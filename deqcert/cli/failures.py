"""Errors that are said in a line, because the user can fix them; any other is a bug and shows its traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from deqcert.errors import DeqcertError

_DISK_ERRORS = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
_WORKER_LOST = {"torch.utils.data._utils.signal_handling", "torch.utils.data.dataloader"}
RESUME = "what was saved before is safe, run the same command again to resume"


def message(error: Exception) -> str | None:
    """Say what the user can fix, by the type of the error; None if it may be a bug."""
    torch = sys.modules.get("torch")  # if it was not imported, the error is not one of its
    if isinstance(error, DeqcertError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; {RESUME}"
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return f"not enough memory ({error}): lower sampling.batch_size or sampling.execution.rows"
    if torch and isinstance(error, torch.distributed.DistError):
        return f"another process of this run has stopped ({str(error).splitlines()[0]}); {RESUME}"
    if type(error) is RuntimeError and _module(error) in _WORKER_LOST:  # torch has no type for it
        return f"a process that loads data was killed, often for lack of memory ({error}); {RESUME}"
    return None


@contextmanager
def refused_by_lightning(*modules: str) -> Iterator[None]:
    """Within it, what Lightning raises for settings that do not work is a :class:`DeqcertError`.

    It has a type for them, but not for all: of other types, errors that ``modules`` or their submodules raise count.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException  # takes seconds

    try:
        yield
    except Exception as error:
        found: BaseException = error
        while found.__cause__ is not None and _module(found).startswith("jsonargparse."):
            found = found.__cause__  # what a constructor has raised, in the parser's own error
        refusal = isinstance(found, (ValueError, RuntimeError, ImportError)) and _module(found).startswith(modules)
        if refusal or isinstance(found, MisconfigurationException):
            raise DeqcertError(" ".join(str(found).split())) from error
        if found is not error:
            raise found from None
        raise


def _module(error: BaseException) -> str:
    """Return the name of the module whose code has raised ``error``."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


class Output:
    """A stream of text; once its reader has closed the pipe (``| head``), it is ``unread``, and work goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.unread = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or not if nobody reads."""
        self._unless_unread(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, or not if nobody reads."""
        self._unless_unread(self._stream.flush)

    def _unless_unread(self, action: Any, *text: str) -> None:
        try:
            action(*text)
        except BrokenPipeError:
            self.unread = True
            # Also what the stream still holds and Python flushes when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
