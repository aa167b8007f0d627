"""The files of a ledger: reading, locking and appending."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from json import dumps, loads
from pathlib import Path
from types import TracebackType
from typing import Any

from deqcert.errors import DataError, LedgerError
from deqcert.runs.contents import Contents
from deqcert.runs.lines import START, seal, unseal
from deqcert.runs.lock import is_locked, open_regular, try_lock
from deqcert.statistics import Votes

_SCHEMA = 2
_PATTERN = "votes.rank*.jsonl"
_LOCK = "run.lock"
_NOT_SHARED = "ledger_dir must be on a file system that all processes share"


@dataclass
class _Cursor:
    """How far a file has been read."""

    bytes: int = 0
    lines: int = 0
    digest: str = START


class Ledger:
    """Votes on disk, append-only, one file of chained JSON lines per rank.

    The first line of each file is the identity of the run. Every further line has the votes of an image, flushed and
    synced before the next image begins. A torn last line (a kill or a full disk in mid-write) is ignored when read and
    cut when its file is written again. Any number of processes may resume: all files of the directory are read.

    Args:
        directory: Directory of the run.
        identity: Everything that determines the votes, JSON-able.

    Attributes:
        contents: What has been read so far.
    """

    def __init__(self, directory: str | Path, identity: Mapping[str, Any]) -> None:
        self.directory = Path(directory)
        self.identity: dict[str, Any] = loads(dumps(identity))
        self.contents = Contents()
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
        named = f"ledger_dir = {str(self.directory)!r}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"{named}: cannot be created ({error.strerror})") from error
        if not os.access(self.directory, os.W_OK):
            raise LedgerError(f"{named}: must be writable")
        path = self.directory / _LOCK
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
        try:
            if not try_lock(descriptor, path):
                owner = os.pread(descriptor, 200, 0).decode(errors="replace")
                raise LedgerError(f"{named}: another run is writing to it ({owner})")
            # A rank may outlive the process that launched it for as long as one image takes.
            for file in sorted(self.directory.glob(_PATTERN)):
                if is_locked(file):
                    raise LedgerError(f"{named}: another run is writing to it ({file.name}); it may be about to end")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            self._remove_empty()
            yield
        finally:
            os.close(descriptor)

    def _remove_empty(self) -> None:
        """Remove each file that holds the identity of another run and no measurement."""
        for path in sorted(self.directory.glob(_PATTERN)):
            lines = _read(path, 0).split(b"\n")[:-1]
            if len(lines) == 1:
                with suppress(LedgerError):  # refresh says what is damaged
                    if _identity(path, lines[0]) != self.identity:
                        path.unlink()

    def refresh(self) -> list[Votes]:
        """Read what has been added to any file since the last call.

        Returns:
            The votes that were not known.

        Raises:
            LedgerError: A file belongs to another run (the differing settings are named), is damaged or of another
                schema, or two lines disagree about an image.
        """
        return [votes for path in sorted(self.directory.glob(_PATTERN)) for votes in self._refresh_file(path)]

    def _refresh_file(self, path: Path) -> list[Votes]:
        cursor = self._cursors.setdefault(path, _Cursor())
        content = _read(path, cursor.bytes)
        news: list[Votes] = []
        for line in content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]:
            number = cursor.lines + 1
            if number == 1:
                self._compare(_identity(path, line))
            try:
                record, digest = unseal(line, cursor.digest)
                if number > 1:
                    votes = Votes.from_json(record)
                    if self.contents.add(votes):
                        news.append(votes)
            except (ValueError, DataError) as error:
                raise LedgerError(
                    f"{path}, line {number}: damaged ({error}). Without this line and those after it, the run can be "
                    "resumed: their images are certified again."
                ) from error
            cursor.bytes, cursor.lines, cursor.digest = cursor.bytes + len(line) + 1, number, digest
        return news

    def _compare(self, theirs: Mapping[str, Any]) -> None:
        if theirs == self.identity:
            return
        differences = "; ".join(identity_differences(theirs, self.identity))
        raise LedgerError(
            f"ledger_dir = {str(self.directory)!r}: holds votes of another run ({differences}). "
            "Use another directory, or the settings of that run."
        )

    def open(self, rank: int) -> Ledger:
        """Open the file of ``rank`` for writing; use as a context manager.

        Raises:
            LedgerError: If another process writes to it.
        """
        path = self._file(rank)
        try:
            descriptor = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        except FileNotFoundError as error:
            raise LedgerError(f"{self.directory}: {_NOT_SHARED}") from error
        if not try_lock(descriptor, path):
            os.close(descriptor)
            raise LedgerError(f"ledger_dir = {str(self.directory)!r}: another run is writing to it ({path.name})")
        self._path, self._descriptor = path, descriptor
        self._refresh_file(path)
        os.ftruncate(descriptor, self._cursors[path].bytes)
        if self._cursors[path].lines == 0:
            self._write({"schema": _SCHEMA, "identity": self.identity})
            _sync_directory(self.directory)
        return self

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

    def append(self, votes: Votes) -> None:
        """Add the votes of an image and wait until they are on disk.

        Raises:
            LedgerError: They cannot be written, e.g. because the disk is full. What was written before is safe.
        """
        self._write(votes.to_json())
        self.contents.add(votes)

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
        self._cursors[self._path] = _Cursor(cursor.bytes + len(line), cursor.lines + 1, digest)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def stored_identity(directory: Path) -> dict[str, Any]:
    """Return the identity in the first file of a ledger.

    Raises:
        LedgerError: There is no ledger, its first line is damaged, or it is of another schema.
    """
    for path in sorted(directory.glob(_PATTERN)):
        content = _read(path, 0)
        if b"\n" in content:
            return _identity(path, content.split(b"\n", 1)[0])
    raise LedgerError(f"{directory}: holds no ledger ({_PATTERN})")


def _identity(path: Path, line: bytes) -> dict[str, Any]:
    """Return the identity of a run from the first line of one of its files."""
    try:
        record, _ = unseal(line, START)
        if "identity" not in record:
            raise ValueError("no identity")
        if (schema := record.get("schema", 1)) != _SCHEMA:
            raise LedgerError(
                f"{path}: has ledger schema {schema!r}, but this version of deqcert reads schema {_SCHEMA}; finish the "
                "run with the version that began it, or use another directory"
            )
        if not isinstance(record["identity"], dict):
            raise ValueError("identity must be an object")
    except ValueError as error:
        raise LedgerError(f"{path}, line 1: damaged ({error})") from error
    return record["identity"]


def identity_differences(theirs: Any, ours: Any) -> list[str]:
    """Return, for each setting that differs, what it is there and here."""
    there, here = _flatten(theirs), _flatten(ours)
    return [
        f"{key} = {there.get(key)!r} there, {here.get(key)!r} here"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]


def _flatten(record: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(record, dict):
        return {prefix: record}
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _read(path: Path, first: int) -> bytes:
    """Return the bytes of a file from ``first`` on."""
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as stream:
            stream.seek(first)
            return stream.read()
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror})") from error


def _sync_directory(directory: Path) -> None:
    """Wait until a new file's name is on disk too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
