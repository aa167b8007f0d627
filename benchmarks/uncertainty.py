"""Uncertainty of a DEQ over samples of its weights: cell evaluations against quality, with and without reuse.

    deqcert fit --config configs/digits/mdeq_tiny.yaml --config configs/train/swag.yaml \\
        --model.weights deqcert:digits_mdeq_tiny
    python benchmarks/uncertainty.py --posterior runs/posterior.ckpt --figure uncertainty.png

prints Markdown tables; --data names CIFAR-10. Images carry the noise that the network was trained under. Unlike the
training data are the same test images with permuted pixels, and uniform noise. Reuse begins with the fixed points of
the mean weights, whose evaluations are counted; "last" then starts each sample of the weights from the one before,
"mean" always from the mean weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pages import table
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_accuracy,
    multiclass_calibration_error,
)

from deqcert.checkpoints import load_network
from deqcert.data import CIFAR10, Digits
from deqcert.models import DEQ
from deqcert.report import save_figure
from deqcert.report.style import add_legend, look, new_axes
from deqcert.reuse import FixedPointCache, Policy
from deqcert.solvers import Anderson
from deqcert.statistics import audited_mean
from deqcert.uncertainty import Predictive, WeightPosterior, predictive, weight_samples

BINS = 15
STARTS: dict[str, Policy] = {"last": "previous", "mean": "first"}


class Images(NamedTuple):
    """Test images, then as many with permuted pixels and of noise, shape (3 N, C, H, W); and N labels."""

    pixels: Tensor
    labels: Tensor


class Arm(NamedTuple):
    """One way to predict: mean probabilities of all images, and evaluations per image and sample of the weights."""

    name: str
    probabilities: Tensor
    evaluations: float


def read(options: argparse.Namespace, sigma: float) -> tuple[Images, list[Tensor]]:
    """Return what is evaluated, and batches of training images for the batch norms, both under noise."""
    data = CIFAR10(root=str(options.data)) if options.data else Digits()
    generator = torch.Generator().manual_seed(options.seed)

    def chosen(split: str, count: int) -> tuple[Tensor, Tensor]:
        images = data.load_split(split)
        pixels, labels, _ = images.__getitems__(list(range(0, len(images), max(1, len(images) // count)))[:count])
        return pixels / 255, labels

    def noisy(x: Tensor) -> Tensor:
        return x + sigma * torch.randn(x.shape, generator=generator)

    images, labels = chosen("test", options.images)
    order = torch.randperm(images[0, 0].numel(), generator=generator)
    permuted = images.flatten(2)[:, :, order].view_as(images)
    training, _ = chosen("train", options.batch_norm_images)
    everything = noisy(torch.cat([images, permuted, torch.rand(images.shape, generator=generator)]))
    return Images(everything, labels), list(noisy(training).split(128))


def quality(arm: Arm, cold: Arm, labels: Tensor) -> list[str]:
    """Return the cells of a row."""
    count = len(labels)
    known, classes = arm.probabilities[:count], arm.probabilities.shape[1]
    entropy = torch.special.entr(arm.probabilities).sum(dim=1).split(count)
    origin = torch.tensor([0, 1]).repeat_interleave(count)
    numbers = [
        100 * multiclass_accuracy(known, labels, classes, average="micro"),
        100 * multiclass_calibration_error(known, labels, classes, n_bins=BINS),
        F.nll_loss(known.clamp_min(1e-12).log(), labels),
        brier(known, labels).mean(),
        *(100 * binary_auroc(torch.cat([entropy[0], other]), origin) for other in entropy[1:]),
        distance(arm, cold, count),
    ]
    places = 1, 1, 3, 3, 1, 1, 2
    return [f"{float(number):.{digits}f}" for number, digits in zip(numbers, places, strict=True)]


def brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Squared distance from the true class, in [0, 2], shape (N,)."""
    return (probabilities - F.one_hot(labels, probabilities.shape[1])).square().sum(dim=1)


class Study:
    """The arms on one set of images, all with the same samples of the weights."""

    def __init__(self, network: DEQ, posterior: WeightPosterior, options: argparse.Namespace, sigma: float) -> None:
        self.network, self.options = network, options
        self.images, batches = read(options, sigma)
        self.exact = Anderson(max_steps=50, tolerance=options.tolerance)
        generator = torch.Generator().manual_seed(options.seed)
        self.mean = weight_samples(network, posterior, 1, batches, self.exact, scale=0.0)
        self.weights = weight_samples(network, posterior, options.samples, batches, self.exact, generator)

    def cold(self, name: str, solver: Anderson, weights: list[dict[str, Tensor]]) -> Arm:
        """Start every solve from zero."""
        found = predictive(self.network, weights, self.images.pixels, solver)
        return self._arm(name, found.probabilities, found.steps)

    def reused(self, name: str, solver: Anderson, policy: Policy) -> Arm:
        """Solve under the mean weights to the tolerance, and start all others from there, or from one another."""
        cache = FixedPointCache(policy, across_weights=True)
        before = predictive(self.network, self.mean, self.images.pixels, self.exact, cache)
        found = predictive(self.network, self.weights, self.images.pixels, solver, cache)
        return self._arm(name, found.probabilities, torch.cat([before.steps, found.steps]), len(self.weights))

    def _arm(self, name: str, probabilities: Tensor, steps: Tensor, samples: int | None = None) -> Arm:
        count = len(self.images.labels)
        return Arm(name, probabilities, float(steps[:, :count].sum()) / (count * (samples or len(steps))))

    def audited(self, arm: Arm, cold: Arm) -> list[str]:
        """Return the cells of an audit: evaluations with it, and what cold solves give, together at 95 %."""
        labels, solved = self.images.labels, list[Predictive]()
        count = len(labels)

        def true(positions: np.ndarray) -> Tensor:
            if not solved:  # both statistics audit the same images
                solved.append(predictive(self.network, self.weights, self.images.pixels[positions], self.exact))
            return solved[0].probabilities

        def correct(probabilities: Tensor, positions: np.ndarray) -> Tensor:
            return probabilities.argmax(dim=1) == labels[positions]

        def half_brier(probabilities: Tensor, positions: np.ndarray) -> Tensor:
            return (brier(probabilities, labels[positions]) / 2).clamp(0, 1)

        cells = []
        for statistic, factor, places in ((correct, 100, 1), (half_brier, 2, 3)):
            settings = {"alpha": 0.025, "audit": self.options.audit, "seed": self.options.seed}
            found = audited_mean(arm.probabilities[:count], true, statistic, **settings)
            exactly = statistic(cold.probabilities[:count], np.arange(count)).double().mean()
            numbers = [factor * float(each) for each in (found.lower, found.upper, exactly)]
            cells.append("{} to {} ({})".format(*(f"{number:.{places}f}" for number in numbers)))
        audit = float(solved[0].steps.sum()) / (count * len(self.weights))
        return [arm.name, f"{arm.evaluations + audit:.2f}", *cells]


def distance(arm: Arm, cold: Arm, count: int) -> float:
    """Total variation distance of the predictive probabilities of the test images from those of cold solves, in %."""
    return float(50 * (arm.probabilities[:count] - cold.probabilities[:count]).abs().sum(dim=1).mean())


def draw(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Draw curves of (evaluations, distance from cold solves in %)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = new_axes("cell evaluations per image and weight sample", "distance from cold solves, %")
    for position, (name, points) in enumerate(curves.items()):
        axes.plot(*zip(*points, strict=True), **look(position), label=name)
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    add_legend(figure, axes, "upper right")
    save_figure(figure, path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posterior", type=Path, required=True, help="file that CollectWeights wrote")
    parser.add_argument("--network", default="deqcert:digits_mdeq_tiny", help="checkpoint (%(default)s)")
    parser.add_argument("--data", type=Path, help="root of CIFAR-10, as data.root; the digits without")
    parser.add_argument("--sigma", type=float, help="noise on the images; that of the checkpoint without")
    parser.add_argument("--images", type=int, default=500, help="test images (%(default)s)")
    parser.add_argument("--batch-norm-images", type=int, default=512, help="training images (%(default)s)")
    parser.add_argument("--samples", type=int, default=30, help="samples of the weights (%(default)s)")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="relative residual of a full solve (%(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 5], help="of short solves (%(default)s)")
    parser.add_argument("--audit", type=int, default=100, help="images that are audited (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, help="figure to write")
    options = parser.parse_args(arguments)

    network, sigma = load_network(options.network)
    assert isinstance(network, DEQ)
    sigma = options.sigma if options.sigma is not None else sigma or 0.0
    own = [{name: tensor.clone() for name, tensor in network.state_dict().items()}]
    study = Study(network, WeightPosterior.load(options.posterior), options, sigma)
    labels = study.images.labels

    cold = study.cold("cold", study.exact, study.weights)
    reused = {start: study.reused(f"reuse, {start}", study.exact, policy) for start, policy in STARTS.items()}
    short: dict[str, list[Arm]] = {}
    for steps in options.steps:
        solver = Anderson(max_steps=steps)
        short.setdefault("cold", []).append(study.cold(f"cold, k = {steps}", solver, study.weights))
        for start, policy in STARTS.items():
            short.setdefault(start, []).append(study.reused(f"reuse, {start}, k = {steps}", solver, policy))
    alone = [study.cold("trained weights", study.exact, own), study.cold("mean weights", study.exact, study.mean)]

    heads = ["weights and starts", "evaluations", "accuracy, %", "ECE, %", "NLL", "Brier", "AUROC permuted, %"]
    heads += ["AUROC noise, %", "distance from cold, %"]
    arms = [*alone, cold, *reused.values(), *(arm for each in short.values() for arm in each)]
    rows = [[arm.name, f"{arm.evaluations:.2f}", *quality(arm, cold, labels)] for arm in arms]
    print(f"{len(labels)} images, {options.samples} samples of the weights, sigma = {sigma:g}", end="\n\n")
    print(table(heads, rows), end="\n\n")
    heads = [f"audited on {options.audit} images", "evaluations", "accuracy of cold, % (true)", "Brier of cold (true)"]
    print(table(heads, [study.audited(arm, cold) for start in STARTS for arm in short[start]]), flush=True)
    if options.figure:
        names = {"cold": "cold", "last": "from the last sample", "mean": "from the mean weights"}
        reached = {start: [*short[start], *([reused[start]] if start in reused else [])] for start in short}
        points = {
            names[start]: [(arm.evaluations, distance(arm, cold, len(labels))) for arm in arms]
            for start, arms in reached.items()
        }
        draw(points, options.figure)


if __name__ == "__main__":
    main()
