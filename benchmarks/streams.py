"""Evaluations per frame of video-like streams: a window slides over an image, and frames start from earlier ones.

    python benchmarks/streams.py --data imagenet_sample_256.tar --network checkpoints/cifar10_mdeq_small_cpu/model.ckpt

prints Markdown tables. The frames of an image are a stream; all streams are solved side by side, each in its own
lane. "previous" and "first" start a lane from its own fixed points, "mean" from the mean of all so far, "nearest" from
the one whose injection is nearest. These two look at the frames of all streams, "nearest" at the last --rows of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from pages import table
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from deqcert.checkpoints import load_network
from deqcert.data import read_image
from deqcert.data.sources import Source, find_source
from deqcert.errors import DataError
from deqcert.models import DEQ
from deqcert.reuse import FixedPointCache, Policy
from deqcert.solvers import Anderson, Broyden, Solver

MAX_STEPS = 50


class Run(NamedTuple):
    """What all frames of all streams took.

    Attributes:
        steps: Evaluations, shape (frames, streams).
        logits: Shape (frames, streams, classes).
        converged: Whether the residual met the tolerance, shape (frames, streams).
    """

    steps: Tensor
    logits: Tensor
    converged: Tensor


def solvers(tolerance: float) -> dict[str, Solver]:
    """Return the solvers to compare; the newest iterate is the result, so that one evaluation can be enough."""
    settings = {"max_steps": MAX_STEPS, "tolerance": tolerance}
    return {"Anderson": Anderson(**settings), "Broyden": Broyden(**settings, iterate="last")}


def windows(image: Tensor, size: int, frames: int, pixels: int) -> Tensor:
    """Return what a window sees that goes from left to right, down, from right to left, down, and so on.

    Args:
        image: Shape (C, H, W).
        size: Height and width of the window, pixels.
        frames: Number of windows.
        pixels: How far each is from the one before; no window is seen twice.

    Returns:
        Shape (frames, C, size, size).

    Raises:
        DataError: The image has not so many windows.
    """
    _, height, width = image.shape
    columns, rows = ((side - size) // pixels + 1 for side in (width, height))
    if min(columns, rows) < 1 or columns * rows < frames:
        found = f"{width} x {height} pixels"
        raise DataError(f"an image of {found} has no {frames} windows of {size} pixels, {pixels} apart")
    seen = []
    for row, column in (divmod(frame, columns) for frame in range(frames)):
        top, left = row * pixels, (columns - 1 - column if row % 2 else column) * pixels
        seen.append(image[:, top : top + size, left : left + size])
    return torch.stack(seen)


def read_images(path: Path, count: int, short_side: int) -> list[Tensor]:
    """Read ``count`` images, evenly spread over the split ``val``, and scale them; pixels in [0, 1]."""
    source: Source | None = find_source(path, "val")
    if source is None or len(source.names) < count:
        raise DataError(f"{path}: has no {count} images of a split val")
    order = sorted(range(len(source.names)), key=lambda position: source.names[position])
    chosen = order[:: len(order) // count][:count]
    images = (read_image(source.read(position), source.place(position)) for position in chosen)
    return [resize(image, [short_side], antialias=True).clamp(0, 1) for image in images]


def follow(network: DEQ, streams: Tensor, solver: Solver, cache: FixedPointCache | None) -> Run:
    """Classify streams, shape (frames, streams, C, H, W), frame by frame; cold without a cache."""
    found = [network.solve(x, solver) if cache is None else cache.classify(network, x, solver) for x in streams]
    logits, solutions = zip(*found, strict=True)
    return Run(
        torch.stack([each.steps for each in solutions]),
        torch.stack(logits),
        torch.stack([each.converged for each in solutions]),
    )


def cells(steps: list[Tensor]) -> list[str]:
    """Return evaluations per frame of each start, and their share of the first start's, which is cold."""
    means = [float(each[1:].double().mean()) for each in steps]  # the first frame has nothing to start from
    return [f"{means[0]:.2f}", *(f"{mean:.2f} ({100 * mean / means[0]:.0f} %)" for mean in means[1:])]


def measure(network: DEQ, images: list[Tensor], options: argparse.Namespace) -> str:
    """Follow all streams in every way, and return the tables."""
    starts = ["cold", *get_args(Policy)]
    rows = list[list[str]]()
    other: dict[tuple[float, str], list[float]] = {}
    missed = solves = 0
    for pixels in options.pixels:
        streams = torch.stack([windows(image, options.crop, options.frames, pixels) for image in images], dim=1)
        reference = follow(network, streams, Anderson(max_steps=100, tolerance=1e-5), FixedPointCache()).logits
        for tolerance in options.residuals:
            for name, solver in solvers(tolerance).items():
                caches = [None, *(FixedPointCache(policy, rows=options.rows) for policy in get_args(Policy))]
                runs = [follow(network, streams, solver, cache) for cache in caches]
                rows.append([name, str(pixels), f"{tolerance:g}", *cells([run.steps for run in runs])])
                for start, run in zip(starts, runs, strict=True):
                    differ = (run.logits.argmax(dim=2) != reference.argmax(dim=2)).double().mean()
                    other.setdefault((tolerance, start), []).append(float(differ))
                    missed, solves = missed + int((~run.converged).sum()), solves + run.converged.numel()
    changed = list[list[str]]()
    for tolerance in options.residuals:
        means = (sum(found) / len(found) for found in (other[tolerance, start] for start in starts))
        changed.append([f"{tolerance:g}", *(f"{100 * mean:.1f} %" for mean in means)])
    return "\n\n".join([
        f"Evaluations per frame; {missed} of {solves} solves missed the tolerance.",
        table(["solver", "pixels/frame", "residual", *starts], rows),
        "Frames with another prediction than at a residual of 1e-5:",
        table(["residual", *starts], changed),
    ])  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="images: a tar or folder with val/CLASS/FILE")
    parser.add_argument("--network", default="checkpoints/cifar10_mdeq_small_cpu/model.ckpt", help="%(default)s")
    parser.add_argument("--images", type=int, default=10, help="images, a stream each (%(default)s)")
    parser.add_argument("--frames", type=int, default=50, help="frames of a stream (%(default)s)")
    parser.add_argument("--pixels", type=int, nargs="+", default=[1, 4], help="pixels per frame (%(default)s)")
    parser.add_argument("--crop", type=int, default=32, help="height and width of a frame (%(default)s)")
    parser.add_argument("--short-side", type=int, default=64, help="of the scaled images, pixels (%(default)s)")
    parser.add_argument("--residuals", type=float, nargs="+", default=[1e-2, 1e-3], help="tolerances (%(default)s)")
    parser.add_argument("--rows", type=int, default=256, help='frames that "nearest" remembers (%(default)s)')
    options = parser.parse_args(arguments)
    network = load_network(options.network).network
    assert isinstance(network, DEQ)
    images = read_images(options.data, options.images, options.short_side)
    print(measure(network.for_inference(), images, options), flush=True)


if __name__ == "__main__":
    main()
