"""Certification at the size of ImageNet: its cost on paper, and what the files of large runs cost to read.

    python benchmarks/scale.py cost [--write]
    python benchmarks/scale.py files [--ranks 10000] [--images 1000000] [--write]

``cost`` counts evaluations, FLOPs and bytes, measures what this machine can, and predicts seconds and hours. ``files``
writes ledgers as ranks do and measures what reading them takes: a look by a waiting rank, a resumed run, ``deqcert
verify`` and ``deqcert report``; each in a process of its own, so that its memory is known. Both print Markdown tables;
``--write`` puts them into docs/scale.md.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from certification_speed import MODELS
from pages import put, table
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from deqcert.data import ImageFolder
from deqcert.models import MDEQ
from deqcert.report import Report, read_runs
from deqcert.runs import Ledger, read_ledger, verify_run, write_results
from deqcert.runs.lines import START, seal
from deqcert.seeding import Purpose
from deqcert.smoothing import Execution, Sampling, Serialized, Smoothing, Standard, Stream
from deqcert.smoothing.base_classifier import solver_name
from deqcert.smoothing.noise import audit_subset, noisy_batches
from deqcert.solvers import Anderson, Broyden, Solver
from deqcert.statistics import AdaptiveAudit, CertificationRule, FixedAudit, Votes

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
IMAGES, COUNTS, P_A = 500, (10_000, 100_000), 0.9
NETWORKS = {
    "ImageNet SMALL": MODELS["imagenet"],
    "Tiny-ImageNet SMALL": MODELS["tiny_imagenet"],
    "CIFAR-10 SMALL": MODELS["small"],
    "CIFAR-10 LARGE": MODELS["large"],
}


class Strategy(NamedTuple):
    """How votes are taken, and the solver of f."""

    name: str
    sampling: Sampling
    solver: Solver


def strategies(full: Solver) -> list[Strategy]:
    """Return the strategies that are compared, f being solved by ``full`` except where three steps are f."""
    kind = type(full)
    audits = {"K = 400": {"audit": FixedAudit(400)}, "adaptive": {"audit": AdaptiveAudit(0.02), "escalation": 0.1}}
    serialized = [
        Strategy(f"SRS-{solver_name(kind(k))}, {name}", Serialized(proposal=kind(k), **audit), full)
        for k in (1, 3)
        for name, audit in audits.items()
    ]
    return [Strategy(f"standard-{solver_name(full)}", Standard(), full), *serialized, ANCHORED]


ANCHORED = Strategy("anchored-3A", Standard(), Anderson(3))


class Work(NamedTuple):
    """FLOPs and bytes."""

    flops: float = 0.0
    bytes: float = 0.0

    def plus(self, other: Work, times: float = 1.0) -> Work:
        return Work(self.flops + times * other.flops, self.bytes + times * other.bytes)


class Traffic(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations read and write: as if nothing were fused and nothing cached."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = (leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor))
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return found


@torch.no_grad()
def counted(function: Callable[[int], Any]) -> Work:
    """Return the work of ``function(rows)`` for one row more, so without that for weights, which a batch shares."""
    found = []
    for rows in (1, 3):
        with FlopCounterMode(display=False) as flops:
            function(rows)
        with Traffic() as traffic:
            function(rows)
        found.append(Work(flops.get_total_flops(), traffic.total))
    one, three = found
    return Work((three.flops - one.flops) / 2, (three.bytes - one.bytes) / 2)


class Costs:
    """The work of the parts of a network, of one noisy sample each."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.network = MDEQ(dropout=0, **settings).eval().for_inference()
        size = self.network.image_size
        self.images = torch.rand(3, 3, size, size)
        with torch.no_grad():
            self.injections = {rows: self.network.inject(self.images[:rows]) for rows in (1, 3)}
        self.state = torch.rand(3, self.network.initial_state(self.injections[1]).shape[1])
        self.inject = counted(lambda rows: self.network.inject(self.images[:rows]))
        self.cell = counted(lambda rows: self.network.cell(self.state[:rows], self.injections[rows]))
        self.head = counted(lambda rows: self.network.head(self.state[:rows]))

    def algebra(self, solver: Solver) -> Work:
        """Return the work of a solver itself in a solve that takes all its steps."""
        values = torch.rand(solver.max_steps + 1, *self.state.shape)

        def solve(rows: int) -> None:
            following = iter(values[:, :rows].unbind())
            solver.solve(lambda _: next(following), self.state[:rows])

        return counted(solve)

    def solve(self, solver: Solver) -> Work:
        """Return the work for a prediction by all steps of ``solver``."""
        once = self.inject.plus(self.head).plus(self.algebra(solver))
        return once.plus(self.cell, evaluations(solver))


def evaluations(solver: Solver) -> int:
    """Return the evaluations of the cell by all steps: one more where the best iterate is returned."""
    return solver.max_steps + (solver.iterate == "best")


class Plan(NamedTuple):
    """Solves of one image: the solver, and how often."""

    parts: list[tuple[Solver, int]]

    @classmethod
    def of(cls, strategy: Strategy, n: int) -> Plan:
        """Count them where a share P_A of the estimation samples says A and no prediction is wrong."""
        sampling = replace(strategy.sampling, n=n)
        if not isinstance(sampling, Serialized):
            return cls([(strategy.solver, sampling.n0 + n)])
        (votes,) = sampling.aimed_at(CertificationRule()).anticipated(n, round(P_A * n), 1.0)
        warm_up = Anderson(sampling.warmup_steps)
        asked = votes.examined + votes.escalations
        return cls([(warm_up, sampling.n0), (sampling.proposal, n), (strategy.solver, asked)])

    @property
    def evaluations(self) -> int:
        return sum(evaluations(solver) * times for solver, times in self.parts)

    def work(self, costs: Costs) -> Work:
        total = Work()
        for solver, times in self.parts:
            total = total.plus(costs.solve(solver), times)
        return total


@dataclass(frozen=True)
class Machine:
    """What a machine reaches, FLOP/s and bytes/s."""

    flops: float
    bytes: float

    def seconds(self, work: Work) -> float:
        return max(work.flops / self.flops, work.bytes / self.bytes)


# Of the peaks (TF32 without sparsity; memory): four tenths of the former, half of the latter, which the measured rows
# of MDEQ-LARGE on an H200 reach; the former is never the larger term.
SHARE_OF_FLOPS, SHARE_OF_BYTES = 0.4, 0.5
PEAKS = {"A100 (40 GB)": (156e12, 1.555e12), "H100 (SXM)": (495e12, 3.35e12), "H200": (495e12, 4.8e12)}
GPUS = {name: Machine(SHARE_OF_FLOPS * f, SHARE_OF_BYTES * b) for name, (f, b) in PEAKS.items()}

# Network, run, solver and seconds per image at n = 10 000: those of the H200 as in docs/performance.md, those of the
# A100 as published (Gao et al., 2411.00899).
CHECKS: list[tuple[str, str, Solver, str, float]] = [
    ("CIFAR-10 LARGE", "standard-30A, all 30 steps", Anderson(30), "H200", 4.293),
    ("CIFAR-10 LARGE", "standard-3A", Anderson(3), "H200", 0.4537),
    ("CIFAR-10 SMALL", "standard-30A, all 30 steps", Anderson(30), "H200", 1.164),
    ("CIFAR-10 SMALL", "standard-3A", Anderson(3), "H200", 0.134),
    ("CIFAR-10 LARGE", "standard-30A, published", Anderson(30), "A100 (40 GB)", 12.89),
    ("ImageNet SMALL", "standard-14B, published", Broyden(14), "A100 (40 GB)", 88.0),
]


def cost(_: argparse.Namespace) -> str:
    """Return the tables of the cost model; it has no options."""
    costs = {name: Costs(settings) for name, settings in NETWORKS.items()}
    return "\n\n".join(
        [parts_table(costs), evaluations_table(), check_table(costs), seconds_table(costs["ImageNet SMALL"])]
    )


def parts_table(costs: dict[str, Costs]) -> str:
    heads = ["one noisy sample, counted", "state", "cell, GFLOP", "MB", "stem and head, GFLOP", "MB"]
    heads += ["solver, 14B, GFLOP", "MB", "solver, 3A, GFLOP", "MB"]
    rows = []
    for name, each in costs.items():
        works = each.cell, each.inject.plus(each.head), each.algebra(Broyden(14)), each.algebra(ANCHORED.solver)
        cells = [f"{value:.3g}" for work in works for value in (work.flops / 1e9, work.bytes / 1e6)]
        rows.append([name, each.state.shape[1], *cells])
    return table(heads, rows)


def evaluations_table() -> str:
    heads = ["evaluations of the cell for one image", *(f"n = {n:,}".replace(",", " ") for n in COUNTS)]
    found = {
        strategy.name: [f"{Plan.of(strategy, n).evaluations:,}".replace(",", " ") for n in COUNTS]
        for full in (Broyden(14), Anderson(30))
        for strategy in strategies(full)
    }
    return table(heads, [[name, *cells] for name, cells in found.items()])


def check_table(costs: dict[str, Costs]) -> str:
    heads = ["seconds per image, n = 10 000", "on", "predicted", "measured", "ratio"]
    rows = []
    for network, run, solver, gpu, measured in CHECKS:
        work = Plan.of(Strategy(run, Standard(), solver), 10_000).work(costs[network])
        predicted = GPUS[gpu].seconds(work)
        rows.append([f"{network}, {run}", gpu, f"{predicted:.3g}", f"{measured:.4g}", f"{measured / predicted:.2f}"])
    core = this_core(costs["ImageNet SMALL"])
    for name in ("ImageNet SMALL", "Tiny-ImageNet SMALL"):
        solver = Broyden(14)
        predicted, measured = core.seconds(costs[name].solve(solver)), measured_sample(costs[name].network, solver)
        cells = [f"{1e4 * predicted:.3g}", f"{1e4 * measured:.3g}", f"{measured / predicted:.2f}"]
        rows.append([f"{name}, standard-14B", "one core here", *cells])
    return table(heads, rows)


@torch.no_grad()
def this_core(costs: Costs) -> Machine:
    """Measure the cell's FLOP/s on one core, whose caches hold the batch: bytes decide nothing there."""
    torch.set_num_threads(1)
    injection = costs.injections[1]
    return Machine(costs.cell.flops / median_seconds(lambda: costs.network.cell(costs.state[:1], injection)), math.inf)


@torch.no_grad()
def measured_sample(network: MDEQ, solver: Solver, samples: int = 8) -> float:
    """Return the seconds of one prediction for a noisy sample, solver and all, on one core."""
    x = torch.rand(samples, 3, network.image_size, network.image_size)
    g = Smoothing(1.0, solver=solver).of(network)
    engine = g.engine(x[0], Execution(rows=samples), samples)
    return median_seconds(lambda: engine.predict(x), 2) / samples


def median_seconds(function: Callable[[], Any], repeats: int = 5) -> float:
    """Return the CPU seconds of a call, which other programs on the machine change little."""
    function()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return statistics.median(times)


def seconds_table(costs: Costs) -> str:
    heads = ["ImageNet SMALL", "n", "evaluations", "PFLOP", "TB", "A100, s", "published", "H100, s"]
    heads += [f"{IMAGES} images: hours on {gpus}" for gpus in ("1 H100", "8", "64")]
    rows = []
    for n in COUNTS:
        for strategy in strategies(Broyden(14)):
            plan = Plan.of(strategy, n)
            work = plan.work(costs)
            a100, h100 = (GPUS[name].seconds(work) for name in ("A100 (40 GB)", "H100 (SXM)"))
            published = PUBLISHED.get(strategy.name, "") if n == 10_000 else ""
            hours = [f"{math.ceil(IMAGES / gpus) * h100 / 3600:.2g}" for gpus in (1, 8, 64)]
            counts = [n, plan.evaluations, f"{work.flops / 1e15:.2g}", f"{work.bytes / 1e12:.3g}"]
            rows.append([strategy.name, *counts, f"{a100:.3g}", published, f"{h100:.3g}", *hours])
    return table(heads, rows)


PUBLISHED = {"standard-14B": "88", "SRS-1B, K = 400": "15 to 27", "SRS-3B, K = 400": "15 to 27"}


# What the files of a run cost to read.

SIGMA = 1.0
BASE = {
    "smoothing": {"class": "Smoothing", "sigma": SIGMA, "noise": "float32"},
    "sampling": {"class": "Standard", "n0": 100, "n": 10_000, "batch_size": 400},
    "seed": 0,
    "image": [3, 224, 224],
}
SERIALIZED = {"class": "Serialized", "audit": asdict(AdaptiveAudit(0.02, 0.001, rule="joint")), "escalation": 0.1}
SERIALIZED["audit"]["class"] = "AdaptiveAudit"


def identity_of(serialized: bool) -> dict[str, Any]:
    return BASE | ({"sampling": BASE["sampling"] | SERIALIZED} if serialized else {})


def votes_of(index: int, classes: int, serialized: bool) -> Votes:
    """Return votes as an image of that many classes may get: a tenth of them for others, spread over nine."""
    a = index % classes
    others = {(a + step) % classes for step in range(1, 10)}
    n_a = 10_000 - 9 * (20 + index % 100)
    spread = (10_000 - n_a) // 9
    estimation = tuple(n_a if c == a else spread if c in others else 0 for c in range(classes))
    votes = Votes(
        n0=100,
        n=10_000,
        selection=tuple(100 * (c == a) for c in range(classes)),
        estimation=estimation,
        audited=None,
        mismatches=0,
        nfe_fast=150_000,
        nfe_audit=0,
        residual=1e-3,
        seconds=80.0,
        sigma=SIGMA,
        noise_error=0.0,
        index=index,
        label=a,
    )
    if not serialized:
        return votes
    asked = tuple(1000 * (c == a) for c in range(classes))
    votes = votes._replace(audited=0, escalations=1000, escalated=asked, escalated_from=asked, nfe_audit=20_000)
    return votes._replace(audited=AdaptiveAudit(0.02, 0.001, rule="joint").size(votes))


def write_ledger(directory: Path, ranks: int, images: int, classes: int, serialized: bool) -> None:
    """Write what ``ranks`` processes leave that have shared ``images``."""
    identity = identity_of(serialized)
    for rank in range(ranks):
        line, digest = seal({"schema": 2, "identity": identity}, START)
        with (directory / f"votes.rank{rank}.jsonl").open("wb") as stream:
            stream.write(line)
            for index in range(rank, images, ranks):
                line, digest = seal(votes_of(index, classes, serialized).to_json(), digest)
                stream.write(line)


def finish(directory: Path) -> None:
    """Certify and write the results, as rank 0 does at the end."""
    ledger = read_ledger(directory)
    votes = [ledger.votes[index] for index in sorted(ledger.votes)]
    write_results(directory, votes, CertificationRule(), ledger.identity, radii=(0.0, 1.0, 2.0))


def look(directory: Path) -> None:
    """Do what a rank does that waits for others: look ten times for news."""
    ledger = read_ledger(directory)
    started = time.process_time()
    for _ in range(10):
        ledger.refresh()
    _results["look"] = (time.process_time() - started) / 10


def resume(directory: Path) -> None:
    """Take hold of the ledger and read it, as the first rank of a resumed run does."""
    ledger = Ledger(directory, read_ledger(directory).identity)
    started = time.process_time()
    with ledger.claim():
        ledger.refresh()
    _results["resume"] = time.process_time() - started


def verify(directory: Path) -> None:
    found = verify_run(directory)
    assert found.findings + found.unknown == []


def report(directory: Path) -> None:
    Report(read_runs(directory, "run"), (0.0, 1.0, 2.0)).text()


_results: dict[str, float] = {}


def measured(function: Callable[[Path], None], directory: Path) -> tuple[float, float]:
    """Return the seconds of a step in a process of its own, and by how many MiB it raises the peak of its memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(_measured, function, directory).result()


def _measured(function: Callable[[Path], None], directory: Path) -> tuple[float, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    function(directory)
    taken = _results.get(function.__name__, time.process_time() - started)
    return taken, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def files(options: argparse.Namespace) -> str:
    """Return the tables of what files cost."""
    return "\n\n".join([ranks_table(options.ranks), images_table(options.images), host_table()])


def ranks_table(ranks: int) -> str:
    heads = ["ranks, two images each, 10 classes", "resume, s", "a look for news, ms", "verify, s", "report, s", "MiB"]
    rows = []
    for count in sorted({max(ranks // 100, 1), max(ranks // 10, 1), ranks}):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            write_ledger(directory, count, 2 * count, 10, serialized=False)
            finish(directory)
            steps = [measured(step, directory) for step in (resume, look, verify, report)]
        resumed, looked, *others = (seconds for seconds, _ in steps)
        cells = [f"{resumed:.2g}", f"{1000 * looked:.0f}", *(f"{seconds:.3g}" for seconds in others)]
        rows.append([count, *cells, f"{max(memory for _, memory in steps):.0f}"])
    return table(heads, rows)


def images_table(images: int) -> str:
    heads = ["images in one run", "classes", "strategy", "bytes per line", "resume, s", "results, s", "verify, s"]
    heads += ["report, s", "peak memory, MiB"]
    rows = []
    for count, classes, serialized in (
        (images // 10, 10, False),
        (images, 10, False),
        (images // 20, 1000, False),
        (images // 20, 1000, True),
    ):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            write_ledger(directory, 1, count, classes, serialized)
            size = (directory / "votes.rank0.jsonl").stat().st_size / count
            steps = [measured(step, directory) for step in (resume, finish, verify, report)]
        strategy = "SRS, adaptive audit" if serialized else "standard"
        cells = [f"{seconds:.3g}" for seconds, _ in steps]
        rows.append([count, classes, strategy, f"{size:.0f}", *cells, f"{max(memory for _, memory in steps):.0f}"])
    return table(heads, rows)


def host_table() -> str:
    """What the CPU does for an image besides the network, and how fast images are decoded."""
    torch.set_num_threads(1)
    image, stream, n = torch.rand(3, 224, 224), Stream(0, 0), 100_000
    drawn = median_seconds(lambda: list(noisy_batches(image, stream, Purpose.ESTIMATION, SIGMA, 80, 40)), 3) / 80
    votes = votes_of(0, 1000, serialized=True)
    chosen = median_seconds(lambda: audit_subset(np.arange(n), n // 10, stream))
    sized = median_seconds(lambda: AdaptiveAudit(0.02, 0.001, rule="joint").size(votes))
    joint = median_seconds(lambda: CertificationRule().certify(votes))
    rows = [
        ["noise of 100 000 samples at 224 × 224, drawn once", f"{n * drawn:.3g} s"],
        ["choice of the audit among 100 000 positions", f"{1000 * chosen:.2g} ms"],
        ["size of an adaptive audit", f"{1000 * sized:.2g} ms"],
        ["certificate by the joint rule, 1000 classes", f"{1000 * joint:.2g} ms"],
        ["decoding a JPEG of 500 × 375, resizing, cropping to 224", f"{1000 * decoding():.2g} ms"],
    ]
    return table(["for one image, one core", "time"], rows)


def decoding() -> float:
    """Return the seconds for a JPEG of the usual size as ImageFolder reads it for certification."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "val" / "n0"
        path.mkdir(parents=True)
        coarse = np.random.default_rng(0).integers(0, 256, (25, 33, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(path / "0.jpg", quality=90)
        images = ImageFolder(folder, num_classes=1).load_split("test")
        return median_seconds(lambda: images[0], 20)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "files"))
    parser.add_argument("--ranks", type=int, default=10_000, help="files: processes whose ledgers are read")
    parser.add_argument("--images", type=int, default=1_000_000, help="files: images of the largest run")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    options = parser.parse_args(args)
    text = {"cost": cost, "files": files}[options.what](options)
    print(text)
    if options.write:
        put(PAGE, options.what, text)


if __name__ == "__main__":
    main()
