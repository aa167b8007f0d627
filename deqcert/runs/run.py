"""Reading a certification run, finished or not, from its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from deqcert.errors import DataError, LedgerError, reason
from deqcert.runs.disk import lines_from
from deqcert.runs.ledger import Ledger, vote_files
from deqcert.runs.lines import first_line_identity, record_kind, votes_digest
from deqcert.runs.results import JSON_NAME, certify_all, sealed
from deqcert.runs.tsv import read_text
from deqcert.statistics import Certificate, CertificationRule, MarginRule, Margins, Record


@dataclass(frozen=True)
class Run:
    """A run as its ledger has it. What other files say is only believed where it follows from the ledger.

    Attributes:
        identity: Everything that determines its votes.
        ledger: All votes in its ledger by image index; in place of votes, margins if it is without noise.
        document: Contents of ``certificates.json``; None if the run has not finished.
    """

    directory: Path
    identity: Mapping[str, Any]
    ledger: Mapping[int, Record]
    document: Mapping[str, Any] | None

    @cached_property
    def examples(self) -> dict[int, Mapping[str, Any]]:
        """What ``certificates.json`` says of each image, by index; entries without an integer index are left out."""
        examples = [] if self.document is None else self.document["examples"]
        return {example["index"]: example for example in examples if type(example.get("index")) is int}

    @cached_property
    def votes(self) -> tuple[Record, ...]:
        """The votes (or margins) of the run, sorted by index: once it has finished, of the certified images only."""
        indices = self.ledger.keys() if self.document is None else self.ledger.keys() & self.examples.keys()
        return tuple(self.ledger[index] for index in sorted(indices))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the votes."""
        return votes_digest(self.votes)

    @property
    def deterministic(self) -> bool:
        """Whether its certificates are without noise, and so certain."""
        return record_kind(self.identity) is Margins

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The settings of ``certificates.json``; of an unfinished run its identity and its ``certificate`` settings.

        Raises:
            DataError: The run has not finished, and its ``certify.yaml`` cannot be read.
        """
        if self.deterministic and self.document is None:
            return {**self.identity, "certificate": {}}
        if self.document is not None:
            settings: Mapping[str, Any] = self.document["settings"]
            return settings
        path = self.directory / "certify.yaml"
        try:
            stated = yaml.safe_load(read_text(path))["certificate"]
            rule = {each.name: stated[each.name] for each in fields(CertificationRule) if each.name in stated}
            return {**self.identity, "certificate": rule}
        except (yaml.YAMLError, TypeError, KeyError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error

    @cached_property
    def rule(self) -> CertificationRule | MarginRule:
        """How the votes became certificates.

        Raises:
            DataError: The settings cannot be read or are not those of a rule.
            SettingError: One of them is out of range.
        """
        try:
            kind = MarginRule if self.deterministic else CertificationRule
            return kind(**self.settings["certificate"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{self.directory}: its settings cannot be used to certify anything ({error!r})") from error

    @cached_property
    def certificates(self) -> tuple[Certificate, ...]:
        """The certificates that follow from the votes, sorted by index."""
        return tuple(certify_all(self.rule, self.votes))


def read_run(directory: str | Path) -> Run:
    """Read a run.

    Raises:
        LedgerError: There is no ledger, or it is damaged or of another schema.
        DataError: ``certificates.json`` cannot be read, or the ledger has no votes yet.
    """
    ledger = read_ledger(directory)
    if not ledger.votes:
        raise DataError(f"{directory}: its ledger has no image yet")
    path = ledger.directory / JSON_NAME
    return Run(ledger.directory, ledger.identity, ledger.votes, read_json(path) if path.exists() else None)


def read_ledger(directory: str | Path) -> Ledger:
    """Read the ledger of whatever run is in a directory.

    Raises:
        LedgerError: There is no ledger, or it is damaged or of another schema.
    """
    for path in vote_files(Path(directory)):
        if (first := next(lines_from(path), None)) is not None:
            ledger = Ledger(directory, first_line_identity(path, first))
            ledger.refresh()
            return ledger
    raise LedgerError(f"{directory}: holds no ledger (votes.rank*.jsonl)")


def read_json(path: Path) -> dict[str, Any]:
    """Read ``certificates.json`` without believing it: ``settings``, ``summary`` and ``examples``.

    Raises:
        DataError: The file cannot be read, is not strict JSON (a key that comes twice, NaN), has another form or does
            not end in the SHA-256 of what stands before.
    """
    try:
        content = path.read_bytes()
        document: dict[str, Any] = json.loads(content, object_pairs_hook=_object, parse_constant=_refuse)
    except RecursionError:
        raise DataError(f"{path}: nested too deeply") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error
    parts = {"settings": dict, "summary": dict, "examples": list, "sha256": str}
    whole = isinstance(document, dict) and {part: type(value) for part, value in document.items()} == parts
    if not whole or not all(isinstance(example, dict) for example in document["examples"]):
        raise DataError(f"{path}: must have the objects settings and summary, a list of objects examples, and sha256")
    if content != sealed(content[: content.rfind(b',\n"sha256":')]):
        raise DataError(f"{path}: was changed after it was written: its SHA-256 is not that of its content")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
