"""Verifying a run from its ledger: does every published number follow from the votes?

No model and no data are needed. What cannot be checked without them is whether the votes are what the model said;
for that, the digests of weights and data in the settings say what to run again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from deqcert.errors import DataError, DeqcertError, reason
from deqcert.files import file_digest
from deqcert.ledger import Ledger, identity_differences, stored_identity, votes_digest
from deqcert.report.json_report import read_json, report_examples
from deqcert.report.summary import summarize
from deqcert.report.tsv import format_tsv
from deqcert.statistics import (
    AdaptiveAudit,
    Certificate,
    CertificationRule,
    ChainAudit,
    FixedAudit,
    InputSpecific,
    Stopping,
    TargetRadius,
    Votes,
    join_chains,
    noise_error,
)

_AUDITS = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (AdaptiveAudit, FixedAudit)}
_STOPPINGS: dict[str, type[Stopping]] = {
    f"{kind.__module__}.{kind.__qualname__}": kind for kind in (InputSpecific, TargetRadius)
}
# By name: importing them would import torch.
_STRATEGIES = tuple(
    f"deqcert.smoothing.{name}" for name in ("anchored.Anchored", "serialized.Serialized", "standard.Standard")
)

# Of scipy's quantiles in different versions.
_ROUNDING = 1e-9


class Verification(NamedTuple):
    """What :func:`verify_run` has found.

    Attributes:
        images: Images whose certificates were computed again.
        votes_sha256: Digest of their votes.
        findings: What does not follow, one sentence each; empty if everything does.
        unknown: Classes of the settings that are not deqcert's, each with its setting. Only the run itself knows what
            numbers of noisy samples they ask for, and whether they look at votes, so that was not verified.
    """

    images: int
    votes_sha256: str
    findings: list[str]
    unknown: list[str]


def verify_run(directory: str | Path, checkpoint: str | Path | None = None) -> Verification:
    """Compute every certificate, total and table of a run again from the votes in its ledger.

    Args:
        directory: Directory of a finished run: ledger, ``certificates.json`` and ``certificates.tsv``.
        checkpoint: File whose digest must be that of the weights that were certified; None skips this.

    Returns:
        What was found.

    Raises:
        LedgerError: There is no ledger, or one of its lines was changed, lost or damaged.
        DataError: The run is not finished, or ``certificates.json`` cannot be read.
    """
    directory = Path(directory)
    identity = stored_identity(directory)
    ledger = Ledger(directory, identity)
    ledger.refresh()
    if not (directory / "certificates.json").exists():
        done = len(ledger.contents.votes)
        raise DataError(
            f"{directory}: is not finished ({done} images have votes); the command that began it resumes it"
        )
    report = read_json(directory / "certificates.json")
    examples = {example.get("index"): example for example in report["examples"] if type(example.get("index")) is int}
    votes = [ledger.contents.votes[index] for index in sorted(examples.keys() & ledger.contents.votes.keys())]
    digest = votes_digest(votes)

    findings, unknown = [], []
    if len(examples) < len(report["examples"]):
        findings.append("examples: an index comes twice or is no integer")
    findings += [f"image {index}: has a certificate but no votes" for index in examples.keys() - ledger.contents.votes]
    findings += [f"image {index}: has votes but no certificate" for index in ledger.contents.votes.keys() - examples]
    findings += _settings_findings(report["settings"], identity, digest)
    findings += _file_findings(directory, report["settings"].get("files"))
    if checkpoint is not None:
        findings += _checkpoint_findings(Path(checkpoint), report["settings"])
    try:
        unknown = _unknown_classes(identity["smoothing"])
        for each in votes:
            findings += noise_findings(each, identity)
            findings += _vote_findings(each, identity["smoothing"])
            findings += _chain_findings(each, ledger, identity["smoothing"]["chains"])
        findings += _report_findings(report, examples, votes)
        findings += _table_findings(directory / "certificates.tsv", report, votes)
    except (DeqcertError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        # Anything may stand in settings that somebody has written by hand.
        findings.append(f"settings: cannot be used to certify anything ({error!r})")
    return Verification(len(votes), digest, findings, unknown)


def _certificates(votes: Sequence[Votes], settings: Mapping[str, Any]) -> list[Certificate]:
    rule = CertificationRule(**settings["certificate"])
    return [rule.certify(vote) for vote in votes]


def _settings_findings(settings: Mapping[str, Any], identity: Mapping[str, Any], digest: str) -> list[str]:
    stated = {key: value for key, value in settings.items() if key in identity}
    found = [f"settings: {difference}" for difference in identity_differences(stated, identity)]
    if settings.get("votes_sha256") != digest:
        found.append(f"settings: votes_sha256 = {settings.get('votes_sha256')!r}, but the votes have {digest}")
    return found


def _report_findings(
    report: Mapping[str, Any], examples: Mapping[Any, Mapping[str, Any]], votes: Sequence[Votes]
) -> list[str]:
    """Compute certificates and summary again."""
    certificates = _certificates(votes, report["settings"])
    exact = report["settings"].get("scipy") == version("scipy")
    found = [
        f"image {right['index']}: {text}"
        for right in report_examples(certificates, votes)
        for text in _differences(examples[right["index"]], right, exact)
    ]
    summary = summarize(certificates, votes, report["summary"]["radii"])._asdict()
    return found + [f"summary: {text}" for text in _differences(report["summary"], summary, exact)]


def _file_findings(directory: Path, files: Any) -> list[str]:
    """Compare the other files of the run with their digests; their names come from a file and are not believed."""
    if not isinstance(files, dict):
        return ["settings: files must give the digests of the other files"]
    return [
        f"{name}: is not the file that the run has written"
        for name, digest in files.items()
        if Path(name).name != name or _digest(directory / name) != digest
    ]


def _checkpoint_findings(checkpoint: Path, settings: Mapping[str, Any]) -> list[str]:
    stated, digest = settings.get("checkpoint_sha256"), _digest(checkpoint)
    return [] if stated == digest else [f"settings: checkpoint_sha256 = {stated!r}, but {checkpoint} has {digest!r}"]


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, or in its place why it cannot be read."""
    try:
        return file_digest(path)
    except (OSError, ValueError) as error:
        return f"unreadable: {reason(error)}"


def noise_findings(votes: Votes, identity: Mapping[str, Any]) -> list[str]:
    """Check the noise that an image's votes carry against that of the run; return what differs."""
    smoothing = identity["smoothing"]
    right = {
        "sigma": smoothing["sigma"],
        "noise_error": noise_error(smoothing["noise"], math.prod(identity["image"])),
    }
    return [
        f"image {votes.index}: {field} = {getattr(votes, field)}, but the run has {value}"
        for field, value in right.items()
        if getattr(votes, field) != value
    ]


def _unknown_classes(smoothing: Mapping[str, Any]) -> list[str]:
    """Name the classes that decide how many votes are taken, and by what, unless this module knows them."""
    given = {"smoothing": (smoothing, _STRATEGIES)} | {
        f"smoothing.{field}": (smoothing[field], known)
        for field, known in (("audit", _AUDITS), ("stopping", _STOPPINGS))
        if smoothing.get(field) is not None
    }
    return [
        f"{settings['class']} ({setting})"
        for setting, (settings, known) in given.items()
        if settings["class"] not in known
    ]


def _vote_findings(votes: Votes, smoothing: Mapping[str, Any]) -> list[str]:
    """Check the votes of an image against the settings they were taken with."""
    found = [
        f"image {votes.index}: {field} = {getattr(votes, field)}, but the run has {smoothing[field]}"
        for field in (("n0",) if smoothing.get("stopping") is not None else ("n0", "n"))
        if getattr(votes, field) != smoothing[field]
    ]
    audit = smoothing.get("audit")
    if (audit is None) != (votes.audited is None):
        found.append(f"image {votes.index}: audited = {votes.audited}, but the run has audit = {audit}")
        return found
    findings = _stopping_findings(votes, smoothing) if audit is None else _audit_findings(votes, audit)
    return found + [f"image {votes.index}: {text}" for text in findings]


def _audit_findings(votes: Votes, settings: Mapping[str, Any]) -> list[str]:
    """Check the size of the audit, which N_A determines."""
    if settings["class"] not in _AUDITS:
        return []  # verify_run names it
    audit = _AUDITS[settings["class"]](**{key: value for key, value in settings.items() if key != "class"})
    size = audit.size(votes.n_a, votes.n)
    return [] if votes.audited == size else [f"audited = {votes.audited}, but its votes ask for {size}"]


def _stopping_findings(votes: Votes, smoothing: Mapping[str, Any]) -> list[str]:
    """Check where sampling stopped, as far as the last counts tell: those of earlier looks are known within a batch."""
    stopping, n_max, batch = smoothing.get("stopping"), smoothing["n"], smoothing["batch_size"]
    if stopping is None:
        return [f"anytime = {votes.anytime}, but the run has stopping = None"] if votes.anytime else []
    if votes.n > n_max or (votes.n < n_max and votes.n % batch):
        return [f"n = {votes.n}, but the run looks at its votes every {batch} copies, up to {n_max}"]
    if stopping["class"] not in _STOPPINGS:
        return []  # verify_run names it
    rule = _STOPPINGS[stopping["class"]](**{key: value for key, value in stopping.items() if key != "class"})
    if votes.anytime != rule.anytime:
        return [f"anytime = {votes.anytime}, but the run has stopping = {stopping}"]
    if not rule.anytime:
        budget = rule.budget(max(votes.selection), votes.n0, n_max)
        size = min(n_max, -(-budget // batch) * batch)
        return [] if votes.n == size else [f"n = {votes.n}, but its selection asks for {size}"]
    if votes.n < n_max and not rule.settled(votes.n_a, votes.n, n_max):
        return [f"n = {votes.n}, but its votes ask for more"]
    look = (votes.n - 1) // batch * batch
    possible = range(max(0, votes.n_a - (votes.n - look)), min(votes.n_a, look) + 1)
    likely_first = sorted(possible, key=lambda count: abs(count - votes.n_a * look / votes.n))
    if look and all(rule.settled(count, look, n_max) for count in likely_first):
        return [f"n = {votes.n}, but whatever its first {look} votes were, they were enough"]
    return []


def _chain_findings(votes: Votes, ledger: Ledger, chains: int) -> list[str]:
    """Add up the chains of an image again, if it was shared by samples.

    A run that was ended and went on by whole images has left some chains of an image, or all of them with other times.
    """
    places = [(votes.index, chain) for chain in range(chains)]
    contents = ledger.contents
    if not contents.labels.keys() >= set(places):
        return []
    audits: list[ChainAudit] | None = None
    if votes.audited is not None:
        if not contents.audits.keys() >= set(places):
            return []
        audits = [contents.audits[place] for place in places]
    labels = [contents.labels[place] for place in places]
    joined = join_chains(votes.label, votes.n0, labels, audits, sigma=votes.sigma, noise_error=votes.noise_error)
    differences = _differences(votes.to_json(), joined._replace(seconds=votes.seconds).to_json())
    return [f"image {votes.index}: its chains give {text}" for text in differences]


def _table_findings(path: Path, report: Mapping[str, Any], votes: Sequence[Votes]) -> list[str]:
    """Write the table again."""
    certificates = _certificates(votes, report["settings"])
    expected = format_tsv(certificates, {vote.index: vote.seconds for vote in votes})
    try:
        found = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return [f"{path.name}: cannot be read: {reason(error)}"]
    theirs, ours = found.split("\n"), expected.split("\n")
    lines = [number for number, (one, other) in enumerate(zip(theirs, ours, strict=False), start=1) if one != other]
    lines += [min(len(theirs), len(ours)) + 1] if len(theirs) != len(ours) else []
    return [f"{path.name}, line {number}: is not what the votes give" for number in lines]


def _differences(found: Mapping[str, Any], right: Mapping[str, Any], exact: bool = True) -> list[str]:
    """Compare two records field by field."""
    return [
        f"{key} = {found.get(key)!r}, but it is {right.get(key)!r}"
        for key in sorted(found.keys() | right.keys())
        if (key in found) != (key in right) or not _same(found[key], right[key], exact)
    ]


def _same(one: Any, other: Any, exact: bool) -> bool:
    if isinstance(other, (tuple, list)):
        return (
            isinstance(one, (tuple, list))
            and len(one) == len(other)
            and all(_same(a, b, exact) for a, b in zip(one, other, strict=True))
        )
    if isinstance(other, float) and isinstance(one, (int, float)) and not isinstance(one, bool):
        return one == other or (not exact and math.isclose(one, other, rel_tol=_ROUNDING))
    return type(one) is type(other) and bool(one == other)
