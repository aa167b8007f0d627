"""What has to be said of a run beside its numbers: its settings, and whether its solves ended at their step limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deqcert.statistics import CertificationRule, MarginRule, Record, Votes

CONVERGENCE_ADVICE = (
    "Certificates are about the network solved this far, which is not at its fixed points: "
    "deqcert validate --config configs/validate/convergence.yaml measures what further steps are worth "
    "(docs/training.md)."
)

DETERMINISTIC = "deterministic"
"""What tables call certificates that have no failure probability."""

_AT_THE_LIMIT = 0.9  # mean share of the step limit from where most solves are taken to end there
_OF_A_SOLVER = ("class", "max_steps", "tolerance")
_ELSEWHERE = ("class", "n0", "n", "batch_size", "execution", "previous", "store_predictions")


def run_settings(
    identity: Mapping[str, Any], rule: CertificationRule | MarginRule, votes: Sequence[Record]
) -> tuple[str, ...]:
    """Say what the numbers of a run depend on, in short texts: noise, alpha, n, sides, audit, classifier, strategy.

    Args:
        identity: Identity of the run, as in its ledger.
        rule: How its votes become certificates.
        votes: Its votes, at least one.
    """
    if isinstance(rule, MarginRule):
        return DETERMINISTIC, _shown(identity["certification"])
    taken = [each for each in votes if isinstance(each, Votes)]
    first, smoothing, sampling = taken[0], identity["smoothing"], identity.get("sampling")
    budget = "at most " if any(each.anytime for each in taken) else ""
    said = [
        f"sigma = {first.sigma:g}",
        f"{smoothing.get('noise')} noise" if smoothing.get("noise") != "float32" else "",
        f"alpha = {rule.alpha:g}",
        f"n0 = {first.n0}",
        f"n = {budget}{max(each.n for each in taken)}",
        f"{rule.sides}-sided" + ("" if rule.alpha_b is None else f" (alpha_b = {rule.alpha_b:g})"),
    ]
    if first.audited is not None:
        share = "" if rule.alpha_audit is None else f" (alpha_audit = {rule.alpha_audit:g})"
        said.append(f"audit rule {rule.audit}{share}")
    if _solved(taken) and "solver" in smoothing:
        said.append(f"f = {_shown(smoothing['solver'])} from {smoothing.get('start', 'zero')}")
    if sampling is not None:
        said.append(_shown(sampling))
    return tuple(each for each in said if each)


def step_limit_caution(identity: Mapping[str, Any], records: Sequence[Record]) -> str:
    """Say so if the solves of the base classifier used up nearly all of their steps; else return an empty text.

    Judged by what the ledger has: mean evaluations per solve, and by standard sampling the residual as well, which then
    says whether solves that ended at the limit had met the tolerance. A certificate without noise subtracts what its
    solve leaves over.
    """
    votes = [each for each in records if isinstance(each, Votes)]
    if not votes:
        return ""
    solver = identity["smoothing"].get("solver") or {}
    limit, tolerance = solver.get("max_steps", 0), solver.get("tolerance", 0)
    audited = votes[0].audited is not None
    solves = sum(each.examined + each.escalations if audited else each.n0 + each.n for each in votes)
    steps = sum(each.nfe_audit if audited else each.nfe_fast for each in votes) / max(solves, 1)
    residual = sum(each.residual for each in votes) / len(votes)
    met = not audited and residual <= tolerance
    if not tolerance or steps <= _AT_THE_LIMIT * limit or met or not _solved(votes):
        return ""
    reached = "" if audited else f", to a mean relative residual of {residual:.2g}"
    return (
        f"Solves of the base classifier took {steps:.1f} of at most {limit} steps on average{reached}; their tolerance "
        f"is {tolerance:g}. {CONVERGENCE_ADVICE}"
    )


def _solved(votes: Sequence[Votes]) -> bool:
    """Whether the classifier is a DEQ: any other one takes one evaluation per sample and has no residual."""
    return any(not math.isnan(each.residual) or each.nfe_fast > each.n0 + each.n for each in votes)


def _shown(value: Any) -> str:
    """Write a described setting as ``Class(field=value, ...)``, without what stands elsewhere or is not set."""
    if not isinstance(value, Mapping):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if "max_steps" in value:
        value = {key: value[key] for key in _OF_A_SOLVER if value.get(key)}
    fields = [f"{key}={_shown(each)}" for key, each in value.items() if key not in _ELSEWHERE and each is not None]
    name = str(value.get("class", "")).rpartition(".")[2]
    return f"{name}({', '.join(fields)})" if fields else name
