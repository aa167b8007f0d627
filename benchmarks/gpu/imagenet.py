"""Stage imagenet: what certification at 224 × 224 costs, in time and memory, by each strategy."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import certification_speed as speed
import torch
from speed import measured
from stage import Part, Result, Setting, Stage

from deqcert.smoothing import Execution, Sampling, Standard
from deqcert.solvers import Broyden, Solver

FULL = Broyden(14)
AUDITED, N = 400, 10_000
STRATEGIES: dict[str, tuple[Sampling, Solver, str]] = {  # with the solver of f, and published seconds on an A100
    "standard-14B": (Standard(n0=1), FULL, "88"),
    "SRS-1B": (replace(speed.CHAIN, proposal=Broyden(1)), FULL, "15 to 27"),
    "SRS-3B": (replace(speed.CHAIN, proposal=Broyden(3)), FULL, "15 to 27"),
    "anchored-3B": (Standard(n0=1), Broyden(3), ""),
}
SWEEP = "MDEQ-SMALL at 224 × 224, standard-14B: rows per batch"


def prepare(setting: Setting) -> None:
    model = "tiny" if setting.smoke else "imagenet"
    speed.prepare(speed.settings(model, setting.device, setting.network or None))


def sweep(setting: Setting, result: Result) -> bool:
    """Find how many rows per batch pay, and the memory that a row takes."""
    prepare(setting)
    result.table(SWEEP, ["rows", "s per 1000 samples", "samples/s", "peak memory, MiB", "MiB per row"])
    best = float("inf")
    for rows in (2, 4) if setting.smoke else (32, 64, 128, 256, 512, 1024, 2048):
        strategy = replace(STRATEGIES["standard-14B"][0], n=2 * rows, batch_size=rows, execution=Execution(rows=rows))
        try:
            vote = speed.Voting(strategy, FULL)
            before = _allocated(setting)
            each = measured(vote, 0 if setting.smoke else 3) / (strategy.n0 + strategy.n)
            peak = _peak(setting)
        except torch.OutOfMemoryError:
            result.row(SWEEP, rows, "out of memory", "", "", "")
            break
        result.row(SWEEP, rows, 1000 * each, 1 / each, f"{peak:.0f}", (peak - before) / rows)
        if each < best:
            best, result.state["rows"] = each, rows
    return True


def _allocated(setting: Setting) -> float:
    """Forget the peak so far; return the MiB in use: those of the network."""
    if setting.device != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 2**20


def _peak(setting: Setting) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if setting.device == "cuda" else float("nan")


def strategies(compiled: bool, setting: Setting, result: Result) -> bool:
    """Time a sample of each chain and of a full solve; an image of n = 10 000 follows, its audit of 400 included."""
    prepare(setting)
    rows = result.state["rows"]
    title = f"MDEQ-SMALL at 224 × 224, n = 10 000, {rows} rows{', compiled' if compiled else ''}"
    result.table(title, ["run", "s per 1000 samples", "s per image, audit of 400 included", "A100, published", "MiB"])
    full = 0.0
    for name, (strategy, solver, published) in STRATEGIES.items():
        strategy = replace(strategy, n=2 * rows if setting.smoke else 4 * rows, batch_size=rows)
        strategy = replace(strategy, execution=Execution(rows=rows, compile=compiled and not setting.smoke))
        vote = speed.Voting(strategy, solver)
        _allocated(setting)
        each = measured(vote, 0 if setting.smoke else 5) / (strategy.n0 + strategy.n)
        full = full or each
        audit = AUDITED * full if name.startswith("SRS") else 0.0
        seconds = (100 + N) * each + audit
        result.row(title, name, 1000 * each, seconds, published, f"{_peak(setting):.0f}")
    return True


IMAGENET = Stage(
    "imagenet",
    (
        Part("rows", 60, sweep),
        Part("strategies", 90, partial(strategies, False)),
        Part("compiled", 180, partial(strategies, True)),
    ),
    "All steps of each solve (tolerance 0), so that weights do not matter; whole images are computed from timed parts. "
    "anchored-3B is timed from the cold start, which costs about as much as the anchored one.",
    data=None,
)
