"""Runs to report on, whatever they are read from: a directory of ours, finished or not, or the field's table."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from deqcert.errors import DataError, require
from deqcert.report.settings import DETERMINISTIC, run_settings, step_limit_caution
from deqcert.runs import (
    CertifiedImage,
    Summary,
    automatic_radii,
    certificate_findings,
    certify_all,
    read_run,
    read_tsv,
    summarize,
)
from deqcert.statistics import AuditRule, CertificationRule, MarginRule, Record, Sides, Votes


class ReportedRun(NamedTuple):
    """What a report knows of one run.

    Attributes:
        name: For tables and legends.
        examples: Certificates, or rows of a table, sorted by index, at least one.
        votes: What the certificates were derived from, in the same order; None for a table.
        seconds: Time spent on each image, by index; None if a table does not tell.
        alpha: Error probability of a certificate, 0 where there is none; None for a table, which does not tell.
        sigma: Standard deviation of the noise, in pixels of [0, 1]; None without noise and for a table.
        classes: Names of the classes by label; empty where they are not known.
        settings: What its numbers depend on, in short texts; empty where nothing is known of it.
        caution: What to be warned of; else empty.
    """

    name: str
    examples: tuple[CertifiedImage, ...]
    votes: tuple[Record, ...] | None
    seconds: Mapping[int, float] | None
    alpha: float | None
    sigma: float | None
    classes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    caution: str = ""

    @property
    def sound(self) -> bool:
        """Whether every certificate has a proof."""
        return all(example.sound for example in self.examples)

    @property
    def images(self) -> frozenset[tuple[int, int]]:
        """Index and label of each image. Runs that differ here are not of the same images."""
        return frozenset((example.index, example.label) for example in self.examples)

    def summary(self, radii: Sequence[float]) -> Summary:
        """Return the numbers of the run, certified accuracies at ``radii``.

        Raises:
            SettingError: ``radii`` is empty or has a negative or non-finite value.
        """
        seconds = None if self.seconds is None else [self.seconds[each.index] for each in self.examples]
        return summarize(self.examples, self.votes, radii, seconds)


def read_runs(
    path: str | Path,
    name: str,
    *,
    alpha: float | None = None,
    audits: Sequence[AuditRule] = (),
    sides: Sides | None = None,
) -> list[ReportedRun]:
    """Read a run; certificates are derived from the votes in its ledger again.

    Args:
        path: Directory of a run (of an unfinished one, the images so far), or a table in the field's format.
        name: Name of the run.
        alpha: Error probability to certify at instead of the run's; for a table, the one that it was certified at.
        audits: Rules to certify audited votes by instead of the run's, each of which makes a run of its own, with the
            rule in its name; votes without an audit are not affected.
        sides: Bound p_A only ("one") or p_B as well ("two") instead of what the run did.

    Returns:
        One run, or one for each of ``audits``.

    Raises:
        DataError: Naming file and line: something cannot be read, or a certificate does not follow from its votes.
        LedgerError: There is no ledger, or it is damaged.
        SettingError: ``alpha`` or one of ``audits`` is out of range.
    """
    path = Path(path)
    if not path.is_dir():
        require(alpha is None or 0 < alpha < 1, "alpha", alpha, "must be in (0, 1)")
        rows = sorted(read_tsv(path), key=lambda row: row.index)
        times = {row.index: row.seconds for row in rows if row.seconds is not None}
        settings = () if alpha is None else (f"alpha = {alpha:g}",)
        return [ReportedRun(name, tuple(rows), None, times or None, alpha, None, settings=settings)]
    run = read_run(path)
    own = run.rule
    try:
        findings = certificate_findings(run)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise DataError(f"{path}: its settings cannot be used to certify anything ({error!r})") from error
    if findings:
        command = shlex.join(["deqcert", "verify", str(path)])
        raise DataError(f"{path}: does not follow from its votes ({findings[0]}); {command} says more")
    if run.document is None:
        warnings.warn(f"{path}: has not finished; these are the {len(run.votes)} images so far", stacklevel=2)
    rules: list[tuple[str, CertificationRule | MarginRule]] = [(f"{name} {DETERMINISTIC}", own)]
    if isinstance(own, CertificationRule):
        level = own if alpha is None else replace(own, alpha=alpha, alpha_audit=None, alpha_b=None)
        if sides not in (None, own.sides):
            level, name = replace(level, sides=sides, alpha_b=None), f"{name} {sides}-sided"
        rules = [(name, level)]
        if audits and any(isinstance(vote, Votes) and vote.audited is not None for vote in run.votes):
            rules = [(f"{name} {audit}", replace(level, audit=audit, alpha_audit=None)) for audit in audits]
    return [
        ReportedRun(
            name=named,
            examples=tuple(certify_all(rule, run.votes)),
            votes=run.votes,
            seconds={vote.index: vote.seconds for vote in run.votes},
            alpha=rule.alpha,
            sigma=None if run.deterministic else run.identity["smoothing"]["sigma"],
            classes=tuple(map(str, run.settings.get("classes", ()))),
            settings=run_settings(run.identity, rule, run.votes),
            caution=step_limit_caution(run.identity, run.votes),
        )
        for named, rule in rules
    ]


def common_images(runs: Sequence[ReportedRun]) -> list[ReportedRun]:
    """Restrict runs to the images that all of them have.

    Raises:
        DataError: There is none, or an image has different labels: then the data sets are different ones.
    """
    common = set.intersection(*({example.index for example in run.examples} for run in runs))
    if not common:
        raise DataError(f"no image is common to {', '.join(run.name for run in runs)}")
    restricted = []
    for run in runs:
        votes = None if run.votes is None else tuple(vote for vote in run.votes if vote.index in common)
        restricted.append(run._replace(examples=tuple(e for e in run.examples if e.index in common), votes=votes))
    first, *others = restricted
    for other in others:
        for one, another in zip(first.examples, other.examples, strict=True):
            if one.label != another.label:
                raise DataError(
                    f"image {one.index} has label {one.label} in {first.name}, but {another.label} in {other.name}"
                )
    return restricted


def report_radii(runs: Sequence[ReportedRun]) -> tuple[float, ...]:
    """Choose radii for a table of several runs: those of the run that may reach farthest."""
    return max((_radii(run) for run in runs), key=lambda radii: radii[-1])


def _radii(run: ReportedRun) -> tuple[float, ...]:
    if run.votes is not None and run.sigma is not None and run.alpha is not None:
        return automatic_radii(run.sigma, run.alpha, max(vote.n for vote in run.votes if isinstance(vote, Votes)))
    largest, step = max(example.radius for example in run.examples), 0.25
    while largest >= 9 * step:
        step *= 2
    return tuple(step * i for i in range(int(largest / step) + 1))
