"""The entry point: the table of verbs, errors and exit codes. Imports only what every verb needs."""

from __future__ import annotations

import difflib
import errno
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

from deqcert.cli.output import Output
from deqcert.errors import DeqcertError, SettingError
from deqcert.version import __version__

_USER_ERROR = 2
_READER_GONE = 128 + signal.SIGPIPE  # as a shell reports it
_INTERRUPTED = 128 + signal.SIGINT
_DISK_ERRORS = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
_WORKER_LOST = {"torch.utils.data._utils.signal_handling", "torch.utils.data.dataloader"}
_RESUME = "what was saved before is safe, run the same command again to resume"

_USAGE = """usage: deqcert VERB [--option value | --option=value ...]
       deqcert --help | --version

Train deep equilibrium models and certify their robustness by (serialized) randomized smoothing.

verbs:"""
_MORE = "\ndeqcert VERB --help describes the options of a verb."


class Verb(NamedTuple):
    """One line for ``deqcert --help``, and what takes the arguments after the verb and returns the exit code."""

    summary: str
    run: Callable[[list[str]], int]


def _own(module: str) -> Callable[[list[str]], int]:
    """Return ``run_MODULE`` of a module of this package, which is imported when it is called."""
    return lambda args: int(getattr(importlib.import_module(f"deqcert.cli.{module}"), f"run_{module}")(args))


def _trainer(verb: str) -> Callable[[list[str]], int]:
    def run(args: list[str]) -> int:
        importlib.import_module("deqcert.cli.trainer_verbs").run_trainer_verb([verb, *args])
        return 0

    return run


VERBS = {
    "fit": Verb("train a network, or resume its training", _trainer("fit")),
    "validate": Verb("evaluate a checkpoint on the validation images", _trainer("validate")),
    "test": Verb("evaluate a checkpoint on the test images", _trainer("test")),
    "certify": Verb("certify images by randomized smoothing, or resume a run", _trainer("certify")),
    "predict": Verb("classify image files by a smoothed classifier, with a radius on request", _own("predict")),
    "verify": Verb("check that a run follows from the votes in its ledger", _own("verify")),
    "report": Verb("compare runs in tables and figures", _own("report")),
    "attack": Verb("try to refute the certificates of a run", _own("attack")),
    "convert": Verb("convert public weights to a checkpoint, ours to safetensors", _own("convert")),
    "anchor": Verb("compute the start from which few solver steps are certified", _own("anchor")),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments; None takes those of the process.

    Returns:
        Exit code: 0; 1 if ``verify`` or ``attack`` found something or ``predict`` abstained; 2 for an error that the
        user can fix; 3 if ``verify`` does not know a rule of a run; 130 after Ctrl-C; 141 if nobody read the output to
        its end, which changes nothing else.

    Raises:
        SystemExit: With code 143 if SIGTERM has ended a run that the same command resumes; with 2 or 0 from a parser.
    """
    verb, *rest = (sys.argv[1:] if args is None else list(args)) or [""]
    output, errors = Output(sys.stdout), Output(sys.stderr)
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            code = _code(verb, rest)
        finally:
            output.flush()
            errors.flush()
    return code or (_READER_GONE if output.unread or errors.unread else 0)


def _code(verb: str, rest: list[str]) -> int:
    if verb in ("-h", "--help"):
        print(_USAGE, *(f"  {name:10}{each.summary}" for name, each in VERBS.items()), _MORE, sep="\n")
        return 0
    if verb == "--version":
        print(f"deqcert {__version__}")
        return 0
    try:
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, n=1)
            hint = f"did you mean {near[0]}? The verbs are" if near else "must be one of"
            raise SettingError("verb", verb, f"{hint} {', '.join(VERBS)}")
        return VERBS[verb].run(rest)
    except SystemExit as ending:
        if not isinstance(ending.__context__, KeyboardInterrupt):  # of which Lightning makes an exit with code 1
            raise
        return _interrupted(verb)
    except KeyboardInterrupt:
        return _interrupted(verb)
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        print(f"deqcert: error: {message}", file=sys.stderr)
        return _USER_ERROR


def _interrupted(verb: str) -> int:
    advice = {"certify": f"; {_RESUME}", "fit": "; --ckpt_path last resumes from the last checkpoint"}
    print(f"deqcert: interrupted{advice.get(verb, '')}", file=sys.stderr)
    return _INTERRUPTED


def _message(error: Exception) -> str | None:
    """Say what the user can fix, by the type of the error; None if it may be a bug, whose traceback is needed."""
    torch = sys.modules.get("torch")  # if it was not imported, the error is not one of its
    if isinstance(error, DeqcertError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; {_RESUME}"
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return f"not enough memory ({error}): lower sampling.batch_size or sampling.execution.rows"
    if torch and isinstance(error, torch.distributed.DistError):
        return f"another process of this run has stopped ({str(error).splitlines()[0]}); {_RESUME}"
    if type(error) is RuntimeError and raising_module(error) in _WORKER_LOST:  # torch has no type for it
        return f"a process that loads data was killed, often for lack of memory ({error}); {_RESUME}"
    return None


def raising_module(error: BaseException) -> str:
    """Return the name of the module whose code has raised ``error``."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
