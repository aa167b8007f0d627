"""Predictions for noisy samples, for the frontier of certified accuracy over cost (frontier.py).

    python benchmarks/pareto/measure.py --data DATA --store STORE [--n 2000] [--series NAME ...] [--part 0/2]

All configurations see the same noise, and those that share evaluations are measured together: k plain steps from a
start pass through all smaller k. Every prediction is what the strategy of that name would give, in the order of its
samples, selection first. One file per series and image; a further call goes on where the files end, with a larger n as
well.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from networks import NETWORKS, load
from torch import Tensor

from deqcert.data import CIFAR10
from deqcert.data.images import to_unit_interval
from deqcert.seeding import Purpose
from deqcert.smoothing import Engine, Serialized, SmoothedClassifier, Smoothing, Standard, Stream
from deqcert.smoothing.base_classifier import CONVERGED
from deqcert.smoothing.engine import Predictions
from deqcert.smoothing.noise import noisy_batches
from deqcert.smoothing.serialized import _Chain
from deqcert.solvers import Anderson, Picard, Solver

SIGMA, N0, BATCH, SEED = 0.5, 100, 400, 0
TOLERANCE = 1e-3
STEPS = (1, 2, 3, 5)
"""Plain steps k from each start."""

Columns = dict[str, np.ndarray]
"""Name to one value per noisy sample: ``class…`` int8, ``steps`` uint8 where they differ from sample to sample; of
chains ``runner_up`` int8 and ``margin`` float16, by which an escalation chooses."""


@cache
def smoothed(network: str, solver: Solver = CONVERGED) -> SmoothedClassifier:
    """Return g of a network; all but "zero" start where they are anchored."""
    return Smoothing(SIGMA, solver=solver, start="zero" if network == "zero" else "anchor").of(load(network))


@cache
def engine(network: str) -> Engine:
    """Return the engine of a network, ready for CIFAR-10 images."""
    return Standard(n0=N0, batch_size=BATCH).engine(smoothed(network), torch.zeros(3, 32, 32))


def columns(given: Predictions) -> Columns:
    return {"class": given.classes.numpy().astype(np.int8), "steps": given.steps.numpy().astype(np.uint8)}


def columns_of_chain(given: Predictions) -> Columns:
    margin = given.margin.numpy().astype(np.float16)
    return {**columns(given), "runner_up": given.runner_up.numpy().astype(np.int8), "margin": margin}


def standard(network: str, depth: int) -> Callable[[Tensor], Columns]:
    """Classify by the Anderson DEQ from a cold start, each sample to its own tolerance."""
    return lambda x: columns(engine(network).predict(x, Anderson(max_steps=depth, tolerance=TOLERANCE)))


def anchored(network: str) -> Callable[[Tensor], Columns]:
    """Classify by every k of STEPS, each going on from the state of the one before."""

    def classify(x: Tensor) -> Columns:
        given: Columns = {}
        state = engine(network).state
        assert state is not None, "a DEQ"
        states = state.new_zeros(len(x), *state.shape[1:])
        reached = 0
        for k in STEPS:
            solver = Picard(max_steps=k - reached)
            predictions = engine(network).predict(x, solver, start=states if reached else None, keep=states)
            given[f"class{k}"] = columns(predictions)["class"]
            reached = k
        return given

    return classify


SERIES: dict[str, Callable[[Tensor], Columns]] = {
    **{f"standard-{depth}A": standard("zero", depth) for depth in (30, 10, 5)},
    **{f"anchored-{network}": anchored(network) for network in NETWORKS},
}
CHAINS = {f"SRS-{k}A": k for k in (1, 3)}


def independent(classify: Callable[[Tensor], Columns], image: Tensor, index: int, n: int, known: Columns) -> Columns:
    """Classify the samples that are not known yet."""
    done = len(next(iter(known.values()))) if known else 0
    parts: list[Columns] = []
    position = 0
    for noisy in samples(image, index, n):
        if position >= done:
            parts.append(classify(noisy))
        position += len(noisy)
    new = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: np.concatenate([known[name], more]) if known else more for name, more in new.items()}


def samples(image: Tensor, index: int, n: int) -> Iterator[Tensor]:
    for purpose, count in (Purpose.SELECTION, N0), (Purpose.ESTIMATION, n):
        yield from noisy_batches(image, Stream(SEED, index), purpose, sigma=SIGMA, count=count, batch_size=BATCH)


def chain(steps: int, image: Tensor, index: int, n: int) -> Columns:
    """Classify by a chain, which begins anew each time."""
    settings = Serialized(n0=N0, n=n, batch_size=BATCH, proposal=Anderson(max_steps=steps))
    with torch.no_grad():
        warm = _Chain(settings, engine("zero"), image[None])
        return columns_of_chain(Predictions.joined([warm.advance(noisy) for noisy in samples(image, index, n)]))


def read(path: Path) -> Columns:
    if not path.exists():
        return {}
    with np.load(path) as file:
        return dict(file)


def write(path: Path, given: Columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp.npz")
    np.savez_compressed(unfinished, **given)
    unfinished.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="root of CIFAR-10, as data.root")
    parser.add_argument("--store", type=Path, required=True, help="directory of the predictions")
    parser.add_argument("--skip", type=int, default=100, help="every so many test images (%(default)s)")
    parser.add_argument("--images", type=int, help="the first so many of them, of which even ones come first")
    parser.add_argument("--n", type=int, default=2000, help="estimation samples, whole batches (%(default)s)")
    parser.add_argument("--series", nargs="+", choices=(*SERIES, *CHAINS), default=[*SERIES, *CHAINS])
    parser.add_argument("--part", default="0/1", help="i/m: every m-th image, from the i-th on")
    options = parser.parse_args()
    if options.n % BATCH:
        parser.error(f"--n {options.n} is not a multiple of {BATCH}")
    torch.set_num_threads(1)
    part, parts = map(int, options.part.split("/"))
    images = CIFAR10(root=options.data).load_split("test")
    indices = list(range(0, len(images), options.skip))
    indices = (indices[::2] + indices[1::2])[: options.images][part::parts]
    for index in indices:
        image = to_unit_interval(images[index][0])
        for name in options.series:
            path = options.store / name / f"{index:05d}.npz"
            known = read(path)
            if any(len(given) >= N0 + options.n for name, given in known.items() if name.startswith("class")):
                continue
            if name in CHAINS:
                write(path, chain(CHAINS[name], image, index, options.n))
            else:
                write(path, independent(SERIES[name], image, index, options.n, known))
        print(index, flush=True)


if __name__ == "__main__":
    main()
