"""The entry point: verbs, errors and exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

from deqcert.errors import DeqcertError
from deqcert.termination import TERMINATED

_USER_ERROR = 2
_READER_GONE = 141  # as a shell reports SIGPIPE
_DISK_ERRORS = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}

_OWN_VERBS = ("verify", "report", "convert", "attack", "anchor")
"""Verbs that are not Lightning's: ``run_VERB(args)`` in the module of that name, imported when it is called for."""

_RESUME = "what was saved before is safe, run the same command again to resume"


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments; None takes those of the process.

    Returns:
        Exit code: 0; 1 if ``verify`` or ``attack`` has found something; 2 for an error that the user can mend; 141 if
        nobody reads the output any more; 143 if SIGTERM has ended a run that the same command resumes.
    """
    try:
        code = _run(args)
        sys.stdout.flush()
        return code
    except SystemExit as ending:
        # Lightning raises it without a code in fit, and a scheduler would take that run for a finished one.
        if type(ending).__name__ == "SIGTERMException":
            return TERMINATED
        raise
    except BrokenPipeError:
        # The reader of the output, e.g. head, has had enough. Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        print(f"deqcert: error: {message}", file=sys.stderr)
        return _USER_ERROR


def _run(args: Sequence[str] | None) -> int:
    given = sys.argv[1:] if args is None else list(args)
    if given and given[0] in _OWN_VERBS:
        verb, *rest = given
        return int(getattr(importlib.import_module(f"deqcert.cli.{verb}"), f"run_{verb}")(rest))
    from deqcert.cli.configs import demand_sound_configs

    demand_sound_configs(given)
    # Takes seconds to import: only for verbs that need it.
    from deqcert.cli.trainer_verbs import run_trainer_verb

    run_trainer_verb(given)
    return 0


def _message(error: BaseException | None) -> str | None:
    """Say what the user can mend; None if it is a bug. The parser wraps what a class raises into its own error."""
    while error is not None:
        if isinstance(error, DeqcertError):
            return str(error)
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            place = f"{error.filename}: " if error.filename else ""
            return f"{place}{error.strerror}; {_RESUME}"
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
            return f"not enough memory ({error}): lower smoothing.batch_size or smoothing.execution.rows"
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            return f"a process that loads data was killed, often for lack of memory ({error}); {_RESUME}"
        if "gloo" in str(error).lower() or any(kind.__name__ == "DistError" for kind in type(error).__mro__):
            return f"another process of this run has stopped ({str(error).splitlines()[0]}); {_RESUME}"
        error = error.__cause__ or error.__context__
    return None
