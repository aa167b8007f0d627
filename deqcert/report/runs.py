"""Runs to report on, whatever they are read from: a directory of ours, finished or not, or the field's table."""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from deqcert.errors import DataError, DeqcertError, SettingError
from deqcert.ledger import Ledger, stored_identity
from deqcert.report.examples import CertifiedExample
from deqcert.report.json_report import read_json
from deqcert.report.summary import Summary, automatic_radii, summarize, summarize_rows
from deqcert.report.tsv import TsvRow, read_text, read_tsv
from deqcert.report.verify import noise_findings
from deqcert.statistics import AuditRule, Certificate, CertificationRule, Votes

_ROUNDING = 1e-9  # of scipy's quantiles in different versions
_MOST_RADII = 9


class Run(NamedTuple):
    """What is known of one run.

    Attributes:
        name: For tables and legends.
        examples: Certificates, or rows of a table, sorted by index, at least one.
        votes: What the certificates were derived from, in the same order; None for a table.
        seconds: Time spent on each image, by index; None if a table does not tell.
        alpha: Error probability of a certificate; None for a table, which does not tell.
        sigma: Standard deviation of the noise, in pixels of [0, 1]; None for a table.
        classes: Names of the classes by label; empty where they are not known.
    """

    name: str
    examples: tuple[CertifiedExample, ...]
    votes: tuple[Votes, ...] | None
    seconds: Mapping[int, float] | None
    alpha: float | None
    sigma: float | None
    classes: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether every certificate has a proof."""
        return all(example.sound for example in self.examples)

    @property
    def labelled_name(self) -> str:
        """The name, with a mark on it unless the run is sound."""
        return self.name if self.sound else f"{self.name} (unsound)"

    @property
    def by_index(self) -> dict[int, CertifiedExample]:
        """The examples by their indices."""
        return {example.index: example for example in self.examples}

    @property
    def images(self) -> frozenset[tuple[int, int]]:
        """Index and label of each image. Runs that differ here are not of the same images."""
        return frozenset((example.index, example.label) for example in self.examples)

    def restricted(self, indices: Collection[int]) -> Run:
        """Return the run on some of its images.

        Raises:
            DataError: None of them is left.
        """
        kept = set(indices)
        examples = tuple(example for example in self.examples if example.index in kept)
        if not examples:
            raise DataError(f"{self.name}: no image is left")
        votes = None if self.votes is None else tuple(vote for vote in self.votes if vote.index in kept)
        return self._replace(examples=examples, votes=votes)

    def summary(self, radii: Sequence[float]) -> Summary:
        """Return the numbers of the run, certified accuracies at ``radii``.

        Raises:
            SettingError: ``radii`` is empty or has a negative or non-finite value.
        """
        if self.votes is None:
            seconds = None if self.seconds is None else [self.seconds[each.index] for each in self.examples]
            return summarize_rows(self.examples, seconds, radii)
        return summarize(self.examples, self.votes, radii)


def read_runs(
    path: str | Path, name: str, *, alpha: float | None = None, audits: Sequence[AuditRule] = ()
) -> list[Run]:
    """Read a run; certificates are derived from its votes again.

    Args:
        path: Directory of a run (of an unfinished one, the images so far), or a table in the field's format.
        name: Name of the run.
        alpha: Error probability to certify at instead of the run's; for a table, the one that it was certified at.
        audits: Rules to certify audited votes by instead of the run's, each of which makes a run of its own, with the
            rule in its name; votes without an audit are not affected.

    Returns:
        One run, or one for each of ``audits``.

    Raises:
        DataError: Naming file and line: something cannot be read, or a certificate does not follow from its votes.
        LedgerError: The ledger of an unfinished run is damaged.
        SettingError: ``alpha`` or one of ``audits`` is out of range, or is not exact although the audit was sequential.
    """
    path = Path(path)
    if not path.is_dir():
        rows = read_tsv(path)
        return [_run_of_rows(name, rows, alpha)]
    try:
        votes, settings, stated = _finished(path) if (path / "certificates.json").exists() else _unfinished(path)
        sigma = settings["smoothing"]["sigma"]
        for finding in (text for vote in votes for text in noise_findings(vote, settings)):
            raise DataError(f"{path}: {finding}")
        own = CertificationRule(**settings["certificate"])
        _demand_derived([own.certify(vote) for vote in votes], stated, path)
    except DeqcertError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as problem:
        raise DataError(f"{path}: its settings cannot be used to certify anything ({problem!r})") from problem

    level, alpha_audit = (own.alpha, own.alpha_audit) if alpha is None else (alpha, None)
    audited = any(vote.audited is not None for vote in votes)
    rules = [(name, own.audit)] if not (audited and audits) else [(f"{name} {audit}", audit) for audit in audits]
    return [
        Run(
            name=named,
            examples=tuple(CertificationRule(level, alpha_audit, audit).certify(vote) for vote in votes),
            votes=tuple(votes),
            seconds={vote.index: vote.seconds for vote in votes},
            alpha=level,
            sigma=sigma,
            classes=tuple(map(str, settings.get("classes", ()))),
        )
        for named, audit in rules
    ]


def common_images(runs: Sequence[Run]) -> list[Run]:
    """Restrict runs to the images that all of them have.

    Raises:
        DataError: There is none, or an image has different labels: then the data sets are different ones.
    """
    common = set.intersection(*(set(run.by_index) for run in runs))
    if not common:
        raise DataError(f"no image is common to {', '.join(run.name for run in runs)}")
    restricted = [run.restricted(common) for run in runs]
    first = restricted[0]
    for other in restricted[1:]:
        for one, another in zip(first.examples, other.examples, strict=True):
            if one.label != another.label:
                raise DataError(
                    f"image {one.index} has label {one.label} in {first.name}, but {another.label} in {other.name}"
                )
    return restricted


def report_radii(runs: Sequence[Run]) -> tuple[float, ...]:
    """Choose radii for a table of several runs: those of the run that may reach farthest."""
    return max((_radii(run) for run in runs), key=lambda radii: radii[-1])


def _radii(run: Run) -> tuple[float, ...]:
    if run.votes is not None and run.sigma is not None and run.alpha is not None:
        return automatic_radii(run.sigma, run.alpha, max(vote.n for vote in run.votes))
    largest, step = max(example.radius for example in run.examples), 0.25
    while largest >= _MOST_RADII * step:
        step *= 2
    return tuple(step * i for i in range(int(largest / step) + 1))


def _run_of_rows(name: str, rows: Sequence[TsvRow], alpha: float | None) -> Run:
    if alpha is not None and not 0 < alpha < 1:
        raise SettingError("alpha", alpha, "must be in (0, 1)")
    ordered = tuple(sorted(rows, key=lambda row: row.index))
    seconds = {row.index: row.seconds for row in rows if row.seconds is not None}
    return Run(name, ordered, None, seconds or None, alpha, None)


_Parts = tuple[list[Votes], Mapping[str, Any], dict[int, Mapping[str, Any]]]
"""Votes sorted by index, settings, and the certificates that were written, by index."""


def _finished(directory: Path) -> _Parts:
    report = read_json(directory / "certificates.json")
    votes, stated = [], {}
    for position, example in enumerate(report["examples"]):
        try:
            vote = Votes.from_json({field: example[field] for field in Votes._fields})
        except (KeyError, DataError) as error:
            place = f"{directory / 'certificates.json'}, example {position}"
            raise DataError(f"{place}: {'has no ' if isinstance(error, KeyError) else ''}{error}") from error
        votes.append(vote)
        stated[vote.index] = example
    if len(stated) < len(votes):
        raise DataError(f"{directory / 'certificates.json'}: an image comes twice")
    if not votes:
        raise DataError(f"{directory / 'certificates.json'}: has no image")
    return sorted(votes, key=lambda vote: vote.index), report["settings"], stated


def _unfinished(directory: Path) -> _Parts:
    """Read what a run has so far from its ledger, and its rule from its configuration."""
    identity = stored_identity(directory)
    ledger = Ledger(directory, identity)
    ledger.refresh()
    votes = ledger.contents.votes
    if not votes:
        raise DataError(f"{directory}: its ledger has no image yet")
    path = directory / "certify.yaml"
    try:
        rule = yaml.safe_load(read_text(path))["certificate"]
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    warnings.warn(f"{directory}: has not finished; these are the {len(votes)} images so far", stacklevel=2)
    rule = {key: rule[key] for key in ("alpha", "alpha_audit", "audit")}
    return [votes[index] for index in sorted(votes)], {**identity, "certificate": rule}, {}


def _demand_derived(certificates: Sequence[Certificate], stated: Mapping[int, Mapping[str, Any]], path: Path) -> None:
    """Refuse a report whose certificates are not those of its votes."""
    for certificate in certificates:
        written = stated.get(certificate.index)
        if written is None:
            continue
        same = certificate.prediction == written.get("prediction") and math.isclose(
            certificate.radius, written.get("radius", -1.0), rel_tol=_ROUNDING
        )
        if not same:
            raise DataError(
                f"{path}: the certificate of image {certificate.index} does not follow from its votes; "
                f"{shlex.join(['deqcert', 'verify', str(path)])} says more"
            )
