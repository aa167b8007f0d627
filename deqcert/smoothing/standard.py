"""Standard sampling: independent predictions of the base classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deqcert.errors import require
from deqcert.smoothing.base_classifier import SolvedClassifier
from deqcert.smoothing.engine import Engine
from deqcert.smoothing.noise import Stream
from deqcert.smoothing.sampling import Sampling
from deqcert.smoothing.smoothed import SmoothedClassifier
from deqcert.statistics import CertificationRule, Stopping, Votes


@dataclass(frozen=True)
class Standard(Sampling):
    """Classifies every noisy sample by f itself (Cohen, Rosenfeld and Kolter, ICML 2019): no chain, no audit.

    Args:
        n0: Noisy samples that select the class, >= 1.
        n: Fresh noisy samples that estimate its probability, >= 1.
        batch_size: Noisy samples of an image per batch of noise, >= 1.
        execution: How noisy samples are spread over batches.
        stopping: When an image has votes enough, looked at after each batch: n then is a budget, at least n0, and
            certificates use a bound that holds wherever sampling stops, if the rule looks at votes. null takes n.

    Raises:
        SettingError: If a setting is out of range.
    """

    stopping: Stopping | None = None  # type: ignore[misc]  # here it is a setting

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

    @torch.no_grad()
    def group_votes(
        self, g: SmoothedClassifier, engine: Engine, images: Tensor, streams: Sequence[Stream]
    ) -> list[Votes]:
        """Take independent votes; see :meth:`Sampling.group_votes`."""
        sampled = self._predictions(g, engine.predict, images, streams)
        return [each.votes(g, image, engine.num_classes) for each, image in zip(sampled, images, strict=True)]
