"""The ledger: what a run has measured, on disk: votes, or margins where there is no noise."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from json import dumps, loads
from pathlib import Path
from typing import Any

from deqcert.errors import DataError, LedgerError
from deqcert.runs.disk import lines_from, open_locked, sync_directory
from deqcert.runs.lines import (
    SCHEMA,
    START,
    first_line_identity,
    identity_differences,
    record_kind,
    seal,
    unseal,
    without_time,
)
from deqcert.statistics import Record

_NOT_SHARED = "ledger_dir must be on a file system that all processes share"


@dataclass
class _Cursor:
    """How far a file has been read or written."""

    bytes: int = 0
    lines: int = 0
    digest: str = START

    def advance(self, size: int, digest: str) -> None:
        self.bytes, self.lines, self.digest = self.bytes + size, self.lines + 1, digest


class Ledger:
    """Votes on disk, append-only, one file of chained JSON lines per rank.

    The first line of each file is the identity of the run. Every further line has the votes of an image, flushed and
    synced before the next image begins. A torn last line (a kill or a full disk in mid-write) is ignored when read and
    cut when its file is written again. Any number of processes may resume: all files of the directory are read.

    Args:
        directory: Directory of the run.
        identity: Everything that determines the votes, JSON-able.

    Attributes:
        votes: What has been read and written so far, by image index; margins for a run without noise.
    """

    def __init__(self, directory: str | Path, identity: Mapping[str, Any]) -> None:
        self.directory = Path(directory)
        self.identity: dict[str, Any] = loads(dumps(identity))
        self.votes: dict[int, Record] = {}
        self._kind = record_kind(self.identity)
        self._cursors: dict[Path, _Cursor] = {}
        self._path = Path()
        self._descriptor: int | None = None

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Create the directory and hold it: one run writes to it at a time. The lock dies with the process.

        Files of another run that ended before its first measurement are removed: they would only block the directory.

        Raises:
            LedgerError: The directory cannot be written, or a process of another run still writes to it.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(f"cannot be created ({error.strerror})") from error
        if not os.access(self.directory, os.W_OK):
            raise self._refusal("must be writable")
        path = self.directory / "run.lock"
        descriptor = open_locked(path, os.O_CREAT)
        if descriptor is None:
            raise self._refusal(f"another run is writing to it ({next(lines_from(path), b'').decode(errors='replace')})")
        try:
            # A rank may outlive the process that launched it for as long as one image takes.
            for file in vote_files(self.directory):
                if (held := open_locked(file)) is None:
                    raise self._refusal(f"another run is writing to it ({file.name}); it may be about to end")
                os.close(held)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            self._make_room()
            yield
        finally:
            os.close(descriptor)

    def _make_room(self) -> None:
        """Remove each file that holds the identity of another run and no measurement."""
        for path in vote_files(self.directory):
            lines = list(islice(lines_from(path), 2))
            if len(lines) == 1:
                with suppress(LedgerError):  # refresh says what is damaged
                    if first_line_identity(path, lines[0]) != self.identity:
                        path.unlink()

    def refresh(self) -> list[Record]:
        """Read what has been added to any file since the last call, and return the votes that were not known.

        Raises:
            LedgerError: A file belongs to another run (the differing settings are named), is damaged or of another
                schema, or two lines disagree about an image.
        """
        grown = (path for path in vote_files(self.directory) if self._may_have_grown(path))
        return [votes for path in grown for votes in self._refresh_file(path)]

    def _may_have_grown(self, path: Path) -> bool:
        """Say whether there is anything to read; asking for a size is cheaper than opening, above all over a network."""
        try:
            return path not in self._cursors or path.lstat().st_size != self._cursors[path].bytes
        except OSError:
            return True  # reading says what is wrong

    def _refresh_file(self, path: Path) -> list[Record]:
        cursor = self._cursors.setdefault(path, _Cursor())
        news: list[Record] = []
        for line in lines_from(path, cursor.bytes):
            if cursor.lines == 0 and (theirs := first_line_identity(path, line)) != self.identity:
                differences = "; ".join(identity_differences(theirs, self.identity))
                advice = "Use another directory, or the settings of that run."
                raise self._refusal(f"holds votes of another run ({differences}). {advice}")
            try:
                record, digest = unseal(line, cursor.digest)
                if cursor.lines > 0 and self._add(votes := self._kind.from_json(record)):
                    news.append(votes)
            except ValueError as error:
                raise LedgerError(
                    f"{path}, line {cursor.lines + 1}: damaged ({error}). Without this line and those after it, the "
                    "run can be resumed: their images are certified again."
                ) from error
            cursor.advance(len(line) + 1, digest)
        return news

    def _add(self, votes: Record) -> bool:
        """Add the votes of an image; return whether they are new."""
        new, known = votes.index not in self.votes, self.votes.setdefault(votes.index, votes)
        if not new and without_time(known) != without_time(votes):
            raise DataError(f"image {votes.index} has other votes in another line")
        return new

    @contextmanager
    def open(self, rank: int) -> Iterator[Ledger]:
        """Open the file of ``rank`` for writing; raise LedgerError if another process writes to it."""
        path = self._file(rank)
        if not self.directory.is_dir():
            raise LedgerError(f"{self.directory}: {_NOT_SHARED}")
        descriptor = open_locked(path, os.O_CREAT | os.O_APPEND)
        if descriptor is None:
            raise self._refusal(f"another run is writing to it ({path.name})")
        try:
            self._refresh_file(path)
            os.ftruncate(descriptor, self._cursors[path].bytes)
            self._path, self._descriptor = path, descriptor
            if self._cursors[path].lines == 0:
                self._write({"schema": SCHEMA, "identity": self.identity})
                sync_directory(self.directory)
            yield self
        finally:
            self._descriptor = None
            os.close(descriptor)

    def append(self, votes: Record) -> None:
        """Add the votes of an image and wait until they are on disk.

        Raises:
            LedgerError: They cannot be written, e.g. because the disk is full. What was written before is safe.
        """
        self._write(votes.to_json())
        self._add(votes)

    def _write(self, record: Mapping[str, Any]) -> None:
        assert self._descriptor is not None, "open() first"
        cursor = self._cursors[self._path]
        line, digest = seal(record, cursor.digest)
        data = memoryview(line)
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, cursor.bytes)
            raise LedgerError(
                f"{self._path}: cannot be written ({error.strerror}). The votes before are safe; run the same command "
                "again to resume."
            ) from error
        cursor.advance(len(line), digest)

    def demand_ranks(self, world_size: int, patience: float) -> None:
        """Wait until the files of all ranks can be seen, at most ``patience`` seconds.

        Raises:
            LedgerError: A file is missing: the ranks write to different file systems.
        """
        end = time.monotonic() + patience
        while missing := [rank for rank in range(world_size) if not self._file(rank).exists()]:
            if time.monotonic() > end:
                raise LedgerError(f"{self.directory}: the file of rank {missing[0]} is missing; {_NOT_SHARED}")
            time.sleep(0.1)

    def _file(self, rank: int) -> Path:
        return self.directory / f"votes.rank{rank}.jsonl"

    def _refusal(self, problem: str) -> LedgerError:
        return LedgerError(f"ledger_dir = {str(self.directory)!r}: {problem}")


def vote_files(directory: Path) -> list[Path]:
    """Return the files of a ledger, sorted by name."""
    return sorted(directory.glob("votes.rank*.jsonl"))
