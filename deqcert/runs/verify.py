"""Verifying a run from its ledger: does every published number follow from the votes?

Without model and data nobody can tell whether the votes are what the model said: for that, the digests of weights and
data in the settings say what to run again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from deqcert.errors import DataError, DeqcertError, reason
from deqcert.files import file_digest
from deqcert.runs.lines import identity_differences
from deqcert.runs.results import TSV_NAME, example_records
from deqcert.runs.run import Run, read_run
from deqcert.runs.summary import summarize
from deqcert.runs.tsv import format_tsv
from deqcert.statistics import AdaptiveAudit, FixedAudit, GroupSequential, Margins, Sides, Votes, noise_error

_STRATEGIES = ("Incremental", "Serialized", "Standard")
_RULES = {kind.__name__: kind for kind in (AdaptiveAudit, FixedAudit, GroupSequential)}
"""What decides how many votes are taken, by its name in an identity."""

_ROUNDING = 1e-9  # of scipy's quantiles in different versions

# Anything may stand in settings that somebody has written by hand.
_UNUSABLE = (DeqcertError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


class Verification(NamedTuple):
    """What :func:`verify_run` has found.

    Attributes:
        images: Number of images whose certificates were computed again.
        votes_sha256: Digest of their votes.
        findings: What does not follow, one sentence each; empty if everything does.
        unknown: Classes in the settings that are not deqcert's, each with its setting. Only the run itself knows how
            many noisy samples they ask for, and whether they look at votes, so that was not verified.
    """

    images: int
    votes_sha256: str
    findings: list[str]
    unknown: list[str]


def verify_run(directory: str | Path, checkpoint: str | Path | None = None) -> Verification:
    """Compute every certificate, total and table of a finished run again from the votes in its ledger.

    If a checkpoint is given, its digest must be that of the weights that were certified.

    Raises:
        LedgerError: There is no ledger, or one of its lines was changed, lost or damaged.
        DataError: The run is not finished, or ``certificates.json`` cannot be read.
    """
    run = read_run(directory)
    if run.document is None:
        done = f"{len(run.ledger)} images have votes"
        raise DataError(f"{run.directory}: is not finished ({done}); the command that began it resumes it")
    unknown: list[str] = []
    findings = []
    if len(run.examples) < len(run.document["examples"]):
        findings.append("examples: an index comes twice or is not an integer")
    findings += [f"image {index}: has a certificate but no votes" for index in run.examples.keys() - run.ledger.keys()]
    findings += [f"image {index}: has votes but no certificate" for index in run.ledger.keys() - run.examples.keys()]
    findings += _settings_findings(run, checkpoint)
    try:
        sampling = run.identity.get("sampling", {})
        unknown = [] if run.deterministic else _unknown_classes(sampling)
        for each in run.votes:
            if isinstance(each, Votes):
                findings += [f"image {each.index}: {text}" for text in _vote_findings(each, sampling)]
        findings += certificate_findings(run)
        summary = summarize(run.certificates, run.votes, run.document["summary"]["radii"])._asdict()
        findings += [f"summary: {text}" for text in _differences(run.document["summary"], summary, _exact(run))]
        table = format_tsv(run.certificates, {vote.index: vote.seconds for vote in run.votes})
        if _digest(run.directory / TSV_NAME) != hashlib.sha256(table.encode()).hexdigest():
            findings.append(f"{TSV_NAME}: is not what the votes give")
    except _UNUSABLE as error:
        findings.append(f"settings: cannot be used to certify anything ({error!r})")
    return Verification(len(run.votes), run.digest, findings, unknown)


def certificate_findings(run: Run) -> list[str]:
    """Compare the noise that votes carry with that of the run, and written certificates with what follows from votes.

    In a run without noise, a box must be one that the run can have looked at, and the Lipschitz constants of a class
    the same for all images.

    Raises:
        DeqcertError: The settings cannot be used to certify anything; so do other errors of what is not there.
    """
    found = _margin_findings(run) if run.deterministic else _noise_findings(run)
    if run.document is None:
        return found
    exact = _exact(run)  # reads a file
    return found + [
        f"image {right['index']}: {text}"
        for right, vote in zip(example_records(run.certificates, run.votes), run.votes, strict=True)
        for text in _differences(run.examples[vote.index], right, exact)
    ]


def _noise_findings(run: Run) -> list[str]:
    smoothing = run.identity["smoothing"]
    error = noise_error(smoothing["noise"], math.prod(run.identity["image"]))
    return [
        f"image {vote.index}: {field} = {getattr(vote, field)}, but the run has {right}"
        for vote in run.votes
        for field, right in (("sigma", smoothing["sigma"]), ("noise_error", error))
        if getattr(vote, field) != right
    ]


def _margin_findings(run: Run) -> list[str]:
    largest = run.identity["certification"].get("epsilon")
    found = []
    constants: dict[int, tuple[float, ...]] = {}
    for each in run.votes:
        assert isinstance(each, Margins)
        if each.constants != constants.setdefault(each.selected, each.constants):
            found.append(f"image {each.index}: constants are not those of other images of class {each.selected}")
        fits = each.epsilon is None if largest is None else each.epsilon is not None and each.epsilon <= largest
        if not fits:
            found.append(f"image {each.index}: epsilon = {each.epsilon}, but the run has at most {largest}")
    return found


def _exact(run: Run) -> bool:
    """Whether the quantiles of scipy are those of the run to the last bit."""
    return bool(run.settings.get("scipy") == version("scipy"))


def _settings_findings(run: Run, checkpoint: str | Path | None) -> list[str]:
    """Compare the settings with the ledger, and the digests in them with the files."""
    stated = {key: value for key, value in run.settings.items() if key in run.identity}
    found = [f"settings: {difference}" for difference in identity_differences(stated, run.identity)]
    digests = {"votes_sha256": run.digest}
    if checkpoint is not None:
        digests["checkpoint_sha256"] = _digest(Path(checkpoint))
    found += [
        f"settings: {name} = {run.settings.get(name)!r}, but it is {digest!r}"
        for name, digest in digests.items()
        if run.settings.get(name) != digest
    ]
    files = run.settings.get("files")
    if not isinstance(files, dict):
        return [*found, "settings: files must give the digests of the other files"]
    return found + [
        f"{name}: is not the file that the run has written"
        for name, digest in files.items()
        if Path(name).name != name or _digest(run.directory / name) != digest  # a name may be anything
    ]


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, or in its place why it cannot be read."""
    try:
        return file_digest(path)
    except (OSError, ValueError) as error:
        return f"unreadable: {reason(error)}"


def _unknown_classes(sampling: Mapping[str, Any]) -> list[str]:
    """Name the classes that decide how many votes are taken, and by what, unless this module knows them."""
    given = {"sampling": sampling} | {f"sampling.{field}": sampling.get(field) for field in ("audit", "stopping")}
    return [
        f"{settings['class']} ({setting})"
        for setting, settings in given.items()
        if settings is not None and settings["class"] not in (_STRATEGIES if setting == "sampling" else _RULES)
    ]


def _built(settings: Mapping[str, Any]) -> Any:
    """Build a rule from its settings; None if its class is not known, of which :func:`verify_run` tells."""
    kind: Any = _RULES.get(settings["class"])
    if kind is None:
        return None
    stated = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    if kind is AdaptiveAudit:
        stated.setdefault("rule", "exact")  # runs from before there was another one
    return kind(**{key: value for key, value in stated.items() if key != "class"})


def _vote_findings(votes: Votes, sampling: Mapping[str, Any]) -> list[str]:
    """Check the votes of an image against the settings they were taken with."""
    audit, stopping, stored = sampling.get("audit"), sampling.get("stopping"), sampling.get("store_predictions", False)
    found = [
        f"{field} = {getattr(votes, field)}, but the run has {sampling[field]}"
        for field in (("n0",) if stopping is not None else ("n0", "n"))
        if getattr(votes, field) != sampling[field]
    ]
    if stored != bool(votes.predictions):
        found.append(f"predictions {'are' if votes.predictions else 'are not'} stored, but the run has {stored}")
    if (audit is None) != (votes.audited is None):
        return [*found, f"audited = {votes.audited}, but the run has audit = {audit}"]
    if stopping is not None:
        found += _stopping_findings(votes, sampling)
    elif votes.anytime:
        found.append(f"anytime = {votes.anytime}, but the run has stopping = None")
    if audit is None:
        return found
    sides: Sides = sampling.get("sides") or "one"
    if (sides == "two") != bool(votes.audited_as):
        return [*found, f"audited_as = {votes.audited_as}, but the run has sides = {sides!r}"]
    limit = int(sampling.get("escalation", 0.0) * votes.n)
    if sampling["class"] == "Incremental":  # what is left says A
        no_more = votes.population == votes.n - votes.escalations
    else:
        no_more = sides == "one" and votes.escalated_a == votes.n_a
    if votes.escalations > limit or (votes.escalations < limit and not no_more):
        found.append(f"escalations = {votes.escalations}, but the run escalates {limit}")
    rule = _built(audit)
    if rule is not None and votes.examined != (wanted := rule.size(votes, sides)):
        found.append(f"audited = {votes.examined}, but its votes ask for {wanted}")
    return found


def _stopping_findings(votes: Votes, sampling: Mapping[str, Any]) -> list[str]:
    """Check where sampling stopped, as far as the last counts tell."""
    rule = _built(sampling["stopping"])
    if rule is None:
        return []
    schedule = rule.schedule(sampling["n"], sampling["batch_size"])
    if votes.n not in schedule:
        return [f"n = {votes.n}, but the run looks at its votes at {', '.join(map(str, schedule))}"]
    if not votes.anytime or votes.alpha_share != schedule[votes.n]:
        return [f"alpha_share = {votes.alpha_share}, but that of its look is {schedule[votes.n]}"]
    if votes.n < sampling["n"] and not rule.settled(votes.n_a, votes.n, schedule):
        return [f"n = {votes.n}, but its votes ask for more"]
    for look in (each for each in schedule if each < votes.n):
        possible = range(max(0, votes.n_a - (votes.n - look)), min(votes.n_a, look) + 1)
        likely_first = sorted(possible, key=lambda count: abs(count - votes.n_a * look / votes.n))
        if all(rule.settled(count, look, schedule) for count in likely_first):
            return [f"n = {votes.n}, but whatever its first {look} votes were, they were enough"]
    return []


def _differences(found: Mapping[str, Any], right: Mapping[str, Any], exact: bool) -> list[str]:
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
