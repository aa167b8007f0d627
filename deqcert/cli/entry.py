"""The entry point: verbs, errors and exit codes."""

from __future__ import annotations

import errno
import importlib
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

from deqcert.cli.output import Output
from deqcert.errors import TERMINATED, DeqcertError

_USER_ERROR = 2
_READER_GONE = 128 + signal.SIGPIPE  # as a shell reports it
_INTERRUPTED = 128 + signal.SIGINT
_DISK_ERRORS = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}

_OWN_VERBS = ("verify", "report", "convert", "attack", "anchor")
"""Verbs that are not Lightning's: ``run_VERB(args)`` in the module of that name, imported when it is called for."""

_MISCONFIGURATION = "MisconfigurationException"  # of Lightning, which is not imported for our own verbs

_RESUME = "what was saved before is safe, run the same command again to resume"


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments; None takes those of the process.

    Returns:
        Exit code: 0; 1 if ``verify`` or ``attack`` has found something; 2 for an error that the user can mend; 3 if
        ``verify`` does not know a rule of a run; 130 after Ctrl-C; 141 if nobody read the output to its end, which
        changes nothing else; 143 if SIGTERM has ended a
        run that the same command resumes.
    """
    given = sys.argv[1:] if args is None else list(args)
    output, errors = Output(sys.stdout), Output(sys.stderr)
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            code = _code(given)
        finally:
            output.flush()
            errors.flush()
    return code or (_READER_GONE if output.unread or errors.unread else 0)


def _code(given: list[str]) -> int:
    try:
        return _run(given)
    except SystemExit as ending:
        # Lightning raises it without a code in fit, and a scheduler would take that run for a finished one.
        if type(ending).__name__ == "SIGTERMException":
            return TERMINATED
        if not isinstance(ending.__context__, KeyboardInterrupt):  # of which Lightning makes an exit with code 1
            raise
        return _interrupted(given)
    except KeyboardInterrupt:
        return _interrupted(given)
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        print(f"deqcert: error: {message}", file=sys.stderr)
        return _USER_ERROR


def _interrupted(given: list[str]) -> int:
    advice = {"certify": _RESUME, "fit": "--ckpt_path last resumes from the last checkpoint"}
    print("; ".join(["deqcert: interrupted", *(advice[word] for word in given if word in advice)]), file=sys.stderr)
    return _INTERRUPTED


def _run(given: list[str]) -> int:
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
        if _refused_by_lightning(error):
            return " ".join(str(error).split())
        error = error.__cause__ or error.__context__
    return None


def _refused_by_lightning(error: BaseException) -> bool:
    """Whether Lightning itself has found that settings do not work."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not trace.tb_frame.f_globals.get("__name__", "").startswith("lightning."):
        return False
    return isinstance(error, (ValueError, RuntimeError, ImportError)) or type(error).__name__ == _MISCONFIGURATION
