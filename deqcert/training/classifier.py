"""The LightningModule that trains a DEQ under Gaussian noise."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from deqcert.errors import CheckpointError, require
from deqcert.implicit import (
    FixedPoint,
    GradientEstimator,
    ImplicitAdjoint,
    hutchinson_penalty,
    spectral_radius,
    unrolled_fixed_point,
)
from deqcert.models import DEQ
from deqcert.seeding import mixed_seed
from deqcert.solvers import Solution
from deqcert.training.regularization import JacobianRegularization

Batch = tuple[Tensor, Tensor, Tensor]

_SPECTRAL_RADIUS_IMAGES = 16


class DEQClassifier(LightningModule):
    """Trains a DEQ with Gaussian augmentation (Cohen et al. 2019), first unrolled, then implicitly.

    Every training step draws from a random stream of its own, so a resumed run repeats an uninterrupted one.

    Args:
        network: The deep equilibrium network.
        sigma: Standard deviation of the training noise, in pixels of [0, 1], >= 0.
        gradient: Gradient through the fixed point in implicit training.
        pretraining_steps: Optimiser steps of unrolled pre-training before implicit training, >= 0.
        pretraining_layers: Evaluations of the cell per unrolled forward pass, >= 1.
        jacobian: Jacobian regularisation.
        optimizer: Optimiser; its learning rate follows a cosine to zero over the whole run, per step.

    Raises:
        SettingError: If a setting is out of range.
    """

    def __init__(
        self,
        network: DEQ,
        sigma: float = 0.5,
        gradient: GradientEstimator = ImplicitAdjoint(),
        pretraining_steps: int = 0,
        pretraining_layers: int = 8,
        jacobian: JacobianRegularization = JacobianRegularization(),
        optimizer: OptimizerCallable = torch.optim.Adam,
    ) -> None:
        super().__init__()
        require(sigma >= 0, "sigma", sigma, "must be >= 0")
        require(pretraining_steps >= 0, "pretraining_steps", pretraining_steps, "must be >= 0")
        require(pretraining_layers >= 1, "pretraining_layers", pretraining_layers, "must be >= 1")
        # Only sigma goes into checkpoints: plain data, so that they load with weights_only=True.
        self.save_hyperparameters("sigma")
        self.network = network
        self.sigma = sigma
        self.gradient = gradient
        self.pretraining_steps = pretraining_steps
        self.pretraining_layers = pretraining_layers
        self.jacobian = jacobian
        self.optimizer_callable = optimizer
        self.stream_seed = torch.initial_seed()
        self.checkpoint_sigma: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images ``x``, shape (B, C, H, W) to (B, classes)."""
        logits: Tensor = self.network(x)
        return logits

    def setup(self, stage: str) -> None:
        """Refuse data of another shape than the network's, where both tell theirs.

        Raises:
            SettingError: Naming both settings.
        """
        for field in ("num_classes", "image_size"):
            ours = getattr(self.network, field, None)
            theirs = getattr(getattr(self.trainer, "datamodule", None), field, None)
            if ours is not None and theirs is not None:
                require(ours == theirs, f"model.network.{field}", ours, f"must be {theirs}, as data.{field}")

    # Training.

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start this step's own random stream (noise, dropout, Jacobian vectors, jitter)."""
        torch.manual_seed(mixed_seed(self.stream_seed, self.global_rank, self.current_epoch, batch_idx))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch ``(images, labels, indices)`` under noise."""
        images, labels, _ = batch
        noisy = images + self.sigma * torch.randn_like(images)
        weight = self._jacobian_weight()
        fixed_point = self._fixed_point(noisy, jittered=weight > 0)
        logits = self.network.head(fixed_point.value)
        loss = F.cross_entropy(logits, labels)
        self.log("train/cross_entropy", loss, prog_bar=True)
        self.log("train/accuracy_under_noise", _accuracy(logits, labels), prog_bar=True)
        if fixed_point.solution is not None:
            self._log_solution("train/forward", fixed_point.solution)
        if weight > 0:
            penalty = hutchinson_penalty(fixed_point.state, fixed_point.image, self.jacobian.vectors)
            self.log("train/jacobian_penalty", penalty)
            loss = loss + weight * penalty
        self.log("train/loss", loss)
        return loss

    def _jacobian_weight(self) -> float:
        """Return the weight of the penalty on this step; 0 on those that the frequency leaves out."""
        weight = self.jacobian.weight_at(self.global_step - self.pretraining_steps, self.current_epoch)
        drawn = torch.rand(()).item() < self.jacobian.frequency
        return weight if drawn else 0.0

    def _fixed_point(self, x: Tensor, jittered: bool) -> FixedPoint:
        injection = self.network.inject(x)
        start = self.network.initial_state(injection)

        def cell(z: Tensor) -> Tensor:
            return self.network.cell(z, injection)

        if self.global_step < self.pretraining_steps:
            return unrolled_fixed_point(cell, start, self.pretraining_layers)
        solver = self.network.solver
        if jittered and self.jacobian.jitter:
            change = int(torch.randint(-self.jacobian.jitter, self.jacobian.jitter + 1, ()))
            solver = dataclasses.replace(solver, max_steps=max(1, solver.max_steps + change))
        return self.gradient.fixed_point(cell, start, solver, self._log_backward)

    def _log_backward(self, solution: Solution) -> None:
        self._log_solution("train/backward", solution)

    def _log_solution(self, name: str, solution: Solution) -> None:
        self.log(f"{name}_steps", solution.steps.float().mean())
        self.log(f"{name}_residual", solution.residual.mean())

    # Evaluation.

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log accuracy without and with noise and, on the first batch, the spectral radius."""
        self._evaluate("val", batch, batch_idx)
        if batch_idx == 0:
            radius = self._spectral_radius(batch[0][:_SPECTRAL_RADIUS_IMAGES])
            self.log("val/spectral_radius", radius, batch_size=1, sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log accuracy without and with noise."""
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> None:
        images, labels, _ = batch
        generator = torch.Generator(images.device).manual_seed(mixed_seed(self.global_rank, batch_idx))
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        clean, _ = self.network.solve(images, self.network.solver)
        noisy, solution = self.network.solve(images + self.sigma * noise, self.network.solver)
        metrics = {
            "accuracy": _accuracy(clean, labels),
            "accuracy_under_noise": _accuracy(noisy, labels),
            "loss_under_noise": F.cross_entropy(noisy, labels),
            "forward_steps": solution.steps.float().mean(),
            "forward_residual": solution.residual.mean(),
        }
        self.log_dict(
            {f"{stage}/{name}": value for name, value in metrics.items()},
            batch_size=len(labels),
            sync_dist=True,
            prog_bar=False,
        )

    def _spectral_radius(self, images: Tensor) -> Tensor:
        # Lightning evaluates in inference mode, whose tensors autograd refuses.
        with torch.inference_mode(False), torch.enable_grad():
            injection = self.network.inject(images.clone())
            fixed_point = ImplicitAdjoint().fixed_point(
                lambda z: self.network.cell(z, injection),
                self.network.initial_state(injection),
                self.network.solver,
            )
            return spectral_radius(fixed_point.state, fixed_point.image).value.detach().mean()

    # Optimisation and checkpoints.

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser and its per-step cosine schedule."""
        optimizer = self.optimizer_callable(self.parameters())
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(total, 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed of the training streams."""
        checkpoint["stream_seed"] = self.stream_seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the training streams; refuse weights of another architecture before any is copied."""
        self.stream_seed = checkpoint.get("stream_seed", self.stream_seed)
        self.checkpoint_sigma = checkpoint.get("hyper_parameters", {}).get("sigma")
        own, given = self.state_dict(), checkpoint.get("state_dict", {})
        problems = [f"missing {key}" for key in own.keys() - given.keys()]
        problems += [f"unexpected {key}" for key in given.keys() - own.keys()]
        problems += [
            f"{key} has shape {tuple(given[key].shape)}, the model needs {tuple(own[key].shape)}"
            for key in own.keys() & given.keys()
            if own[key].shape != given[key].shape
        ]
        if problems:
            shown = "; ".join(sorted(problems)[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
            raise CheckpointError(f"ckpt_path: the checkpoint is of another architecture than the model: {shown}")


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == labels).float().mean()
