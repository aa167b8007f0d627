"""The ledger: votes that survive a kill, and that nobody can change unnoticed.

Append-only JSON lines, one file per rank, each line flushed and synced before the next image begins. Nothing here
imports torch: what a run has measured can be read and verified anywhere.
"""

from deqcert.ledger.contents import Contents, votes_digest
from deqcert.ledger.ledger import Ledger, identity_differences, stored_identity

__all__ = ["Contents", "Ledger", "identity_differences", "stored_identity", "votes_digest"]
