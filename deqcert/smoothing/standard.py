"""Standard sampling: independent predictions of the base classifier."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deqcert.seeding import Purpose
from deqcert.smoothing.base_classifier import SolvedClassifier
from deqcert.smoothing.engine import Engine, Predictions, count_classes
from deqcert.smoothing.noise import Stream
from deqcert.smoothing.sampling import Sampling, count_votes, sample_under_noise
from deqcert.smoothing.smoothed import SmoothedClassifier
from deqcert.statistics import CertificationRule, GroupSequential, Votes, most_frequent


@dataclass(frozen=True)
class Standard(Sampling):
    """Classifies every noisy sample by f itself (Cohen, Rosenfeld and Kolter, ICML 2019): no chain, no audit.

    Args:
        stopping: When to stop at a few looks at the votes; n then is a budget. null takes n.
    """

    stopping: GroupSequential | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stopping is not None:
            self.stopping.schedule(self.n, self.batch_size)  # refuses looks that do not end at n

    def aimed_at(self, rule: CertificationRule) -> Standard:
        """See :meth:`Sampling.aimed_at`."""
        return self if self.stopping is None else replace(self, stopping=self.stopping.aimed_at(rule.alpha))

    def anticipated(self, n: int, n_a: int, sigma: float) -> list[Votes]:
        """See :meth:`Sampling.anticipated`; of another n than this strategy's, stated looks end at that n."""
        (votes,) = super().anticipated(n, n_a, sigma)
        rule = self.stopping
        if rule is None:
            return [votes]
        if rule.looks is not None:
            rule = replace(rule, looks=(*rule.looks[:-1], n))
        return [
            votes._replace(n=look, estimation=(round(look * n_a / n), 0), anytime=True, alpha_share=share)
            for look, share in rule.schedule(n, self.batch_size).items()
        ]

    def name(self, base: nn.Module) -> str:
        """E.g. ``standard-30A`` or ``anchored-3N-learned`` of a DEQ, ``standard`` of another classifier."""
        return base.name if isinstance(base, SolvedClassifier) else "standard"

    def group_votes(
        self, g: SmoothedClassifier, engine: Engine, images: Tensor, streams: Sequence[Stream]
    ) -> list[Votes]:
        """Take independent votes; see :meth:`Sampling.group_votes`."""
        started = time.perf_counter()
        rule = self.stopping
        schedule = {} if rule is None else rule.schedule(self.n, self.batch_size)
        selection = sample_under_noise(engine.predict, self.noise(g, images, streams, Purpose.SELECTION))
        selected = [most_frequent(count_classes(each.classes, engine.num_classes)) for each in selection]

        def enough(image: int, batches: Sequence[Predictions]) -> bool:
            n = sum(len(each.classes) for each in batches)
            if rule is None or n not in schedule:
                return False
            k = int((torch.cat([each.classes for each in batches]) == selected[image]).sum())
            return rule.settled(k, n, schedule)

        noise = self.noise(g, images, streams, Purpose.ESTIMATION)
        estimation = sample_under_noise(engine.predict, noise, enough)
        votes = count_votes(g, engine, images, selection, estimation)
        votes = [self.with_predictions(each, drawn.classes) for each, drawn in zip(votes, estimation, strict=True)]
        if rule is not None:
            votes = [each._replace(anytime=True, alpha_share=schedule[each.n]) for each in votes]
        seconds = (time.perf_counter() - started) / sum(each.n0 + each.n for each in votes)
        return [each._replace(seconds=seconds * (each.n0 + each.n)) for each in votes]
