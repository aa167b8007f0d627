"""The ledger: votes that survive a kill."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from deqcert.errors import DataError, LedgerError
from deqcert.statistics import Votes

_PATTERN = "votes.rank*.jsonl"


class Ledger:
    """Votes on disk, append-only, one file of JSON lines per rank.

    The first line of each file is the identity of the run. Every further line is the votes of one image, flushed and
    synced before the next image begins. A torn last line (a kill in mid-write) is ignored when read and cut when its
    file is written again. Any number of processes may resume: all files of the directory are read.

    Args:
        directory: Directory of the run; created if missing.
        identity: Everything that determines the votes, JSON-able.

    Raises:
        LedgerError: If the directory cannot be written.
    """

    def __init__(self, directory: str | Path, identity: Mapping[str, Any]) -> None:
        self.directory = Path(directory)
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._descriptor: int | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"ledger_dir = {str(directory)!r}: cannot be created ({error.strerror})") from error
        if not os.access(self.directory, os.W_OK):
            raise LedgerError(f"ledger_dir = {str(directory)!r}: must be writable")

    def read(self) -> dict[int, Votes]:
        """Return the votes of all ranks by image index.

        Raises:
            LedgerError: If a file belongs to another run (the differing settings are named), is damaged, or two
                files disagree about an image.
        """
        found: dict[int, Votes] = {}
        for path in sorted(self.directory.glob(_PATTERN)):
            for votes in self._read_file(path):
                known = found.setdefault(votes.index, votes)
                if known.to_json() | {"seconds": 0} != votes.to_json() | {"seconds": 0}:
                    raise LedgerError(f"{path}: image {votes.index} has other votes in another line")
        return found

    def _read_file(self, path: Path) -> list[Votes]:
        content = path.read_bytes()
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        if not lines:
            return []
        self._compare(path, lines[0])
        return [self._parse(path, number, line) for number, line in enumerate(lines[1:], start=2)]

    @staticmethod
    def _parse(path: Path, number: int, line: bytes) -> Votes:
        try:
            return Votes.from_json(_parse_object(line))
        except (ValueError, DataError) as error:
            raise LedgerError(f"{path}, line {number}: damaged ({error})") from error

    def _compare(self, path: Path, line: bytes) -> None:
        try:
            theirs = _parse_object(line)["identity"]
        except (ValueError, KeyError) as error:
            raise LedgerError(f"{path}, line 1: damaged, no identity ({error})") from error
        if theirs == self.identity:
            return
        ours, theirs = _flatten(self.identity), _flatten(theirs)
        different = [
            f"{key} = {theirs.get(key)!r} there, {ours.get(key)!r} here"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]
        raise LedgerError(
            f"ledger_dir = {str(self.directory)!r}: holds votes of another run ({'; '.join(different)}). "
            "Use another directory, or the settings of that run."
        )

    def open(self, rank: int) -> Ledger:
        """Open the file of ``rank`` for writing; use as a context manager.

        Raises:
            LedgerError: If another process writes to it.
        """
        path = self.directory / f"votes.rank{rank}.jsonl"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise LedgerError(f"{path}: cannot be opened ({error.strerror})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise LedgerError(f"ledger_dir = {str(self.directory)!r}: another run is writing to it") from error
        self._descriptor = descriptor
        content = path.read_bytes()
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)
        if b"\n" not in content:
            self._write({"identity": self.identity})
        return self

    def append(self, votes: Votes) -> None:
        """Add the votes of one image and wait until they are on disk."""
        self._write(votes.to_json())

    def _write(self, record: Mapping[str, Any]) -> None:
        assert self._descriptor is not None, "open() first"
        data = memoryview(json.dumps(record, allow_nan=False).encode() + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _parse_object(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def _flatten(record: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(record, dict):
        return {prefix: record}
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
