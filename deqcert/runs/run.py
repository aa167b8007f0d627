"""Reading a certification run, finished or not, from its directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from deqcert.errors import DataError, DeqcertError
from deqcert.runs.contents import votes_digest
from deqcert.runs.ledger import Ledger, stored_identity
from deqcert.runs.results import JSON_NAME, certify_votes, read_json
from deqcert.runs.tsv import read_text
from deqcert.statistics import Certificate, CertificationRule, Votes


@dataclass(frozen=True)
class Run:
    """A run as its ledger has it. What other files say is only believed where it follows from the ledger.

    Attributes:
        directory: Its directory.
        identity: Everything that determines its votes.
        ledger: All votes in its ledger by image index.
        document: Contents of ``certificates.json``; None if the run has not finished.
    """

    directory: Path
    identity: Mapping[str, Any]
    ledger: Mapping[int, Votes]
    document: Mapping[str, Any] | None

    @cached_property
    def examples(self) -> dict[int, Mapping[str, Any]]:
        """What ``certificates.json`` says of each image, by index; entries without an integer index are left out."""
        examples: Sequence[Mapping[str, Any]] = () if self.document is None else self.document["examples"]
        return {example["index"]: example for example in examples if type(example.get("index")) is int}

    @cached_property
    def votes(self) -> tuple[Votes, ...]:
        """The votes of the run, sorted by index: of the certified images once it has finished, of all so far before."""
        indices = self.ledger.keys() if self.document is None else self.ledger.keys() & self.examples.keys()
        return tuple(self.ledger[index] for index in sorted(indices))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the votes."""
        return votes_digest(self.votes)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The settings of ``certificates.json``; of an unfinished run its identity and its ``certificate`` settings.

        Raises:
            DataError: The run has not finished, and its ``certify.yaml`` cannot be read.
        """
        if self.document is not None:
            settings: Mapping[str, Any] = self.document["settings"]
            return settings
        path = self.directory / "certify.yaml"
        try:
            stated = yaml.safe_load(read_text(path))["certificate"]
            return {**self.identity, "certificate": {key: stated[key] for key in ("alpha", "alpha_audit", "audit")}}
        except (yaml.YAMLError, TypeError, KeyError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error

    @cached_property
    def rule(self) -> CertificationRule:
        """How the votes became certificates.

        Raises:
            DataError: The settings cannot be read or are not those of a rule.
            SettingError: One of them is out of range.
        """
        try:
            return CertificationRule(**self.settings["certificate"])
        except DeqcertError:
            raise
        except (KeyError, TypeError) as error:
            raise DataError(f"{self.directory}: its settings cannot be used to certify anything ({error!r})") from error

    @cached_property
    def certificates(self) -> tuple[Certificate, ...]:
        """The certificates that follow from the votes, sorted by index."""
        return certify_votes(self.votes, self.rule)


def read_run(directory: str | Path) -> Run:
    """Read a run.

    Raises:
        LedgerError: There is no ledger, or it is damaged or of another schema.
        DataError: ``certificates.json`` cannot be read, or the ledger has no votes yet.
    """
    directory = Path(directory)
    identity = stored_identity(directory)
    ledger = Ledger(directory, identity)
    ledger.refresh()
    if not ledger.contents.votes:
        raise DataError(f"{directory}: its ledger has no image yet")
    path = directory / JSON_NAME
    return Run(directory, identity, ledger.contents.votes, read_json(path) if path.exists() else None)
