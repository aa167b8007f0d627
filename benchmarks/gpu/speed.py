"""Stage speed: what certification costs on a GPU, beside the published algorithm and the published seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import certification_speed as speed
import torch
from stage import REPOSITORY, Part, Result, Setting, Stage, hand_in

from deqcert.smoothing import Execution, Sampling, Serialized, Standard
from deqcert.solvers import Anderson, Solver

A100 = {"standard-30A, all 30 steps": 12.89, "SRS-1A": 1.79, "SRS-3A": 2.55}
"""Published seconds per image of LARGE (Gao et al., NeurIPS 2024), n = 10 000, with their audit."""

CHAIN = Serialized(batch_size=speed.WIDTH)
WHOLE: dict[str, tuple[Sampling, Solver]] = {  # each with the solver of f
    "standard-30A, all 30 steps": (speed.FULL, speed.ALL_STEPS),
    "standard-30A, tolerance 1e-3": (speed.FULL, speed.CONVERGED),
    "SRS-1A": (replace(CHAIN, proposal=Anderson(1)), speed.CONVERGED),
    "SRS-3A": (CHAIN, speed.CONVERGED),
    "SRS-3A, bfloat16": (replace(CHAIN, precision="bfloat16"), speed.CONVERGED),
    "standard-3A": (Standard(batch_size=speed.WIDTH), Anderson(3)),  # an anchored start costs about as much
}
CHECKPOINTS = {"small": "cifar10_mdeq_small_cpu_consistency"}


def measured(function: Callable[[], Any], seconds: float) -> float:
    """Return the median time of as many calls as go into ``seconds``, at least one, after one that does not count."""
    function()
    times: list[float] = []
    until = time.monotonic() + seconds
    while not times or (time.monotonic() + statistics.median(times) < until and len(times) < 20):
        times.append(speed.timed(function)[0])
    return statistics.median(times)


def prepare(setting: Setting, model: str) -> None:
    if setting.smoke:
        speed.MATMUL_SIZES = (64,)
        speed.prepare(speed.settings("tiny", setting.device))
        return
    checkpoint = REPOSITORY / "checkpoints" / CHECKPOINTS[model] / "model.ckpt" if model in CHECKPOINTS else None
    speed.prepare(speed.settings(model, setting.device, checkpoint and str(checkpoint), setting.data))


def sized(setting: Setting, strategy: Sampling, n: int) -> Sampling:
    return replace(strategy, n=8, n0=4, batch_size=4) if setting.smoke else replace(strategy, n=n)


def sweep(model: str, setting: Setting, result: Result) -> bool:
    """Find the launch size and the number of images side by side."""
    prepare(setting, model)
    title = f"MDEQ-{model.upper()}, SRS-3A, n = 2000: rows per batch, images side by side"
    result.table(title, ["rows", "images", "s per 1000 samples", "samples/s"])
    best = float("inf")
    sizes = (
        [(4, 1), (8, 2)]
        if setting.smoke
        else [(rows, max(1, rows // 400)) for rows in (100, 200, 400, 800, 1600, 3200)]
    )
    for rows, images in sizes:
        strategy = sized(setting, speed.CHAIN, 2000)
        strategy = replace(strategy, proposal=Anderson(3), execution=Execution(rows=rows, images=images))
        try:
            taken = measured(partial(speed.Voting(strategy), images), 0 if setting.smoke else 3)
        except torch.OutOfMemoryError:
            result.row(title, rows, images, "out of memory", "")
            break
        each = taken / (images * (strategy.n0 + strategy.n))
        result.row(title, rows, images, 1000 * each, 1 / each)
        if each < best:
            best, result.state[model] = each, {"rows": rows, "images": images}
    return True


def wide_batches(model: str, setting: Setting, result: Result) -> bool:
    """Find where more rows per batch stop paying, and the memory that they take.

    Not beyond 12 800 rows: at 25 600 a tensor of LARGE has more than 2^31 elements, and torch 2.11 ended with an
    illegal memory access on an H200.
    """
    prepare(setting, model)
    title = f"MDEQ-{model.upper()}, SRS-3A, n = 2000: batches of more rows"
    result.table(title, ["rows", "images", "s per 1000 samples", "samples/s", "peak memory, MiB"])
    for rows in (4, 8) if setting.smoke else (3200, 6400, 12_800):
        images = max(1, rows // 400)
        strategy = replace(sized(setting, speed.CHAIN, 2000), execution=Execution(rows=rows, images=images))
        try:
            vote = speed.Voting(strategy)
            if setting.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken = measured(partial(vote, images), 0 if setting.smoke else 2)
            peak = torch.cuda.max_memory_allocated() / 2**20 if setting.device == "cuda" else float("nan")
        except torch.OutOfMemoryError:
            result.row(title, rows, images, "out of memory", "", "")
            break
        each = taken / (images * (strategy.n0 + strategy.n))
        result.row(title, rows, images, 1000 * each, 1 / each, f"{peak:.0f}")
    return True


def whole_images(model: str, setting: Setting, result: Result) -> bool:
    """Take the votes of whole images, audit included, in the batches that the sweep has found."""
    prepare(setting, model)
    chosen = result.state[model]
    title = f"MDEQ-{model.upper()}, n = 10 000, audit included ({chosen['rows']} rows, {chosen['images']} images)"
    result.table(title, ["run", "s per image", "NFE per sample", "A100, published"])
    for name, (strategy, solver) in list(WHOLE.items())[-2:] if setting.smoke else WHOLE.items():
        strategy = replace(sized(setting, strategy, 10_000), execution=Execution(**chosen))
        speed.Voting(sized(setting, strategy, 400), solver)(chosen["images"])
        taken, votes = speed.timed(partial(speed.Voting(strategy, solver), chosen["images"]))
        evaluations = statistics.mean((each.nfe_fast + each.nfe_audit) / (each.n0 + each.n) for each in votes)
        published = A100.get(name, "") if model == "large" else ""
        result.row(title, name, taken / chosen["images"], evaluations, published)
    return True


def ratios(compiled: bool, model: str, setting: Setting, result: Result) -> bool:
    """Compare with the published algorithm followed literally, in turn, without an audit."""
    prepare(setting, model)
    title = f"MDEQ-{model.upper()} against the published algorithm{', compiled with CUDA graphs' if compiled else ''}"
    result.table(title, ["run", "literal, s per 1000", "ours, s per 1000", "ratio"])
    chosen = result.state[model]
    runs = [run for run in speed.RUNS if run[3] is not None]
    for name, strategy, solver, call in runs[-1:] if setting.smoke else runs:
        n = 2000 if isinstance(strategy, Serialized) else speed.WIDTH
        strategy = sized(setting, strategy, n)
        rows = min(chosen["rows"], chosen["images"] * strategy.batch_size)
        execution = Execution(rows=rows, images=chosen["images"], compile=compiled and not setting.smoke)
        strategy = replace(strategy, execution=execution)
        vote = speed.Voting(strategy, solver)
        seconds = 0 if setting.smoke else 2
        assert call is not None
        literal = measured(lambda c=call, k=strategy.n: speed.literal_seconds(c, k), seconds)  # type: ignore[misc]
        literal /= strategy.n + (speed.N0 if call[0] == "serialized" else 0)
        images = chosen["images"]
        ours = measured(partial(vote, images), seconds) / images / (strategy.n0 + strategy.n)
        result.row(title, name, 1000 * literal, 1000 * ours, literal / ours)
    return True


def shares(model: str, setting: Setting, result: Result) -> bool:
    """Say where the time goes, which share of the matmul rate the cell reaches, and which kernels take it."""
    prepare(setting, model)
    title = f"MDEQ-{model.upper()}: where the time of a vote goes, %"
    heads = ["cell", "head", "encoder", "noise", "solver and Python", "evaluated in vain", "GFLOP/s", "of matmul"]
    result.table(title, ["run", *heads])
    execution = Execution(**result.state[model])
    for name, strategy, solver, _ in speed.RUNS[4:5] if setting.smoke else speed.RUNS[1:-1]:
        strategy = replace(sized(setting, strategy, 2000), execution=execution)
        result.row(title, name, *speed.shares(strategy, solver).split(" | "))
    page = setting.work / f"kernels_{model}.txt"
    page.write_text(speed.profile(replace(sized(setting, speed.CHAIN, 2000), execution=execution)))
    hand_in(setting, page, page.name)
    return True


def measure(function: Callable[..., bool], model: str, setting: Setting, result: Result) -> bool:
    """Do a part for one model; at the size of a test both are the same."""
    return (setting.smoke and model == "small") or function(model, setting, result)


def _parts() -> tuple[Part, ...]:
    first = {"sweep": (20, sweep), "whole images": (25, whole_images), "ratios": (20, partial(ratios, False))}
    then = {"compiled": (45, partial(ratios, True)), "shares": (15, shares), "wide batches": (15, wide_batches)}
    return tuple(
        Part(f"{name} {model}", seconds * factor, partial(measure, function, model))
        for parts in (first, then)
        for model, factor in (("small", 1.0), ("large", 2.0))
        for name, (seconds, function) in parts.items()
    )


SPEED = Stage(
    "speed",
    _parts(),
    "The weights of LARGE are random: its seconds hold for the evaluations beside them, and those of solves to a "
    "tolerance depend on the weights.",
)
