"""Writing a file so that a reader sees the old one or the new one, never half of one; telling files apart."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path


def write_atomically(path: str | Path, content: bytes | memoryview) -> None:
    """Write ``content`` to ``path`` in one step; its folder is created if missing.

    Raises:
        OSError: The file cannot be written. The old one is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Same folder: a rename across file systems is not atomic. No tempfile.mkstemp: its mode hides the result
    # from the rest of a group.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
