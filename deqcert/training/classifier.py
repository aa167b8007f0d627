"""The LightningModule that trains a DEQ so that it can be certified, and carries any classifier to be certified."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric
from typing_extensions import Self

from deqcert.checkpoints import read_checkpoint
from deqcert.checkpoints.architecture import ARCHITECTURE, architecture_of, demand_same_architecture
from deqcert.checkpoints.files import demand_plain, demand_usable_weights
from deqcert.errors import CheckpointError, require, require_count
from deqcert.implicit import GradientEstimator, ImplicitAdjoint, Unrolled, hutchinson_penalty, spectral_radius
from deqcert.models import DEQ
from deqcert.seeding import Purpose, purpose_seed
from deqcert.solvers import Solution
from deqcert.training.nonfinite import NonFiniteGuard, poisoned
from deqcert.training.objectives import Gaussian, Objective
from deqcert.training.regularization import JacobianRegularization
from deqcert.training.resuming import repair_progress, stop_if_terminated
from deqcert.training.step import ImplicitStep, TrainingStep

Batch = tuple[Tensor, Tensor, Tensor]
Schedule = Literal["cosine", "constant"]

_SPECTRAL_RADIUS_IMAGES = 16

_EVALUATED = (
    "accuracy", "accuracy_under_noise", "loss_under_noise", "forward_steps", "forward_residual", "spectral_radius"
)  # fmt: skip

_SHAPE = {"num_classes": "num_classes", "image_size": "image_size", "image_channels": "channels"}
"""Attributes of a network and of a data module that must be equal."""


class _Kept:
    """A function that copies of the module share.

    Weight averaging copies modules, and what the command line binds to an optimizer leads to the trainer and its
    processes, which cannot be copied.
    """

    def __init__(self, function: OptimizerCallable) -> None:
        self.function = function

    def __call__(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        return self.function(parameters)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return self


class DEQClassifier(LightningModule):
    """Trains a classifier under noise; a DEQ first unrolled, then implicitly.

    Every training step draws from a random stream of its own, so a resumed run repeats an uninterrupted one. A step
    whose loss or gradient is not finite is skipped.

    Args:
        network: A deep equilibrium network, or any other classifier of images in [0, 1]; the settings of gradients,
            pre-training and Jacobian regularization are for the first kind only.
        sigma: Standard deviation of the training noise, in pixels of [0, 1], >= 0.
        objective: What is minimized: Gaussian, SmoothAdv, CATRS, Consistency, LipschitzMargin or WorstCase.
        gradient: Gradient through the fixed point in implicit training.
        pretraining_steps: Optimizer steps of pre-training before implicit training, >= 0.
        pretraining_gradient: Forward pass and gradient of pre-training.
        jacobian: Jacobian regularization.
        optimizer: Optimizer.
        schedule: What becomes of its learning rate, per step: "cosine" takes it to zero over the whole run; "constant"
            keeps it, for a run that has no end.
        weights: Checkpoint whose weights training starts from, without its optimizer and progress (unlike ckpt_path);
            null = a fresh initialization.
        max_skipped_steps: Skipped steps in a row that stop training, >= 1.
        compile_cell: Compile the cell (the whole network, where it has none) with torch.compile; the steps with
            Jacobian penalty run it uncompiled, because compiled code cannot be differentiated twice.

    Raises:
        SettingError: If a setting is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        sigma: float = 0.5,
        objective: Objective = Gaussian(),
        gradient: GradientEstimator = ImplicitAdjoint(),
        pretraining_steps: int = 0,
        pretraining_gradient: GradientEstimator = Unrolled(),
        jacobian: JacobianRegularization = JacobianRegularization(),
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: Schedule = "cosine",
        weights: str | None = None,
        max_skipped_steps: int = 20,
        compile_cell: bool = False,
    ) -> None:
        super().__init__()
        require(sigma >= 0, "sigma", sigma, "must be >= 0")
        require_count("pretraining_steps", pretraining_steps, minimum=0)
        require(schedule in get_args(Schedule), "schedule", schedule, f"must be one of {', '.join(get_args(Schedule))}")
        # Only sigma goes into checkpoints: plain data, so that they load with weights_only=True.
        self.save_hyperparameters("sigma")
        self.network = network
        self.sigma = sigma
        self.objective = objective
        self.gradient = gradient
        self.pretraining_steps = pretraining_steps
        self.pretraining_gradient = pretraining_gradient
        self.jacobian = jacobian
        self.optimizer_callable = _Kept(optimizer)
        self.schedule = schedule
        self.weights = weights
        self.guard = NonFiniteGuard(max_skipped_steps)
        self.compile_cell = compile_cell
        self.stream_seed = torch.initial_seed()
        self.checkpoint_sigma: float | None = None
        self._compiled: Callable[..., Any] | None = None
        self._means = nn.ModuleDict({name: MeanMetric(nan_strategy="disable") for name in _EVALUATED})

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images ``x``, shape (B, C, H, W) to (B, classes)."""
        logits: Tensor = self.network(x)
        return logits

    def setup(self, stage: str) -> None:
        """Refuse data that do not fit the network; before training, take ``weights`` (or raise CheckpointError)."""
        self.demand_fitting(getattr(self.trainer, "datamodule", None))
        if stage == "fit" and self.weights is not None:
            checkpoint = read_checkpoint(self.weights, "model.weights")
            # Training may go on with other images, but not with other weights.
            self.demand_usable(checkpoint, "model.weights", getattr(self.network, "UNSEEN", ()))
            self.load_state_dict(checkpoint["state_dict"])

    def demand_fitting(self, data: object) -> None:
        """Raise :class:`SettingError` if classes, image size or channels of data and network are known and differ.

        Grey images would pass through a network for color by broadcasting.
        """
        for ours, theirs in _SHAPE.items():
            expected, found = getattr(self.network, ours, None), getattr(data, theirs, None)
            if expected is not None and found is not None:
                require(expected == found, f"model.network.{ours}", expected, f"must be {found}, as data.{theirs}")

    def configure_callbacks(self) -> list[Callback]:
        """Return the guard against steps that are not finite."""
        return [self.guard]

    # Training.

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start this step's own random stream (noise, dropout, Jacobian vectors, jitter)."""
        repair_progress(self.trainer)
        place = self.global_rank, self.current_epoch, batch_idx
        torch.manual_seed(purpose_seed(Purpose.TRAINING, self.stream_seed, *place))

    def on_fit_start(self) -> None:
        """Prepare the network for speed."""
        if self.compile_cell:
            # A backward solve runs the same backward pass several times.
            torch._functorch.config.donated_buffer = False
            # Of a module, torch.compile makes another one, which would be a second network in this one.
            self._compiled = torch.compile(self.network.cell if isinstance(self.network, DEQ) else self.network.forward)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch ``(images, labels, indices)`` under noise."""
        images, labels, _ = batch
        weight = 0.0
        if isinstance(self.network, DEQ) and torch.rand(()).item() < self.jacobian.frequency:
            weight = self.jacobian.weight_at(self.global_step - self.pretraining_steps, self.current_epoch)
        step = self._step(penalized=weight > 0)
        loss, metrics = self.objective.loss(step, images, labels)
        self.log_dict({f"train/{name}": value for name, value in metrics.items()}, prog_bar=True)
        if isinstance(step, ImplicitStep):
            trained = step.fixed_points[0]
            if trained.solution is not None:
                self._log_solution("train/forward", trained.solution)
            if weight > 0:
                penalty = hutchinson_penalty(trained.state, trained.fz, self.jacobian.vectors)
                self.log("train/jacobian_penalty", penalty)
                loss = loss + weight * penalty
        self.log("train/loss", loss)
        return poisoned(loss)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stop here if SIGTERM has come: all callbacks have done with the step."""
        stop_if_terminated(self.trainer)

    def _step(self, penalized: bool) -> TrainingStep:
        network = self.network
        if not isinstance(network, DEQ):
            return TrainingStep(network, self.sigma, self.current_epoch, self._compiled or network)
        solver = network.solver
        if penalized and self.jacobian.jitter:
            change = int(torch.randint(-self.jacobian.jitter, self.jacobian.jitter + 1, ()))
            solver = dataclasses.replace(solver, max_steps=max(1, solver.max_steps + change))
        pretraining = self.global_step < self.pretraining_steps
        return ImplicitStep(
            network,
            self.sigma,
            self.current_epoch,
            network.cell if penalized or self._compiled is None else self._compiled,
            gradient=self.pretraining_gradient if pretraining else self.gradient,
            solver=solver,
            attack_gradient=self.pretraining_gradient if pretraining else None,
            monitor=partial(self._log_solution, "train/backward"),
        )

    def _log_solution(self, name: str, solution: Solution) -> None:
        self.log(f"{name}_steps", solution.steps.float().mean())
        self.log(f"{name}_residual", solution.residual.mean())

    # Evaluation.

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log accuracy without and with noise and, of the first batch, the spectral radius."""
        self._evaluate("val", batch, batch_idx)
        if batch_idx == 0 and isinstance(self.network, DEQ):
            self._log_mean("val", "spectral_radius", _spectral_radii(self.network, batch[0][:_SPECTRAL_RADIUS_IMAGES]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log accuracy without and with noise."""
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> None:
        images, labels, _ = batch
        seed = purpose_seed(Purpose.VALIDATION, self.global_rank, batch_idx)
        generator = torch.Generator(images.device).manual_seed(seed)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        clean, _ = self._classify(images)
        noisy, solution = self._classify(images + self.sigma * noise)
        self._log_mean(stage, "accuracy", clean.argmax(dim=1) == labels)
        self._log_mean(stage, "accuracy_under_noise", noisy.argmax(dim=1) == labels)
        self._log_mean(stage, "loss_under_noise", F.cross_entropy(noisy, labels, reduction="none"))
        if solution is not None:
            self._log_mean(stage, "forward_steps", solution.steps)
            self._log_mean(stage, "forward_residual", solution.residual)

    def _log_mean(self, stage: str, name: str, values: Tensor) -> None:
        """Log the mean over the images of all processes: Lightning's own rounds their number per process."""
        mean = self._means[name]
        assert isinstance(mean, MeanMetric)
        mean.update(values.float())
        self.log(f"{stage}/{name}", mean)

    def _classify(self, x: Tensor) -> tuple[Tensor, Solution | None]:
        """Return logits, and what the solver of a DEQ reported."""
        if isinstance(self.network, DEQ):
            return self.network.solve(x, self.network.solver)
        return self.network(x), None

    # Optimization and checkpoints.

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and its per-step schedule."""
        optimizer = self.optimizer_callable(self.parameters())

        def factor(step: int) -> float:
            if step == 0 or self.schedule == "constant":
                # To ask for the length of the run sets up its data: before a checkpoint is restored, that would lose
                # the place in the epoch.
                return 1.0
            total = max(self.trainer.estimated_stepping_batches, 1)  # infinite for a run without an end
            return (1 + math.cos(math.pi * min(step / total, 1))) / 2

        # A function of the step and this run's length: a run that is resumed with more epochs follows the longer one.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed of the training streams and, as plain data, the settings of the network."""
        checkpoint["stream_seed"] = self.stream_seed
        if (stated := architecture_of(self.network)) is not None:
            checkpoint[ARCHITECTURE] = stated

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the training streams; what does not fit raises CheckpointError before any weight is copied."""
        demand_plain(checkpoint)
        self.demand_usable(checkpoint)
        fits = self._trainer is not None and self.trainer.state.fn == "fit"
        if fits and not checkpoint.get("optimizer_states"):
            raise CheckpointError("ckpt_path: holds weights only and cannot be resumed; model.weights starts from them")
        self.stream_seed = checkpoint.get("stream_seed", self.stream_seed)
        self.checkpoint_sigma = checkpoint.get("hyper_parameters", {}).get("sigma")

    def demand_usable(
        self, checkpoint: Mapping[str, Any], field: str = "ckpt_path", ignoring: Collection[str] = ()
    ) -> None:
        """Raise :class:`CheckpointError` unless this is the model that a checkpoint is of, and its weights are finite.

        The error names the setting ``field``; the network's settings in ``ignoring`` need not be equal.
        """
        demand_same_architecture(self.network, checkpoint, field, ignoring)
        demand_usable_weights(self.state_dict(), checkpoint["state_dict"], field)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **settings: Any) -> Self:  # type: ignore[override]
        """Build a classifier around a network and load the weights of a checkpoint, which can run no code.

        Args:
            checkpoint_path: File written by ``deqcert fit``.
            **settings: Arguments of the classifier, at least ``network``; sigma is the checkpoint's unless given.

        Raises:
            CheckpointError: If the checkpoint cannot be used.
            SettingError: If a setting is out of range.
        """
        checkpoint = read_checkpoint(checkpoint_path, "checkpoint_path")
        trained = checkpoint.get("hyper_parameters", {})
        classifier = cls(**{"sigma": trained["sigma"]} | settings if "sigma" in trained else settings)
        classifier.on_load_checkpoint(checkpoint)
        classifier.load_state_dict(checkpoint["state_dict"])
        return classifier


def _spectral_radii(network: DEQ, images: Tensor) -> Tensor:
    # Lightning evaluates in inference mode, whose tensors autograd refuses.
    with torch.inference_mode(False), torch.enable_grad():
        injection = network.inject(images.clone())
        fixed_point = ImplicitAdjoint().fixed_point(
            lambda z: network.cell(z, injection), network.initial_state(injection), network.solver
        )
        return spectral_radius(fixed_point.state, fixed_point.fz).detach()
