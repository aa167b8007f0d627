"""Images per second of training: how a batch is assembled, variants of the step, and where its time goes.

    python benchmarks/training_speed.py --data data --model small [--device cuda] [--compile]

Prints Markdown tables. Each ratio is of two timings of this one run, taken in turn. Without a GPU, seconds are CPU
time: run it with OMP_NUM_THREADS=1 to read images per second and core.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from clock import Clock
from torch import Tensor
from torchvision.transforms import v2

from deqcert.data import CIFAR10
from deqcert.data.augmentation import CropAndFlip
from deqcert.data.images import to_unit_interval
from deqcert.implicit import EquilibriumEstimator, ImplicitAdjoint, OneStep
from deqcert.models import MDEQ
from deqcert.solvers import Anderson, Broyden, Solver
from deqcert.training import Gaussian
from deqcert.training.step import ImplicitStep

SIGMA = 0.5


def small() -> MDEQ:
    return MDEQ(dropout=0.2)


def large() -> MDEQ:
    return MDEQ(channels=(32, 64, 128, 256), head_channels=(14, 28, 56, 112), final_channels=1680, dropout=0.22)


Recipe = tuple[Solver, EquilibriumEstimator]

PUBLISHED: Recipe = (
    Broyden(max_steps=8, tolerance=1e-3),
    ImplicitAdjoint(Broyden(max_steps=7, tolerance=1e-3)),
)
CHEAP: Recipe = (Anderson(max_steps=6, tolerance=1e-3), OneStep())


class Step:
    """One optimiser step in a given variant."""

    def __init__(self, network: MDEQ, recipe: Recipe, variant: set[str], device: str) -> None:
        self.network = network.to(device).train()
        self.solver, self.gradient = recipe
        self.device = device
        self.autocast = "bf16" in variant
        if "channels_last" in variant:
            self.network.to(memory_format=torch.channels_last)
        self.cell = self.network.cell
        if "compile" in variant:
            torch._functorch.config.donated_buffer = False
            self.cell = torch.compile(self.network.cell)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3, fused=device == "cuda")

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        step = ImplicitStep(self.network, SIGMA, 0, self.cell, self.gradient, self.solver)
        with torch.autocast(self.device, torch.bfloat16) if self.autocast else nullcontext():
            loss, _ = Gaussian().loss(step, images, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def parts(self, images: Tensor, labels: Tensor) -> list[tuple[str, float]]:
        """Return the seconds of each part of a step."""
        clock = Clock(self.device)
        with torch.autocast(self.device, torch.bfloat16) if self.autocast else nullcontext():
            noisy = images + SIGMA * torch.randn_like(images)
            injection = self.network.inject(noisy)
            clock.lap("noise and injection")
            start = self.network.initial_state(injection)
            solution = self.solver.solve(lambda z: self.cell(z, injection), start)
            clock.lap(f"forward solve ({solution.evaluations // len(images)} evaluations)")
            state = solution.value.requires_grad_()
            image = self.cell(state, injection)
            clock.lap("evaluation with graph")
            value = self.gradient.attach(lambda z: self.cell(z, injection), state, image, None)
            loss = F.cross_entropy(self.network.head(value), labels)
            clock.lap("head and loss")
        self.optimizer.zero_grad()
        loss.backward()
        clock.lap("backward")
        self.optimizer.step()
        clock.lap("optimiser")
        return clock.laps


def seconds(run: Callable[[], Any], repeats: int, device: str) -> float:
    """Return the median time of ``run`` after one call that does not count."""
    run()
    times = []
    for _ in range(repeats):
        clock = Clock(device)
        run()
        times.append(clock.lap())
    return statistics.median(times)


def assembly_table(images: Tensor, batch: int, repeats: int, device: str) -> None:
    """Compare per-image transforms with the batch that is cropped and flipped on the device."""
    indices = torch.randint(len(images), (batch,))
    transform = v2.Compose(
        [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
    )
    resident, crop = images.to(device), CropAndFlip(seed=0, count=len(images))
    chosen = indices.to(device)

    def per_image() -> Tensor:
        return torch.stack([transform(images[i]) for i in indices.tolist()]).to(device)

    def on_device() -> Tensor:
        return to_unit_interval(crop(resident[chosen], chosen, 0))

    slow, fast = (seconds(run, repeats, device) for run in (per_image, on_device))
    print(f"\n| assembling a batch of {batch} | images/s | ratio |\n| --- | ---: | ---: |")
    print(f"| per image, torchvision transforms, one process | {batch / slow:,.0f} | 1 |")
    print(f"| from uint8 in memory, cropped and flipped as a batch | {batch / fast:,.0f} | {slow / fast:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="root of CIFAR-10, as data.root")
    parser.add_argument("--model", choices=("small", "large"), default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="add the compiled variants (minutes to compile)")
    options = parser.parse_args()

    train = CIFAR10(root=options.data).load_split("train")
    images = torch.stack([train[i][0] for i in range(4 * options.batch)])
    labels = torch.tensor([int(train[i][1]) for i in range(options.batch)], device=options.device)
    batch = to_unit_interval(images[: options.batch].to(options.device))
    assembly_table(images, options.batch, 20 * options.repeats, options.device)

    variants: list[set[str]] = [set(), {"channels_last"}, {"bf16"}, {"bf16", "channels_last"}]
    if options.compile:
        variants += [{"compile"}, {"bf16", "compile"}]
    build = {"small": small, "large": large}[options.model]
    for name, recipe in (("published: Broyden 8, IFT Broyden 7", PUBLISHED), ("cheap: Anderson 6, one-step", CHEAP)):
        print(f"\n| MDEQ-{options.model.upper()}, {name} | images/s | ratio |\n| --- | ---: | ---: |")
        baseline = 0.0
        for variant in variants:
            torch.manual_seed(0)
            step = Step(build(), recipe, variant, options.device)
            taken = seconds(lambda step=step: step(batch, labels), options.repeats, options.device)  # type: ignore[misc]
            baseline = baseline or taken
            label = ", ".join(sorted(variant)) or "float32"
            print(f"| {label} | {options.batch / taken:.1f} | {baseline / taken:.2f} |", flush=True)
        parts = Step(build(), recipe, {"bf16"}, options.device).parts(batch, labels)
        total = sum(taken for _, taken in parts)
        print(f"\n| where the time of a bf16 step goes ({total:.2f} s) | % |\n| --- | ---: |")
        for part, taken in parts:
            print(f"| {part} | {100 * taken / total:.0f} |")


if __name__ == "__main__":
    main()
