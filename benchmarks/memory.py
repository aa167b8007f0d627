"""Peak memory of certification at 224 × 224: predicted, measured, and what fits on which GPU (docs/memory.md).

    python benchmarks/memory.py

Every point is a process of its own. On a CPU its peak is that of the resident memory (Linux), with what kernels
allocate for themselves and what malloc keeps; on a GPU that of torch's allocator.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from deqcert.models import MDEQ
from deqcert.smoothing import (
    Engine,
    Execution,
    Sampling,
    Serialized,
    SmoothedClassifier,
    SolvedClassifier,
    Standard,
    Stream,
)
from deqcert.smoothing.memory import footprint
from deqcert.solvers import Anderson, Broyden, Solver
from deqcert.statistics import FixedAudit

CONFIG = Path(__file__).parents[1] / "configs" / "imagenet" / "mdeq_small.yaml"
MIB, GIB = 2**20, 2**30


class Point(NamedTuple):
    """A strategy on a base classifier, with the solver of that."""

    sampling: Sampling
    solver: Solver


def strategies(width: int, n: int, rows: int | None) -> dict[str, Point]:
    """Return what the table is about; few warm-up steps save time and no memory."""
    sizes = {"n0": width, "n": n, "batch_size": width, "execution": Execution(rows=rows)}
    chain = Serialized(**sizes, warmup_steps=6, audit=FixedAudit(min(n, 16)))
    published = Broyden(max_steps=14)
    return {
        "standard-14B": Point(Standard(**sizes), published),
        "SRS-1B": Point(replace(chain, proposal=Broyden(max_steps=1)), published),
        "SRS-3B": Point(replace(chain, proposal=Broyden(max_steps=3)), published),
        "anchored-3A": Point(Standard(**sizes), Anderson(max_steps=3)),
    }


def network(device: str) -> MDEQ:
    """Return MDEQ-SMALL for ImageNet with random weights."""
    settings = yaml.safe_load(CONFIG.read_text())["model"]["network"]["init_args"]
    settings.pop("solver")
    torch.manual_seed(0)
    return MDEQ(**settings).eval().requires_grad_(False).to(device)


def measure(device: str, name: str, width: int, rows: int) -> str:
    """Take the votes of one image; return a row of the table."""
    sampling, solver = strategies(width, width, rows)[name]
    image = torch.rand(3, 224, 224, device=device)
    base = SolvedClassifier(network(device).for_inference(), solver)
    g = SmoothedClassifier(base, sigma=1.0)
    engine = Engine(base, sampling.execution, image, width, sampling.proposals)
    expected = engine.memory
    engine.predict(image[None])  # what libraries allocate once
    begin_measuring(device)
    before = memory(device, "VmRSS")
    sampling.group_votes(g, engine, image[None], [Stream(0, 0)])
    peak = memory(device, "VmHWM") - before
    threads = torch.get_num_threads() if device == "cpu" else 1
    cells = [name, width, rows, threads, f"{expected / MIB:.0f}", f"{peak / MIB:.0f}", f"{peak / expected - 1:+.0%}"]
    return f"| {' | '.join(map(str, cells))} |"


def begin_measuring(device: str) -> None:
    """Give back free memory and forget earlier peaks."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def memory(device: str, field: str) -> int:
    """Return the bytes in use (VmRSS) or those at most in use so far (VmHWM)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if field == "VmHWM" else torch.cuda.memory_allocated()
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def cards() -> None:
    """Print what fits on GPUs: rows per batch at width 400, and the largest width with batches of 64 rows."""
    module, image = network("cpu"), torch.rand(3, 224, 224)
    weights = 2 * sum(parameter.nbytes for parameter in module.parameters())  # as trained, and for inference
    print(f"weights {weights / MIB:.0f} MiB\n")
    print("| strategy | MiB per row | MiB per waiting sample | card, GiB | rows at W = 400 | largest W at 64 rows |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, (sampling, solver) in strategies(400, 10_000, None).items():
        base = SolvedClassifier(module.for_inference(), solver)
        each = footprint(base, image, sampling.proposals)
        state = module.initial_state(module.inject(image[None]))
        for card in (16, 24, 40, 80):
            free = card * GIB - weights
            rows = Execution(images=1).spread(state, 400, each, free)[1]
            width = int(0.8 * free - 64 * each.row) // each.held
            print(f"| {name} | {each.row / MIB:.1f} | {each.held / MIB:.2f} | {card} | {rows} | {width} |")


def main() -> None:
    """Print both tables, or measure one point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--point", nargs=3, metavar=("STRATEGY", "WIDTH", "ROWS"))
    parser.add_argument("--points", type=int, default=99, help="of the table, at most")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.point:
        name, width, rows = arguments.point
        print(measure(device, name, int(width), int(rows)))
        return
    cards()
    print("\n| strategy | W | rows | threads | predicted, MiB | measured, MiB | difference |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    points = [("standard-14B", 32, 4), ("standard-14B", 32, 16), ("SRS-3B", 32, 8), ("SRS-1B", 96, 8)]
    points += [("anchored-3A", 96, 8), ("anchored-3A", 32, 16)]
    for point in points[: arguments.points]:
        subprocess.run([sys.executable, __file__, "--point", *map(str, point)], check=True, env=os.environ)


if __name__ == "__main__":
    main()
