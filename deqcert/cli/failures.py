"""Which errors are said in a line, because the user can fix them; any other is a bug and shows its traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
