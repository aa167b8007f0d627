"""The certification loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource

from deqcert.data import CertificationSet
from deqcert.errors import DataError
from deqcert.lightning.cautions import warn_of_another_sigma, warned_of_unconverged
from deqcert.lightning.forecast import Forecast, Measurement
from deqcert.lightning.hooks import CertificationCallback, CertificationRun
from deqcert.lightning.identity import run_identity
from deqcert.lightning.ranks import Watch, joined
from deqcert.runs import Ledger
from deqcert.smoothing import Sampling, SmoothedClassifier, Smoothing, Stream
from deqcert.statistics import Votes

_POLL_SECONDS = 0.5


class CertificationLoop(_Loop):
    """Certifies a share of the images per rank, in place of Lightning's prediction loop.

    For each image that the ledger lacks: take the votes, write them to the ledger, tell the callbacks. There is no
    collective between the first image and the end: ranks learn of each other's votes from the ledger, so a slow or
    stopped rank cannot block the others in a collective. The arguments are those of :meth:`Trainer.certify`.
    """

    trainer: Any  # lightning's annotation lacks what its trainer sets elsewhere

    def __init__(
        self, trainer: Any, smoothing: Smoothing, sampling: Sampling, seed: int, directory: Path, patience: float
    ) -> None:
        super().__init__(trainer)
        self.smoothing, self.sampling, self.seed = smoothing, sampling, seed
        self.directory, self.patience = directory, patience
        self.examples: CertificationSet | None = None  # known once it runs, in the processes that run it
        # What Trainer.predict reads and writes on its loop.
        self.inference_mode = self.return_predictions = False
        self.max_batches: list[int] = []
        self._data_source = _DataLoaderSource(None, "predict_dataloader")
        self._combined_loader = self._results = None

    def run(self) -> None:
        """Certify what the ledger does not hold yet."""
        trainer, module, data = self.trainer, self.trainer.lightning_module.eval(), self.trainer.datamodule
        if not hasattr(data, "certification_set"):
            raise DataError(f"datamodule: {type(data).__name__} has no certification_set() to certify")
        examples: CertificationSet = data.certification_set()
        self.examples = examples
        warn_of_another_sigma(module, self.smoothing.sigma)
        g = self.smoothing.of(getattr(module, "network", module))
        identity = run_identity(self.smoothing, self.sampling, self.seed, module, examples, trainer.precision)
        ledger = Ledger(self.directory, identity)
        with joined(ledger, trainer), torch.no_grad(), trainer.precision_plugin.predict_step_context():
            known, wanted, watch = ledger.votes, set(examples.indices), Watch(trainer, self.patience)
            run = CertificationRun(
                smoothing=self.smoothing,
                sampling=self.sampling,
                directory=self.directory,
                name=self.sampling.name(g.base),
                identity=ledger.identity,
                examples=examples,
                done=[known[index] for index in sorted(wanted & known.keys())],
            )
            self._notify("on_certify_start", run)
            remaining = [position for position, index in enumerate(examples.indices) if index not in known]
            for votes in self._votes(g, examples, remaining):
                self._share(ledger, votes, wanted, watch)
            while self._share(ledger, [], wanted, watch):  # until the other ranks have done theirs
                time.sleep(_POLL_SECONDS)
            self._notify("on_certify_end", [known[index] for index in sorted(wanted)])

    def _votes(self, g: SmoothedClassifier, examples: CertificationSet, remaining: list[int]) -> Iterator[list[Votes]]:
        """Take the votes of this rank's share of the images at ``remaining``, as many at a time as suits the device."""
        positions = remaining[self.trainer.global_rank :: self.trainer.world_size]
        warned = False
        if not positions:
            return
        device = self.trainer.lightning_module.device
        engine = self.sampling.engine(g, examples[positions[0]][0].to(device))
        for first in range(0, len(positions), engine.images):
            group = [examples[position] for position in positions[first : first + engine.images]]
            images = torch.stack([image.to(device) for image, _, _ in group])
            streams = [Stream(self.seed, index) for _, _, index in group]
            if first == 0 and self.trainer.is_global_zero:
                left = len(remaining), len(positions)
                Measurement(self.sampling, g, engine, images, left, partial(self._notify, "on_certify_forecast"))
            votes = self.sampling.group_votes(g, engine, images, streams)
            yield [each._replace(index=i, label=label) for each, (_, label, i) in zip(votes, group, strict=True)]
            warned = warned or warned_of_unconverged(engine)

    def _share(self, ledger: Ledger, own: Sequence[Votes], wanted: set[int], watch: Watch) -> int:
        """Write this rank's votes to the ledger, tell the callbacks of all; return how many images have none yet."""
        for votes in own:
            ledger.append(votes)
        heard = ledger.refresh()
        for votes in (*own, *(heard if self.trainer.is_global_zero else ())):
            if votes.index in wanted:
                self._notify("on_certify_example_end", votes)
        missing = len(wanted - ledger.votes.keys())
        if missing:
            watch.check(news=bool(own or heard), missing=missing)
        return missing

    def _notify(self, hook: str, argument: CertificationRun | Forecast | Votes | Sequence[Votes]) -> None:
        for callback in self.trainer.callbacks:
            if isinstance(callback, CertificationCallback):
                getattr(callback, hook)(self.trainer, self.trainer.lightning_module, argument)

    def teardown(self) -> None:
        """Nothing to tear down; called by the trainer."""
