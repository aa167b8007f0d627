"""Runs on disk: the ledger, the results, and what is computed from them again. What is trusted stands together.

The ledger has the votes: append-only JSON lines, one file per rank, each line flushed and synced before the next image
begins, each chained to the one before by SHA-256. The chain has no key, so it detects accidents, not forgers; a
published :func:`votes_digest` commits to the votes of a run. Certificates follow from votes, and :func:`verify_run`
checks that the files of a run do. Nothing here imports torch: what a run has measured can be verified anywhere.
"""

from deqcert.runs.ledger import Ledger
from deqcert.runs.lines import identity_differences, votes_digest
from deqcert.runs.results import certify_all, write_results
from deqcert.runs.run import Run, read_ledger, read_run
from deqcert.runs.summary import Summary, automatic_radii, summarize
from deqcert.runs.tsv import CertifiedImage, TsvRow, read_tsv, write_tsv
from deqcert.runs.verify import Verification, certificate_findings, verify_run

__all__ = [
    "CertifiedImage",
    "Ledger",
    "Run",
    "Summary",
    "TsvRow",
    "Verification",
    "automatic_radii",
    "certificate_findings",
    "certify_all",
    "identity_differences",
    "read_ledger",
    "read_run",
    "read_tsv",
    "summarize",
    "verify_run",
    "votes_digest",
    "write_results",
    "write_tsv",
]
