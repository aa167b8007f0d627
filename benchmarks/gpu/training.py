"""Stages train-…: a checkpoint within the time that there is, by ``deqcert fit``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from stage import MOST_BYTES, MOST_FILES, REPOSITORY, Part, Result, Setting, Stage
from torch import Tensor

from deqcert.checkpoints.architecture import architecture_of
from deqcert.cli.trainer_verbs import run_trainer_verb

CONFIGS = REPOSITORY / "configs"
TITLE = "training"
_AFTER = 25.0
"""Seconds for the last validation and for writing the weights."""


@dataclass(frozen=True)
class Recipe:
    """What is trained.

    Attributes:
        checkpoint: Its name below checkpoints/.
        config: Architecture, a file below configs/.
        objective: A file below configs/train/.
        sigma: Standard deviation of the noise.
        epochs: With fewer epochs, all runs together, the next run goes on.
        data: Option that says where the images are: "data" of CIFAR-10, "tiny" of Tiny-ImageNet.
    """

    checkpoint: str
    config: str
    objective: str = "consistency"
    sigma: float = 0.5
    epochs: float = 0.0
    data: str = "data"

    @property
    def implicit(self) -> bool:
        return "mdeq" in self.config


def train(recipe: Recipe, setting: Setting, result: Result) -> bool:
    """Train until the time is up, validate, hand in the weights."""
    runs = result.tables.get(TITLE, {}).get("rows", [])
    before = setting.root / "checkpoints" / recipe.checkpoint / "model.ckpt"
    overlay = setting.work / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(_overlay(recipe, setting, before if before.is_file() else None)))
    names = [recipe.config] + ["cifar10/mdeq_small_cpu.yaml"] * recipe.implicit
    if setting.smoke and recipe.data == "data":
        names = ["digits/mdeq_tiny.yaml", "digits/cheap.yaml"] * recipe.implicit
    names += ["cifar10/gpu.yaml", f"train/{recipe.objective}.yaml"]
    configs = [*(CONFIGS / name for name in names), overlay]
    if setting.smoke and not recipe.implicit:
        configs.insert(0, overlay)  # names network and data, as the configurations do otherwise
    arguments = [argument for path in configs for argument in ("--config", str(path))]
    cli = run_trainer_verb(["fit", *arguments, f"--seed_everything={len(runs)}"])
    trainer, model = cli.trainer, cli.model  # the averaged weights
    (found,) = trainer.validate(model, cli.datamodule, verbose=False)
    epochs = trainer.global_step / trainer.num_training_batches
    if not runs:
        result.table(TITLE, ["run", "steps", "epochs", "batch", "accuracy", "accuracy under noise"])
    accuracies = found["val/accuracy"], found["val/accuracy_under_noise"]
    hand_in_weights(setting, model.state_dict())
    result.state |= {"checkpoint": recipe.checkpoint, "sigma": recipe.sigma, "objective": recipe.objective}
    result.state["architecture"] = architecture_of(model.network)
    result.state["epochs"] = result.state.get("epochs", 0.0) + epochs
    result.row(TITLE, len(runs) + 1, trainer.global_step, float(epochs), cli.datamodule.batch_size, *accuracies)
    goal = min(recipe.epochs, 1.5 * epochs) if setting.smoke else recipe.epochs
    return bool(result.state["epochs"] >= goal)


def _overlay(recipe: Recipe, setting: Setting, weights: Path | None) -> dict[str, Any]:
    seconds = 1.0 if setting.smoke else setting.left() - _AFTER
    saver = {"dirpath": str(setting.work / "checkpoints"), "save_last": True, "save_top_k": 1}
    data: dict[str, Any] = {"class_path": "deqcert.data.CIFAR10", "init_args": {"root": setting.data}}
    if recipe.data == "tiny":
        images = {"root": setting.tiny, "num_workers": 8}
        data = {"class_path": "deqcert.data.ImageFolder", "init_args": images}
    # Steps with the penalty run uncompiled.
    model: dict[str, Any] = {"sigma": recipe.sigma, "jacobian": {"frequency": 0.05}}
    if weights is not None:
        model |= {"weights": str(weights), "pretraining_steps": 0}
    trainer = {
        "accelerator": "gpu" if setting.device == "cuda" else "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver},
            {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.998}},
            {"class_path": "deqcert.lightning.TimeBudget", "init_args": {"seconds": seconds}},
        ],
    }
    if setting.smoke:
        data = {"class_path": "deqcert.data.Digits", "init_args": {"batch_size": 64}}
        if recipe.data == "tiny":
            sizes = {"image_size": 16, "num_classes": 2}
            images = {"root": str(generated_images(setting.work / "images")), "resize": 16, "batch_size": 4}
            data = {"class_path": "deqcert.data.ImageFolder", "init_args": images | sizes}
            model["network"] = {"class_path": "deqcert.models.MDEQ", "init_args": sizes}
        trainer |= {"precision": "32-true", "max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1}
        model |= {"compile_cell": False, "pretraining_steps": 0} | ({} if recipe.implicit else SMOKE_EXPLICIT)
    return {"model": model, "data": data, "trainer": trainer}


def generated_images(root: Path) -> Path:
    """Write two classes of four images each into both splits of a folder; return it."""
    for split in ("train", "val"):
        for name in ("n01443537", "n01629819"):
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                image = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
                Image.fromarray(image.numpy()).save(root / split / name / f"{number}.JPEG")
    return root


SMOKE_EXPLICIT: dict[str, Any] = {
    "network": {
        "class_path": "deqcert.models.CifarResNet",
        "init_args": {"depth": 8, "image_channels": 1, "image_size": 8, "mean": [0.3], "std": [0.4]},
    }
}


def hand_in_weights(setting: Setting, weights: dict[str, Tensor]) -> None:
    """Write weights in 16 bits, everything of one dimension in 32, in files that are small enough."""
    names: list[list[str]] = [[]]
    size = 0
    kept = {}
    for name, tensor in weights.items():
        kept[name] = tensor.detach().cpu().half() if tensor.dim() > 1 else tensor.detach().cpu()
        size += kept[name].nbytes
        if size > MOST_BYTES and names[-1]:
            names.append([])
            size = kept[name].nbytes
        names[-1].append(name)
    assert len(names) <= MOST_FILES
    for number, part in enumerate(names):
        torch.save({name: kept[name] for name in part}, setting.out / f"weights.{number}.pt")


def weights_in(folder: Path) -> dict[str, Tensor]:
    """Read what :func:`hand_in_weights` has written."""

    def parts() -> Iterator[dict[str, Tensor]]:
        for path in sorted(folder.glob("weights.*.pt")):
            yield torch.load(path, map_location="cpu", weights_only=True)

    return {name: tensor for part in parts() for name, tensor in part.items()}


def _stage(name: str, recipe: Recipe, about: str) -> Stage:
    return Stage(name, (Part("train", 120, partial(train, recipe)),), about, recipe.data)


SMALL, LARGE, RESNET = "cifar10/mdeq_small.yaml", "cifar10/mdeq_large.yaml", "cifar10/resnet110.yaml"
TRAIN_SMALL = _stage("train-small", Recipe("cifar10_mdeq_small_gpu", SMALL), "MDEQ-SMALL, σ = 0.5, Consistency.")
TRAIN_LARGE = _stage(
    "train-large",
    Recipe("cifar10_mdeq_large_gpu", LARGE, epochs=220),
    "MDEQ-LARGE, σ = 0.5, Consistency; each run starts from the averaged weights of the one before it, until the "
    "published 220 epochs are reached.",
)
TRAIN_RESNET = _stage(
    "train-resnet110", Recipe("cifar10_resnet110_gpu", RESNET, "gaussian"), "ResNet-110, σ = 0.5, Gaussian."
)
TRAIN_TINY = _stage(
    "train-tiny",
    Recipe("tiny_imagenet_mdeq_small_gpu", "tiny_imagenet/mdeq_small.yaml", epochs=100, data="tiny"),
    "MDEQ-SMALL of Tiny-ImageNet, σ = 0.5, Consistency; each run starts from the averaged weights of the one before, "
    "until 100 epochs are reached.",
)
TRAIN_MORE = tuple(
    _stage(f"train-small-{name}", Recipe(f"cifar10_mdeq_small_gpu_{checkpoint}", SMALL, objective, sigma), about)
    for name, checkpoint, objective, sigma, about in (
        ("0.25", "sigma025", "consistency", 0.25, "MDEQ-SMALL, σ = 0.25, Consistency."),
        ("1.0", "sigma100", "consistency", 1.0, "MDEQ-SMALL, σ = 1.0, Consistency."),
        ("smoothadv", "smoothadv", "smoothadv", 0.5, "MDEQ-SMALL, σ = 0.5, SmoothAdv."),
        ("catrs", "catrs", "catrs", 0.5, "MDEQ-SMALL, σ = 0.5, CAT-RS."),
    )
)
