"""Incremental sampling: a finished run predicts for a changed network, and an exact audit pays for the shortcut."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deqcert.errors import is_real, require
from deqcert.runs import Run, identity_differences, read_run
from deqcert.seeding import Purpose
from deqcert.smoothing.audited import Audited
from deqcert.smoothing.base_classifier import SolvedClassifier, solver_name
from deqcert.smoothing.engine import Engine, Predictions, count_classes
from deqcert.smoothing.noise import Stream
from deqcert.smoothing.sampling import count_votes, sample_under_noise
from deqcert.smoothing.smoothed import SmoothedClassifier
from deqcert.statistics import AdaptiveAudit, AuditSize, Sides, Votes, most_frequent

# Where an identity has what determines images and noise: at its top, and in two of its groups.
_OF_THE_RUN = ("seed", "image", "device", "data")
_OF_A_GROUP = {"smoothing": ("sigma", "noise"), "sampling": ("n", "batch_size", "stopping")}


@dataclass(frozen=True)
class Incremental(Audited):
    """Certifies a changed network with the predictions of a finished run of the network before the change.

    The certificate is about the g of the new network, whatever the old one said (the problem is that of incremental
    certification: Ugare et al., ICLR 2024). Both see the same noise, so the old predictions S are mostly those of the
    new f. Fresh selection samples, classified by f, select A. f is asked about estimation samples with S != A, and
    about a uniformly random subset of those with S = A, large enough for what has been found by then. Any classifier
    will do.

    Args:
        previous: Directory of the run, finished and with ``store_predictions``. Images, seed, noise, n, batch_size and
            kind of device must be those of this run.
        escalation: Share of the estimation samples, in [0, 1], up to which f is asked about those with S != A, the
            first ones first. 1 asks about all of them, which pays where networks differ; 0 about none, which is cheaper
            where they hardly do.
        audit: How many of the samples with S = A are audited.
        sides: Sides of the certificates to come, "one" or "two"; null for those of the run's certificates.
    """

    previous: str = field(kw_only=True)
    escalation: float = 1.0
    audit: AuditSize = AdaptiveAudit()
    sides: Sides | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        share = is_real(self.escalation) and 0 <= self.escalation <= 1
        require(share, "escalation", self.escalation, "must be in [0, 1]")

    def identity(self) -> dict[str, Any]:
        """See :meth:`Sampling.identity`; of the earlier run it has the digest of the votes."""
        return super().identity() | {"previous": self._run.digest}

    def demand_fitting(self, identity: Mapping[str, Any], indices: Sequence[int]) -> None:
        """Refuse a run whose images or noise are not those of the earlier one, or that has images which that one lacks.

        Args:
            identity: Identity of the run, or as much of it as says what its noise is.
            indices: Original indices of its images.

        Raises:
            SettingError: Naming each difference; or the earlier run cannot be used.
            LedgerError: There is no such run, or it is damaged.
        """
        theirs, ours = _noise_of(self._run.identity), _noise_of(identity)
        differences = identity_differences({key: theirs.get(key) for key in ours}, ours)
        self._demand(not differences, f"its images or noise are not those of this run ({'; '.join(differences)})")
        missing = sorted(set(indices) - self._votes.keys())
        self._demand(not missing, f"has no votes of image {', '.join(map(str, missing[:5]))}")

    def anticipated(self, n: int, n_a: int, sigma: float) -> list[Votes]:
        """See :meth:`Sampling.anticipated`."""
        (votes,) = super().anticipated(n, n_a, sigma)
        count = min(int(self.escalation * n), n - n_a)
        escalated = (0, count) if count else ()
        votes = votes._replace(audited=0, escalations=count, escalated=escalated, escalated_from=escalated)
        return [self.anticipated_audit(votes)]

    @property
    def predicted(self) -> int:
        """See :meth:`Sampling.predicted`: those of selection only."""
        return self.n0

    def name(self, base: nn.Module) -> str:
        """E.g. ``incremental-30A`` of a DEQ, ``incremental`` of another classifier."""
        return f"incremental-{solver_name(base.solver)}" if isinstance(base, SolvedClassifier) else "incremental"

    def group_votes(
        self, g: SmoothedClassifier, engine: Engine, images: Tensor, streams: Sequence[Stream]
    ) -> list[Votes]:
        """Take votes; see :meth:`Sampling.group_votes`.

        Where f was asked, its answer takes the place of S. All predictions are known before the audit is drawn, and its
        size K may depend on them.
        """
        started = time.perf_counter()
        for stream in streams:
            self.demand_fitting(self._identity_of_noise(g, images, stream), [stream.index])
        selection = sample_under_noise(engine.predict, self.noise(g, images, streams, Purpose.SELECTION))
        predicted = [self._predicted(stream.index, engine.num_classes) for stream in streams]
        limit = int(self.escalation * self.n)
        escalated = [
            np.flatnonzero(classes.numpy() != most_frequent(count_classes(chosen.classes, engine.num_classes)))[:limit]
            for chosen, classes in zip(selection, predicted, strict=True)
        ]
        answers = self.ask(engine, self.noise(g, images, streams, Purpose.ESTIMATION), escalated)
        for classes, positions, (said, _) in zip(predicted, escalated, answers, strict=True):
            classes[positions] = said
        nothing = torch.zeros(self.n, dtype=torch.int64)
        free = [Predictions(classes, nothing, nothing.double(), nothing, nothing) for classes in predicted]
        votes = [
            each._replace(
                audited=0,
                escalations=len(said),
                escalated=(counts := count_classes(said, engine.num_classes) if len(said) else ()),
                escalated_from=counts,
                nfe_audit=int(steps.sum()),
                residual=float(chosen.residual.mean()),
            )
            for each, chosen, (said, steps) in zip(
                count_votes(g, engine, images, selection, free), selection, answers, strict=True
            )
        ]
        # A part of its own: nothing that is known of the audit of the earlier run says what this one draws.
        part = int(self._run.digest[:8], 16)
        audited = [self.draw_audit(*each, part) for each in zip(votes, predicted, escalated, streams, strict=True)]
        answers = self.ask(engine, self.noise(g, images, streams, Purpose.ESTIMATION), audited)
        seconds = (time.perf_counter() - started) / len(images)
        return [
            self.with_predictions(self.with_audit(each, classes[positions], said), classes)._replace(
                nfe_audit=each.nfe_audit + int(steps.sum()), seconds=seconds
            )
            for each, classes, positions, (said, steps) in zip(votes, predicted, audited, answers, strict=True)
        ]

    @cached_property
    def _run(self) -> Run:
        """The earlier run."""
        run = read_run(self.previous)
        self._demand(run.document is not None, "is not finished; the command that began it resumes it")
        self._demand(not run.deterministic, "is a run without noise")
        without = [each.index for each in run.votes if not (isinstance(each, Votes) and each.predictions)]
        self._demand(not without, "was taken without --sampling.store_predictions true: its ledger has counts only")
        return run

    @cached_property
    def _votes(self) -> dict[int, Votes]:
        return {each.index: each for each in self._run.votes if isinstance(each, Votes)}

    def _predicted(self, index: int, num_classes: int) -> Tensor:
        """Return what the earlier run says of the estimation samples of an image, shape (n,), int64."""
        votes = self._votes[index]
        classes = len(votes.estimation)
        self._demand(classes == num_classes, f"has {classes} classes, the network has {num_classes}")
        return torch.from_numpy(votes.sample_predictions())

    def _identity_of_noise(self, g: SmoothedClassifier, images: Tensor, stream: Stream) -> dict[str, Any]:
        """Return as much of an identity as a call without a run has."""
        return {
            "seed": stream.seed,
            "image": list(images.shape[1:]),
            "device": images.device.type,
            "smoothing": {"sigma": g.sigma, "noise": g.noise},
            "sampling": {"n": self.n, "batch_size": self.batch_size},
        }

    def _demand(self, condition: bool, allowed: str) -> None:
        require(condition, "sampling.previous", self.previous, allowed)


def _noise_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that determines the noise of images, as far as it is there."""
    groups = {group: {name: identity[group].get(name) for name in names} for group, names in _OF_A_GROUP.items()}
    return {key: identity[key] for key in _OF_THE_RUN if key in identity} | groups
