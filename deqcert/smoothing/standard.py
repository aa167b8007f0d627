"""Standard sampling: independent predictions of the base classifier."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deqcert.errors import require
from deqcert.seeding import Purpose
from deqcert.smoothing.base_classifier import SolvedClassifier
from deqcert.smoothing.engine import Engine, Predictions, count_classes
from deqcert.smoothing.noise import Stream
from deqcert.smoothing.sampling import Sampling, count_votes, sample_under_noise
from deqcert.smoothing.smoothed import SmoothedClassifier
from deqcert.statistics import CertificationRule, Stopping, Votes, most_frequent


@dataclass(frozen=True)
class Standard(Sampling):
    """Classifies every noisy sample by f itself (Cohen, Rosenfeld and Kolter, ICML 2019): no chain, no audit.

    Args:
        stopping: When an image has votes enough, looked at after each batch: n then is a budget, at least n0, and
            certificates use a bound that holds wherever sampling stops, if the rule looks at votes. null takes n.
    """

    stopping: Stopping | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        enough = self.stopping is None or self.n >= self.n0
        require(enough, "n", self.n, f"must be at least n0 = {self.n0} with stopping: it is a budget")

    def aimed_at(self, rule: CertificationRule) -> Standard:
        """See :meth:`Sampling.aimed_at`."""
        return self if self.stopping is None else replace(self, stopping=self.stopping.aimed_at(rule.alpha))

    def name(self, base: nn.Module) -> str:
        """E.g. ``standard-30A`` or ``anchored-3N-learned`` of a DEQ, ``standard`` of another classifier."""
        return base.name if isinstance(base, SolvedClassifier) else "standard"

    def group_votes(
        self, g: SmoothedClassifier, engine: Engine, images: Tensor, streams: Sequence[Stream]
    ) -> list[Votes]:
        """Take independent votes; see :meth:`Sampling.group_votes`."""
        rule = self.stopping
        started = time.perf_counter()
        selection = sample_under_noise(engine.predict, self.noise(g, images, streams, Purpose.SELECTION))
        counts = [count_classes(each.classes, engine.num_classes) for each in selection]
        selected = [most_frequent(each) for each in counts]
        budgets = [self.n if rule is None else rule.budget(max(each), self.n0, self.n) for each in counts]

        def enough(image: int, batches: Sequence[Predictions]) -> bool:
            classes = [each.classes for each in batches]
            n = sum(map(len, classes))
            ended = n >= budgets[image]
            # Rules that claim not to look at votes never see them: otherwise the bound for a fixed n would be invalid.
            if ended or rule is None or not rule.anytime:
                return ended
            return rule.settled(int((torch.cat(classes) == selected[image]).sum()), n, self.n)

        noise = self.noise(g, images, streams, Purpose.ESTIMATION)
        estimation = sample_under_noise(engine.predict, noise, enough)
        anytime = rule is not None and rule.anytime
        votes = count_votes(g, engine, images, selection, estimation)
        seconds = (time.perf_counter() - started) / sum(each.n0 + each.n for each in votes)
        return [each._replace(anytime=anytime, seconds=seconds * (each.n0 + each.n)) for each in votes]
