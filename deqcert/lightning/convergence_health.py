"""How fast a network will certify, measured while it is validated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from deqcert.errors import SettingError, require, require_count
from deqcert.files import write_atomically
from deqcert.models import DEQ
from deqcert.seeding import Purpose, mixed_seed, require_seed
from deqcert.smoothing import Serialized, Smoothing, SolvedClassifier, Stream
from deqcert.solvers import Anderson
from deqcert.statistics import FixedAudit

_SHOWN = (1, 3, 5, 10)
"""Steps whose residuals are logged and printed, besides the last one."""

_WIDTH = 16
"""Noisy samples side by side; the residuals are those of as many samples per image."""


class Convergence(NamedTuple):
    """What k solver steps are worth on noisy samples of a few images.

    The residuals after k steps, from the cold start and from the fixed point of another noisy sample of the image, are
    geometric means, infinite if one is not finite. ``mismatches`` of the ``audited`` SRS predictions by k warm steps
    are not f's; None where k was not asked for.
    """

    cold: float
    warm: float
    mismatches: int = 0
    audited: int | None = None


class ConvergenceHealth(Callback):
    """Measures residuals over solver steps, cold and warm, and the mismatch rates of cheap warm-started predictions.

    Together they decide how fast serialized smoothing (Gao et al., NeurIPS 2024) certifies: how few warm-started
    steps still give the predictions of the base classifier. Each validation logs ``convergence/cold/residual_at_k``,
    ``convergence/warm/residual_at_k`` and ``convergence_mismatch/after_k`` and writes ``convergence.tsv`` into the log
    directory; the verb ``validate`` prints the table.

    Only rank 0 measures, on the first images of its first validation batch; weight averaging is seen as validated.

    Args:
        images: Images to measure, at most one batch of them, >= 1.
        max_steps: Anderson steps of the base classifier, and the largest k, >= 1.
        mismatch_steps: Warm-started steps whose predictions are audited, from 1 to max_steps.
        noisy_samples: Noisy samples per image that are classified cheaply and audited, >= 1.
        seed: Seed of the noise, in [0, 2^64).

    Raises:
        SettingError: If a setting is out of range; in ``setup``, if the module has no DEQ ``network`` or no ``sigma``.
    """

    def __init__(
        self,
        images: int = 8,
        max_steps: int = 30,
        mismatch_steps: Sequence[int] = (1, 2, 3, 5),
        noisy_samples: int = 64,
        seed: int = 0,
    ) -> None:
        require_count("images", images, minimum=1)
        require_count("noisy_samples", noisy_samples, minimum=1)
        self.solver = Anderson(max_steps=max_steps)
        allowed = f"must be integers from 1 to max_steps = {max_steps}"
        require(set(mismatch_steps) <= set(range(1, max_steps + 1)), "mismatch_steps", mismatch_steps, allowed)
        require_seed(seed)
        self.images, self.mismatch_steps, self.noisy_samples = images, mismatch_steps, noisy_samples
        # Never that of a certification: whoever chooses solver steps by this noise has looked at it.
        self.stream_seed = mixed_seed(1, seed)
        self.measured: list[Convergence] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take sigma from the module; find the directory of the table."""
        if stage not in (TrainerFn.FITTING, TrainerFn.VALIDATING):
            return
        network = getattr(pl_module, "network", None)
        if not isinstance(network, DEQ):
            raise SettingError("model.network", type(network).__name__, "must be a DEQ for ConvergenceHealth")
        self._smoothing = Smoothing(getattr(pl_module, "sigma", None), solver=self.solver)  # type: ignore[arg-type]
        # A broadcast, so not where rank 0 works alone.
        self._path = Path(trainer.log_dir or trainer.default_root_dir) / "convergence.tsv"

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: tuple[Tensor, Tensor, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure on the first batch: at the end of the epoch, averaged weights may already be swapped out."""
        if batch_idx == dataloader_idx == 0 and trainer.is_global_zero and not trainer.sanity_checking:
            with torch.no_grad(), trainer.precision_plugin.val_step_context():
                self.measured = self._measure(pl_module.network, batch[0][: self.images], batch[2].tolist())  # type: ignore[arg-type]

    def _measure(self, network: DEQ, images: Tensor, indices: Sequence[int]) -> list[Convergence]:
        """Return what 1, 2, ... steps are worth on clean images, whose indices choose the noise."""
        g = self._smoothing.of(network)
        f = g.base
        assert isinstance(f, SolvedClassifier)
        streams = [Stream(self.stream_seed, index) for index in indices[: len(images)]]
        width = min(_WIDTH, self.noisy_samples)
        curves = []
        for image, stream in zip(images, streams, strict=True):
            purposes = Purpose.SELECTION, Purpose.ESTIMATION
            previous, current = (next(g.noisy(image, stream, purpose, width, width)) for purpose in purposes)
            start = f.network.solve(previous, f.solver, f.start)[1].value
            curves.append([residual_curve(network, current, self.solver.max_steps, each) for each in (None, start)])
        cold, warm = (_geometric_mean(torch.cat([pair[i] for pair in curves], dim=1)) for i in (0, 1))
        measured = [Convergence(*residuals) for residuals in zip(cold, warm, strict=True)]
        for steps in self.mismatch_steps:
            audit, proposal = FixedAudit(self.noisy_samples), Anderson(max_steps=steps)
            sampling = Serialized(n0=width, n=self.noisy_samples, batch_size=_WIDTH, proposal=proposal, audit=audit)
            votes = [sampling.votes(g, image, stream) for image, stream in zip(images, streams, strict=True)]
            mismatches, audited = sum(each.mismatches for each in votes), sum(each.audited or 0 for each in votes)
            measured[steps - 1] = measured[steps - 1]._replace(mismatches=mismatches, audited=audited)
        return measured

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the measurement, write the table and, in ``validate``, print it."""
        measured, self.measured = self.measured, []
        if not measured:
            return
        metrics: dict[str, float] = {}
        lines = ["step\tcold\twarm\tmismatches\taudited"]
        printed = [*lines]
        for step, (cold, warm, mismatches, audited) in enumerate(measured, start=1):
            lines.append(
                f"{step}\t{cold:.6g}\t{warm:.6g}\t" + ("\t" if audited is None else f"{mismatches}\t{audited}")
            )
            shown = step in _SHOWN or step == len(measured)
            if shown:
                metrics |= {f"convergence/cold/residual_at_{step}": cold, f"convergence/warm/residual_at_{step}": warm}
            if shown or audited is not None:
                printed.append(lines[-1])
            if audited:
                metrics[f"convergence_mismatch/after_{step}"] = mismatches / audited
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        write_atomically(self._path, "\n".join([*lines, ""]).encode())
        if trainer.state.fn == TrainerFn.VALIDATING:
            table = "\n".join(printed).expandtabs(14)
            # Unlike print, it leaves the progress bar whole.
            pl_module.print(f"Relative residuals, and predictions unlike the base classifier's\n{table}\n{self._path}")


def residual_curve(network: DEQ, x: Tensor, steps: int, start: Tensor | None = None) -> Tensor:
    """Return ‖F(X_k) − X_k‖ / ‖F(X_k)‖ of Anderson's method, shape (steps, B), for images (B, C, H, W).

    ``start`` is X_0; None is the cold start. Infinite where an iterate or F of it is not finite.
    """
    curve: list[Tensor] = []
    injection = network.inject(x)

    def recorded(z: Tensor) -> Tensor:
        fz = network.cell(z, injection)
        residual = torch.linalg.vector_norm((fz - z).flatten(1), dim=1)
        size = torch.linalg.vector_norm(fz.flatten(1).to(residual.dtype), dim=1)
        tiny = torch.finfo(residual.dtype).tiny  # F(0) = 0 is a fixed point
        curve.append((residual / size.clamp_min(tiny)).nan_to_num(nan=torch.inf, posinf=torch.inf))
        return fz

    begin = network.initial_state(injection) if start is None else start
    Anderson(max_steps=steps + 1).solve(recorded, begin)  # one evaluation more than steps
    return torch.stack(curve[1:])


def _geometric_mean(curves: Tensor) -> list[float]:
    """Average over rows, shape (K, B) to K values; what is below the rounding error of an evaluation counts as that."""
    means: list[float] = curves.clamp_min(torch.finfo(curves.dtype).eps).log().mean(dim=1).exp().tolist()
    return means
