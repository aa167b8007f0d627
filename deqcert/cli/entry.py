"""The entry point: the table of verbs and the exit codes. Imports only what every verb needs."""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

from deqcert.cli import failures
from deqcert.errors import SettingError
from deqcert.version import __version__

_USER_ERROR = 2
_READER_GONE = 128 + signal.SIGPIPE  # as a shell reports it
_INTERRUPTED = 128 + signal.SIGINT

_USAGE = """usage: deqcert VERB [--option value | --option=value ...]
       deqcert --help | --version

Train deep equilibrium models and certify their robustness by (serialized) randomized smoothing.

verbs:"""
_OF_THE_TRAINER = ("fit", "validate", "test", "certify")
VERBS = {
    "fit": "train a network, or resume its training",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on the test images",
    "certify": "certify images by randomized smoothing, or resume a run",
    "predict": "classify image files by a smoothed classifier, with a radius on request",
    "verify": "check that a run follows from the votes in its ledger",
    "report": "compare runs in tables and figures",
    "attack": "try to refute the certificates of a run",
    "convert": "convert public weights to a checkpoint, ours to safetensors",
    "anchor": "compute the start from which few solver steps are certified",
}
_AFTER_CTRL_C = {"certify": f"; {failures.RESUME}", "fit": "; --ckpt_path last resumes from the last checkpoint"}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line, with the arguments of the process unless there are others, and return the exit code.

    Returns:
        0; 1 if ``verify`` or ``attack`` found something or ``predict`` abstained; 2 for an error that the user can
        fix; 3 if ``verify`` does not know a rule of a run; 130 after Ctrl-C; 141 if the output was not read to its end.

    Raises:
        SystemExit: With code 143 if SIGTERM has ended a run that the same command resumes; with 2 or 0 from a parser.
    """
    verb, *rest = (sys.argv[1:] if args is None else list(args)) or [""]
    output, errors = failures.Output(sys.stdout), failures.Output(sys.stderr)
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            code = _code(verb, rest)
        finally:
            output.flush()
            errors.flush()
    return code or (_READER_GONE if output.unread or errors.unread else 0)


def _code(verb: str, rest: list[str]) -> int:
    """Run a verb, and say in a line what the user can fix."""
    try:
        return _run(verb, rest)
    except (KeyboardInterrupt, SystemExit) as ending:
        # Lightning makes an exit with code 1 of Ctrl-C.
        if isinstance(ending, SystemExit) and not isinstance(ending.__context__, KeyboardInterrupt):
            raise
        print(f"deqcert: interrupted{_AFTER_CTRL_C.get(verb, '')}", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        message = failures.message(error)
        if message is None:
            raise
        print(f"deqcert: error: {message}", file=sys.stderr)
        return _USER_ERROR


def _run(verb: str, rest: list[str]) -> int:
    """Import what a verb needs, and run it."""
    if verb in ("-h", "--help"):
        print(_USAGE, *(f"  {name:10}{summary}" for name, summary in VERBS.items()), sep="\n")
        print("\ndeqcert VERB --help describes the options of a verb.")
        return 0
    if verb == "--version":
        print(f"deqcert {__version__}")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}? The verbs are" if near else "must be one of"
        raise SettingError("verb", verb, f"{hint} {', '.join(VERBS)}")
    if verb in _OF_THE_TRAINER:
        importlib.import_module("deqcert.cli.trainer_verbs").run_trainer_verb([verb, *rest])
        return 0
    return int(getattr(importlib.import_module(f"deqcert.cli.{verb}"), f"run_{verb}")(rest))
