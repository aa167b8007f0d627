"""``deqcert verify``: does a run follow from its ledger?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from deqcert.report import verify_run

_SHOWN = 20


def run_verify(args: Sequence[str]) -> int:
    """Verify runs and print what was found.

    Args:
        args: Arguments after the verb.

    Returns:
        0 if every number of every run follows from its votes, otherwise 1.
    """
    parser = argparse.ArgumentParser(
        prog="deqcert verify",
        description="Compute every certificate, total and table of a run again from the votes in its ledger, and check "
        "its digests and settings. Needs neither model nor data.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="directory of a finished run, its ledger_dir")
    parser.add_argument("--ckpt_path", metavar="FILE", help="checkpoint whose digest must be the certified one")
    parsed = parser.parse_args(list(args))
    code = 0
    for run in parsed.runs:
        found = verify_run(run, parsed.ckpt_path)
        for finding in found.findings[:_SHOWN]:
            print(f"{run}: {finding}")
        if len(found.findings) > _SHOWN:
            print(f"{run}: and {len(found.findings) - _SHOWN} more")
        if found.findings:
            code = 1
            print(f"{run}: does NOT follow from its votes")
        else:
            print(f"{run}: {found.images} images follow from their votes; votes sha256 {found.votes_sha256}")
    return code
