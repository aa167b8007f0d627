"""``deqcert verify``: does a run follow from its ledger?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from deqcert.names import checkpoint_path
from deqcert.runs import Verification, verify_run

_SHOWN = 20
_NOT_VERIFIED = 3


def run_verify(args: Sequence[str]) -> int:
    """Verify runs and print what was found.

    Returns:
        0 if every number of every run follows from its votes; 1 if one does not; otherwise 3, if a rule of a run is
        unknown, so that how its votes were taken cannot be verified.
    """
    parsed = _parser().parse_args(list(args))
    checkpoint = parsed.ckpt_path and checkpoint_path(parsed.ckpt_path)
    codes = {print_verification(run, verify_run(run, checkpoint)) for run in parsed.runs}
    return 1 if 1 in codes else max(codes)


def print_verification(run: str, verification: Verification) -> int:
    """Print what was found about ``run`` and return its exit code, see :func:`run_verify`."""
    findings = verification.findings
    for finding in findings[:_SHOWN]:
        print(f"{run}: {finding}")
    if len(findings) > _SHOWN:
        print(f"{run}: and {len(findings) - _SHOWN} more")
    for name in verification.unknown:
        print(f"{run}: not verified: unknown rule {name}")
    if findings:
        print(f"{run}: does NOT follow from its votes")
        return 1
    claim = "have the certificates of their votes" if verification.unknown else "follow from their votes"
    print(f"{run}: {verification.images} images {claim}; votes sha256 {verification.votes_sha256}")
    return _NOT_VERIFIED if verification.unknown else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deqcert verify",
        allow_abbrev=False,
        description="Compute every certificate, total and table of a run again from the votes in its ledger, and check "
        "its digests and settings. Needs neither model nor data.",
        epilog="Ends with code 1 if something does not follow from the votes, with code 3 if a run uses a strategy, "
        "audit or stopping rule that is not deqcert's: then it is not known how many votes it should have taken.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="directory of a finished run, its ledger_dir")
    parser.add_argument("--ckpt_path", metavar="FILE", help="checkpoint whose digest must be the certified one")
    return parser
