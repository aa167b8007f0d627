"""Gradient estimators on MDEQ-SMALL: time and memory of a training step, and the direction of their gradients.

    python benchmarks/gradient_estimators.py [--data DATA] [--checkpoint MODEL.ckpt] [--device cuda]
    python benchmarks/gradient_estimators.py --model imagenet --batch 2

Prints a Markdown table. A step is forward solve, cross-entropy and backward pass, under noise and without dropout; its
times are medians of this one run, taken in turn (CPU time without a GPU). The cosine is to the converged implicit
gradient at a converged fixed point, over the parameters of stem and cell: those of the head get theirs from no
estimator. Unrolling starts cold, whatever the forward solver. Backward residuals are medians over the images, relative,
at the published forward and at the converged one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics

import torch
import torch.nn.functional as F
from certification_speed import MODELS
from clock import Clock
from torch import Tensor

from deqcert.checkpoints import load_network
from deqcert.data import CIFAR10
from deqcert.data.images import to_unit_interval
from deqcert.implicit import GradientEstimator, ImplicitAdjoint, OneStep, Phantom, Unrolled, spectral_radius
from deqcert.models import MDEQ
from deqcert.solvers import Anderson, Broyden, Solution, Solver

SIGMA = 0.5
PUBLISHED = Broyden(max_steps=8, tolerance=1e-3)
CONVERGED = Broyden(max_steps=100, tolerance=1e-6)
REACHED = 1e-4  # relative residual
REFERENCE = "IFT, Broyden 60"
ESTIMATORS: dict[str, GradientEstimator] = {
    REFERENCE: ImplicitAdjoint(Broyden(max_steps=60, tolerance=1e-6)),
    "IFT, Broyden 7": ImplicitAdjoint(Broyden(max_steps=7, tolerance=1e-3)),
    "IFT, Broyden 14": ImplicitAdjoint(Broyden(max_steps=14, tolerance=1e-3)),
    "IFT, Anderson 7, ridge 1e-4": ImplicitAdjoint(Anderson(max_steps=7, tolerance=1e-3)),
    "IFT, Anderson 7, ridge 0": ImplicitAdjoint(Anderson(max_steps=7, tolerance=1e-3, ridge=0)),
    "one step": OneStep(),
    "phantom, k = 2": Phantom(steps=2),
    "phantom, k = 5": Phantom(steps=5),
    "unrolled, 5": Unrolled(steps=5),
    "unrolled, 8": Unrolled(steps=8),
}


class Step:
    """The loss of one batch and its gradient, by a given estimator."""

    def __init__(self, network: MDEQ, images: Tensor, labels: Tensor) -> None:
        self.network, self.images, self.labels = network.train(), images, labels
        self.parameters = [*network.stem.parameters(), *network.mdeq_cell.parameters()]
        self.backward_solutions: list[Solution] = []

    def loss(self, estimator: GradientEstimator, forward: Solver) -> Tensor:
        injection = self.network.inject(self.images)
        start = self.network.initial_state(injection)
        fixed_point = estimator.fixed_point(
            lambda z: self.network.cell(z, injection), start, forward, self.backward_solutions.append
        )
        return F.cross_entropy(self.network.head(fixed_point.value), self.labels)

    def train(self, estimator: GradientEstimator) -> None:
        self.network.zero_grad()
        self.loss(estimator, PUBLISHED).backward()

    def gradient(self, estimator: GradientEstimator, forward: Solver) -> Tensor:
        gradients = torch.autograd.grad(self.loss(estimator, forward), self.parameters)
        return torch.cat([gradient.flatten() for gradient in gradients]).double()

    def seconds(self, estimator: GradientEstimator) -> float:
        """Return the time of one training step."""
        clock = Clock(self.images.device.type)
        self.train(estimator)
        return clock.lap()


def untrained(model: str) -> MDEQ:
    return MDEQ(**MODELS[model], dropout=0)


def random_step(model: str, batch: int, device: str) -> Step:
    network = untrained(model)
    images, labels = random_batch(network, batch)
    return Step(network.to(device), images.to(device), labels.to(device))


def random_batch(network: MDEQ, batch: int) -> tuple[Tensor, Tensor]:
    size = network.image_size
    return torch.rand(batch, 3, size, size), torch.randint(network.num_classes, (batch,))


def peak_memory(name: str, model: str, batch: int, device: str) -> float:
    """Return by how many MiB one step raises the peak: of the allocator on CUDA, of the process elsewhere."""
    step = random_step(model, batch, device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.train(ESTIMATORS[name])
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # What libraries keep from their first use on is not the step's.
    random_step("small", 2, device).train(OneStep())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step.train(ESTIMATORS[name])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def load_batch(root: str | None, network: MDEQ, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Return noisy images and labels of the training split; without data, noise on random images."""
    images, labels = random_batch(network, batch)
    if root is not None:
        split = CIFAR10(root=root).load_split("train")
        images, labels, _ = split.__getitems__(torch.randperm(len(split))[:batch].tolist())
        images = to_unit_interval(images)
    return (images + SIGMA * torch.randn_like(images)).to(device), labels.to(device)


def trained_network(model: str, checkpoint: str | None, device: str) -> MDEQ:
    network = untrained(model)
    if checkpoint is not None:
        load_network(checkpoint, network)
    return network.train().to(device)


def print_equilibrium(step: Step) -> bool:
    """Print how far the two forward solvers come and the spectral radius there; return whether one converges."""
    injection = step.network.inject(step.images)
    start = step.network.initial_state(injection)
    for solver in (PUBLISHED, CONVERGED):
        fixed_point = OneStep().fixed_point(lambda z: step.network.cell(z, injection), start, solver)
        assert fixed_point.solution is not None
        residual = fixed_point.solution.residual
        radius = spectral_radius(fixed_point.state, fixed_point.fz).mean()
        print(f"- forward by Broyden {solver.max_steps}: residual {residual.median():.1e} in the median and ", end="")
        print(f"{residual.max():.1e} at most; spectral radius {radius:.2f}")
    return bool(residual.max() < REACHED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--checkpoint", help="its weights; untrained without")
    parser.add_argument("--data", help="root of CIFAR-10, as data.root; random images without")
    options = parser.parse_args()
    if options.data is not None and MODELS[options.model].get("image_size", 32) != 32:
        parser.error("--data is for models of CIFAR-10")

    # Before anything is loaded: a process begins with the peak of the one that started it.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {
            name: pool.apply(peak_memory, (name, options.model, options.batch, options.device)) for name in ESTIMATORS
        }

    torch.manual_seed(0)
    network = trained_network(options.model, options.checkpoint, options.device)
    step = Step(network, *load_batch(options.data, network, options.batch, options.device))
    rounds = [{name: step.seconds(ESTIMATORS[name]) for name in ESTIMATORS} for _ in range(options.repeats + 1)]
    times = {name: statistics.median(taken[name] for taken in rounds[1:]) for name in ESTIMATORS}

    print(f"{options.checkpoint or 'untrained'}, batch {options.batch}, {options.device}\n")
    reached = print_equilibrium(step)
    reference = step.gradient(ESTIMATORS[REFERENCE], CONVERGED)
    reached = reached and bool(step.backward_solutions[-1].residual.max() < REACHED)
    forwards = (PUBLISHED, CONVERGED) if reached else (PUBLISHED,)
    if not reached:
        print("- the reference did not converge: no cosines")
    print("\n| gradient | s per step | ratio | peak MiB | cosine, Broyden 8 | cosine, converged | backward residuals |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, estimator in ESTIMATORS.items():
        step.backward_solutions.clear()
        gradients = [step.gradient(estimator, forward) for forward in forwards]
        cosines = [f"{F.cosine_similarity(gradient, reference, dim=0):.4f}" for gradient in gradients]
        residuals = [f"{solution.residual.median():.1e}" for solution in step.backward_solutions] or ["–"]
        print(f"| {name} | {times[name]:.3f} | {times[name] / min(times.values()):.2f} | {memory[name]:.0f} ", end="")
        print(f"| {' | '.join(cosines if reached else '––')} | {', '.join(residuals)} |")


if __name__ == "__main__":
    main()
