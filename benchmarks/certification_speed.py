"""Speed of certification against the published algorithm, followed literally (literal.py).

    python benchmarks/certification_speed.py --model small [--checkpoint MODEL.ckpt] [--data DATA] [--device cuda]

Prints Markdown tables: samples per second beside the literal reference, where the time goes, peak memory, growth with
n, batches of other sizes, and how many predictions the settings of the engine change. Reference and engine run in a
process each, under the same allocator and number of threads, in turn: each ratio is of medians of one run. Chains are
timed with their selection samples and without an audit, which is timed apart. Without a checkpoint weights are random.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from literal import Literal
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from deqcert.checkpoints import load_network
from deqcert.data import CIFAR10
from deqcert.data.images import to_unit_interval
from deqcert.models import DEQ, MDEQ, Start
from deqcert.seeding import Purpose
from deqcert.smoothing import Execution, Sampling, Serialized, Smoothing, Standard, Stream
from deqcert.smoothing.base_classifier import CONVERGED
from deqcert.solvers import Anderson, Picard, Solver
from deqcert.statistics import AdaptiveAudit, FixedAudit, Votes

SIGMA = 0.5
WIDTH = 400
MATMUL_SIZES = (2048, 4096)
N0 = 100
MODELS: dict[str, dict[str, Any]] = {
    "small": {},
    "large": {"channels": (32, 64, 128, 256), "head_channels": (14, 28, 56, 112), "final_channels": 1680},
    "imagenet": {
        "channels": (32, 64, 128, 256),
        "head_channels": (28, 56, 112, 224),
        "final_channels": 2048,
        "num_classes": 1000,
        "image_size": 224,
        "downsample_times": 2,
    },
    "tiny_imagenet": {
        "channels": (8, 16, 32, 64),
        "head_channels": (7, 14, 28, 56),
        "final_channels": 400,
        "num_classes": 200,
        "image_size": 64,
        "downsample_times": 1,
    },
    "tiny": {"channels": (8, 16), "head_channels": (2, 4), "final_channels": 16, "downsample_times": 2},  # for tests
}
CHAIN = Serialized(n0=N0, batch_size=WIDTH, audit=FixedAudit(1))  # an audit of one sample costs nothing
FULL = Standard(n0=1, batch_size=WIDTH)
ALL_STEPS = Anderson(max_steps=30)

# name, ours with the solver of f, and the literal call: ("standard", steps, tolerance) or ("serialized", steps); no
# literal "N" is published with other costs than "A".
RUNS: list[tuple[str, Sampling, Solver, tuple[Any, ...] | None]] = [
    ("standard-30A, all 30 steps", FULL, ALL_STEPS, ("standard", 30, 0.0)),
    ("standard-30A, tolerance 1e-3", FULL, CONVERGED, ("standard", 30, 1e-3)),
    ("SRS-1N", replace(CHAIN, proposal=Picard(1)), CONVERGED, None),
    ("SRS-1A", replace(CHAIN, proposal=Anderson(1)), CONVERGED, ("serialized", 1)),
    ("SRS-3A", replace(CHAIN, proposal=Anderson(3)), CONVERGED, ("serialized", 3)),
    ("SRS-3A, bfloat16", replace(CHAIN, proposal=Anderson(3), precision="bfloat16"), CONVERGED, ("serialized", 3)),
]


def settings(model: str, device: str, checkpoint: str | None = None, data: str | None = None) -> argparse.Namespace:
    """Return what :func:`prepare` needs, for programs that call the functions below."""
    return argparse.Namespace(model=model, device=device, checkpoint=checkpoint, data=data)


def load(options: argparse.Namespace) -> tuple[MDEQ, Tensor]:
    """Return the network and one image."""
    torch.manual_seed(0)
    network = MDEQ(dropout=0, **MODELS[options.model])
    if options.checkpoint:
        load_network(options.checkpoint, network)
    image = torch.rand(3, network.image_size, network.image_size)
    if options.data:
        image = to_unit_interval(CIFAR10(root=options.data).load_split("test")[100][0])
    return network.eval().to(options.device), image.to(options.device)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


# What the two processes run. Each keeps its network, and the engine its buffers, from call to call.

_state: dict[str, Any] = {}


def prepare(options: argparse.Namespace) -> None:
    _state["network"], _state["image"] = load(options)


def literal_seconds(call: tuple[Any, ...], n: int) -> float:
    kind, *settings = call
    literal = Literal(_state["network"], WIDTH, SIGMA)
    if kind == "standard":
        return timed(lambda: literal.standard(_state["image"], n, *settings))[0] / n
    return timed(lambda: literal.serialized(_state["image"], N0, n, *settings))[0] / (n + N0)


class Voting:
    """A strategy with the smoothed classifier and the engine that it takes votes of."""

    def __init__(self, strategy: Sampling, solver: Solver = CONVERGED, start: Start = "zero") -> None:
        self.strategy = strategy
        self.g = Smoothing(SIGMA, solver=solver, start=start).of(_state["network"])
        self.engine = strategy.engine(self.g, _state["image"])

    def __call__(self, images: int = 1) -> list[Votes]:
        stack = _state["image"].expand(images, -1, -1, -1)
        return self.strategy.group_votes(self.g, self.engine, stack, [Stream(0, index) for index in range(images)])


def engine_seconds(strategy: Sampling, solver: Solver = CONVERGED) -> float:
    """Return the seconds per noisy sample."""
    key = repr((strategy, solver))
    if key not in _state:
        _state[key] = Voting(strategy, solver)
        _state[key]()
    return timed(_state[key])[0] / (strategy.n0 + strategy.n)


def peak_megabytes(strategy: Sampling, solver: Solver) -> float:
    """Return by how much one vote raises the peak: of the allocator on CUDA, of the process elsewhere."""
    vote = Voting(strategy, solver)
    Voting(replace(strategy, n=strategy.batch_size, n0=1), solver)()  # libraries keep what they need from then on
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        vote()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - _state["before"]


def note_memory() -> None:
    _state["before"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class Timed(DEQ):
    """Adds up the seconds of each part of a network."""

    def __init__(self, network: DEQ) -> None:
        super().__init__(network.solver)
        self.network = network
        self.seconds = dict.fromkeys(("encoder", "cell", "head"), 0.0)
        self.evaluations = 0

    def _part(self, name: str, function: Callable[[], Any]) -> Any:
        taken, result = timed(function)
        self.seconds[name] += taken
        return result

    def inject(self, x: Tensor) -> Any:
        return self._part("encoder", lambda: self.network.inject(x))

    def initial_state(self, injection: Any) -> Tensor:
        return self.network.initial_state(injection)

    def cell(self, z: Tensor, injection: Any) -> Tensor:
        self.evaluations += len(z)
        return self._part("cell", lambda: self.network.cell(z, injection))

    def head(self, z: Tensor) -> Tensor:
        return self._part("head", lambda: self.network.head(z))


def matmul_rate(dtype: torch.dtype) -> float:
    """Return the FLOP/s of the better of two sizes of square matrices, in TF32 where convolutions may use it."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    best = 0.0
    for size in MATMUL_SIZES:
        a = torch.randn(size, size, device=_state["image"].device).to(dtype)
        torch.mm(a, a)
        best = max(best, 2 * size**3 / statistics.median(timed(lambda a=a: torch.mm(a, a))[0] for _ in range(5)))
    return best


def flops_per_evaluation() -> float:
    network, image = _state["network"], _state["image"]
    with torch.no_grad():
        injection = network.inject(image[None])
        with FlopCounterMode(display=False) as counter:
            network.cell(network.initial_state(injection), injection)
    return float(counter.get_total_flops())


def shares(strategy: Sampling, solver: Solver) -> str:
    """Return a table row: where the time of a vote goes, on one thread, and the cell's share of the matmul rate."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network = Timed(_state["network"].for_inference().eval())
    network.eval()
    plain, _state["network"] = _state["network"], network
    vote = Voting(strategy, solver)
    _state["network"] = plain
    vote()
    network.seconds, network.evaluations = dict.fromkeys(network.seconds, 0.0), 0
    total, (votes,) = timed(vote)
    parts = (Purpose.SELECTION, strategy.n0), (Purpose.ESTIMATION, strategy.n)
    batches = (vote.g.noisy(_state["image"], Stream(0, 0), *part, strategy.batch_size) for part in parts)
    noise = timed(lambda: [list(each) for each in batches])[0]
    rate = flops_per_evaluation() * network.evaluations / network.seconds["cell"]
    peak = matmul_rate(torch.float32)
    torch.set_num_threads(threads)
    parts = [network.seconds["cell"], network.seconds["head"], network.seconds["encoder"], noise]
    parts.append(total - sum(parts))
    idle = network.evaluations / (votes.nfe_fast + votes.nfe_audit) - 1
    cells = " | ".join(f"{100 * part / total:.1f}" for part in parts)
    return f"{cells} | {100 * idle:.1f} | {rate / 1e9:.0f} | {100 * rate / peak:.0f}"


def counts(strategy: Sampling, images: int) -> list[tuple[int, ...]]:
    return [each.estimation for each in Voting(strategy)(images)]


def whole_image(strategy: Sampling, solver: Solver) -> tuple[float, Votes]:
    taken, (votes,) = timed(Voting(strategy, solver))
    return taken, votes


def profile(strategy: Sampling) -> str:
    torch.set_num_threads(1)  # the profiler does not see other threads
    vote = Voting(strategy)
    vote()
    with torch.profiler.profile() as trace:
        vote()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return trace.key_averages().table(sort_by=by, row_limit=12, max_name_column_width=40)


def process(options: argparse.Namespace) -> ProcessPoolExecutor:
    """Return a fresh process with the network loaded."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=prepare, initargs=(options,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), default="small")
    parser.add_argument("--checkpoint", help="checkpoint of that model; random weights without")
    parser.add_argument("--data", help="root of CIFAR-10, as data.root; a random image without")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--n", type=int, default=2000, help="estimation samples per timed chain")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--only", choices=("speed", "shares", "memory", "growth", "rows", "predictions", "audit", "profile")
    )
    options = parser.parse_args()
    for name, table in TABLES.items():
        if options.only in (None, name):
            table(options)


def speed_table(options: argparse.Namespace) -> None:
    print(f"\n| MDEQ-{options.model.upper()}, {options.device} | literal, s/1000 | ours, s/1000 | ratio | samples/s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with process(options) as reference, process(options) as ours:
        for name, strategy, solver, call in RUNS:
            n = options.n if isinstance(strategy, Serialized) else WIDTH
            strategy = replace(strategy, n=n)
            reference_times, times = [], []
            for _ in range(options.repeats):
                if call is not None:
                    reference_times.append(reference.submit(literal_seconds, call, n).result())
                times.append(ours.submit(engine_seconds, strategy, solver).result())
            taken = statistics.median(times)
            literal = statistics.median(reference_times) if reference_times else float("nan")
            row = f"{1000 * literal:.2f} | {1000 * taken:.3f} | {literal / taken:.2f} | {1 / taken:.0f}"
            print(f"| {name} | {row} |", flush=True)


def shares_table(options: argparse.Namespace) -> None:
    heads = "cell | head | encoder | noise | solver and Python | evaluated in vain | GFLOP/s | of matmul"
    print(f"\n| one thread, % of the time | {heads} |\n| --- |{' ---: |' * 8}")
    with process(options) as ours:
        for name, strategy, solver, _ in RUNS[:-1]:
            n = options.n if isinstance(strategy, Serialized) else WIDTH
            print(f"| {name} | {ours.submit(shares, replace(strategy, n=n), solver).result()} |", flush=True)


def memory_table(options: argparse.Namespace) -> None:
    print("\n| peak memory of a vote, MiB | |\n| --- | ---: |")
    for name, strategy, solver in (
        ("SRS-3A, n = 400", replace(CHAIN, n=400), CONVERGED),
        ("SRS-3A, n = 2000", replace(CHAIN, n=2000), CONVERGED),
        ("standard-30A, n = 400", replace(FULL, n=400), ALL_STEPS),
    ):
        with process(options) as fresh:
            fresh.submit(note_memory).result()
            print(f"| {name} | {fresh.submit(peak_megabytes, strategy, solver).result():.0f} |", flush=True)


def growth_table(options: argparse.Namespace) -> None:
    print("\n| SRS-1A, n | s | µs per noisy sample |\n| --- | ---: | ---: |")
    with process(options) as ours:
        for n in (1000, 3000, 10_000):
            strategy = replace(CHAIN, n=n, proposal=Anderson(1))
            taken = statistics.median(ours.submit(engine_seconds, strategy).result() for _ in range(3))
            print(f"| {n} | {taken * (n + N0):.2f} | {1e6 * taken:.0f} |", flush=True)


def rows_table(options: argparse.Namespace) -> None:
    print("\n| noisy samples per batch, SRS-3A | s/1000 |\n| --- | ---: |")
    with process(options) as ours:
        for rows in (None, 8, 16, 25, 50, 80, 100, 200, 400):
            strategy = replace(CHAIN, n=800, execution=Execution(rows=rows))
            taken = statistics.median(ours.submit(engine_seconds, strategy).result() for _ in range(3))
            print(f"| {rows or 'default'} | {1000 * taken:.3f} |", flush=True)


def predictions_table(options: argparse.Namespace) -> None:
    """From counts: the least possible number of predictions that differ."""
    print(f"\n| SRS-3A, n = {options.n}, four images | predictions that differ at least |\n| --- | ---: |")
    base = replace(CHAIN, n=options.n)
    changes = {
        "batches of 100": replace(base, execution=Execution(rows=100)),
        "4 images side by side": replace(base, execution=Execution(images=4)),
        "bfloat16": replace(base, precision="bfloat16"),
    }
    with process(options) as ours:
        expected = ours.submit(counts, base, 4).result()
        for name, strategy in changes.items():
            given = ours.submit(counts, strategy, 4).result()
            different = sum(int(np.abs(np.subtract(a, b)).sum()) // 2 for a, b in zip(given, expected, strict=True))
            print(f"| {name} | {different} of {4 * options.n} |", flush=True)


def audit_table(options: argparse.Namespace) -> None:
    print(f"\n| SRS-3A, n = {options.n}, one image | s | NFE fast + audit | audited | mismatches |")
    print("| --- | ---: | ---: | ---: | ---: |")
    audits = {
        "no audit": (CHAIN, CONVERGED),
        "adaptive, 5 %": (replace(CHAIN, audit=AdaptiveAudit()), CONVERGED),
        "400, all 30 steps": (replace(CHAIN, audit=FixedAudit(400)), ALL_STEPS),
        "400, tolerance 1e-3": (replace(CHAIN, audit=FixedAudit(400)), CONVERGED),
    }
    with process(options) as ours:
        for name, (strategy, solver) in audits.items():
            taken, votes = ours.submit(whole_image, replace(strategy, n=options.n), solver).result()
            samples = votes.n0 + votes.n
            nfe = f"{votes.nfe_fast / samples:.2f} + {votes.nfe_audit / samples:.2f}"
            print(f"| {name} | {taken:.2f} | {nfe} | {votes.audited} | {votes.mismatches} |", flush=True)


def profile_table(options: argparse.Namespace) -> None:
    with process(options) as ours:
        print(ours.submit(profile, replace(CHAIN, n=options.n)).result())


TABLES = {
    "speed": speed_table,
    "shares": shares_table,
    "memory": memory_table,
    "growth": growth_table,
    "rows": rows_table,
    "predictions": predictions_table,
    "audit": audit_table,
    "profile": profile_table,
}

if __name__ == "__main__":
    main()
