"""The frontier of certified accuracy over cost, from the predictions of measure.py.

    python benchmarks/pareto/frontier.py --data DATA --store STORE --n 10000 --to docs/images/frontier [--time]

Prints Markdown tables: certified accuracies, ACR, its difference to standard-30A with a bootstrap interval over images,
evaluations of the cell and seconds per image; then what the choices of n cost and save. Draws ACR over evaluations.
Seconds are noisy samples at the CPU time of one core per sample, which --time measures for each kind of prediction and
stores; without, they are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import BATCH, CHAINS, N0, SEED, SERIES, SIGMA, STEPS, TOLERANCE, smoothed
from networks import NETWORKS
from replay import SIZES, Configuration, Seconds, Store, configurations, vote

from deqcert.data import CIFAR10
from deqcert.data.images import to_unit_interval
from deqcert.report.compare import Comparison, compare
from deqcert.report.style import COLORS, MARKERS, new_axes, save_figure
from deqcert.runs import Summary, summarize
from deqcert.smoothing import Sampling, Serialized, SmoothedClassifier, Standard, Stream
from deqcert.solvers import Anderson, Picard
from deqcert.statistics import Certificate, FixedAudit

sys.path.insert(0, str(Path(__file__).parents[1]))
from clock import Clock

RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
REFERENCE = "standard-30A"
TIMES = "seconds.json"


class Point(NamedTuple):
    """A configuration and what came of it."""

    configuration: Configuration
    summary: Summary
    comparison: Comparison
    samples: float
    evaluations: float


def procedures() -> dict[str, tuple[Sampling, SmoothedClassifier]]:
    """Return how each kind of prediction comes about, by series and column."""
    sizes = {"n0": N0, "n": 2 * BATCH, "batch_size": BATCH}
    independent = Standard(**sizes)
    given: dict[str, tuple[Sampling, SmoothedClassifier]] = {
        f"standard-{depth}A class": (independent, smoothed("zero", Anderson(depth, tolerance=TOLERANCE)))
        for depth in (30, 10, 5)
    }
    for series, steps in CHAINS.items():
        chain = Serialized(**sizes, proposal=Anderson(steps), audit=FixedAudit(1))
        given[f"{series} class"] = chain, smoothed("zero")
    for network in NETWORKS:
        for k in STEPS:
            given[f"anchored-{network} class{k}"] = independent, smoothed(network, Picard(k))
    return given


def measure_seconds(data: CIFAR10, store: Path, repeats: int = 2) -> None:
    """Store the missing CPU seconds per sample by kind of prediction: means of two images, medians of repeats."""
    torch.set_num_threads(1)
    images = data.load_split("test")
    indices = [int(path.stem) for path in sorted((store / REFERENCE).glob("?????.npz"))][::50]
    known = json.loads((store / TIMES).read_text()) if (store / TIMES).exists() else {}
    missing = {name: each for name, each in procedures().items() if name not in known}
    engines = {name: sampling.engine(g, torch.zeros(3, 32, 32)) for name, (sampling, g) in missing.items()}
    laps: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, (sampling, g) in missing.items():
            clock = Clock("cpu")
            for index in indices:
                sampling.group_votes(g, engines[name], to_unit_interval(images[index][0])[None], [Stream(SEED, index)])
            laps.setdefault(name, []).append(clock.lap() / len(indices) / (sampling.n0 + sampling.n))
    known |= {name: statistics.median(each) for name, each in laps.items()}
    (store / TIMES).write_text(json.dumps(known, indent=1))


def points(store: Store, labels: list[int], n: int) -> list[Point]:
    """Return every configuration with n samples of nearly all images of the reference, on the images of all of them."""
    measured = {series: set(store.images(series, n)) for series in (*SERIES, *CHAINS)}
    enough = 0.9 * len(measured[REFERENCE])
    common = set.intersection(*(images for images in measured.values() if len(images) >= enough))
    images = sorted(common)
    times = store.directory / TIMES
    seconds = json.loads(times.read_text()) if times.exists() else defaultdict(lambda: math.nan)
    found: dict[str, Point] = {}
    certificates: dict[str, list[Certificate]] = {}
    for each in configurations(n):
        if not common <= measured[each.series]:
            continue
        costs = Seconds(seconds[f"{each.series} {each.column}"], seconds[f"{REFERENCE} class"])
        votes = [vote(each, store, index, labels[index], n, costs) for index in images]
        certificates[each.name] = [each.rule.certify(one) for one in votes]
        evaluations = sum(one.nfe_fast + one.nfe_audit for one in votes) / len(votes)
        found[each.name] = Point(
            each,
            summarize(certificates[each.name], votes, RADII),
            compare(certificates[REFERENCE], certificates[each.name], RADII),
            sum(one.n0 + one.n for one in votes) / len(votes),
            evaluations,
        )
    return list(found.values())


def table(found: list[Point]) -> str:
    """Return the rows of a fixed n, and those with an audit."""
    heads = [f"% at {radius:g}" for radius in RADII]
    timed = not math.isnan(found[0].summary.seconds_per_image or math.nan)
    heads += ["ACR", "difference", "95 % interval", "abstain %", "NFE/image", *(["s/image"] if timed else [])]
    lines = [f"| run | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for point in found:
        if point.configuration.kind not in ("fixed", "audit"):
            continue
        summary, (low, high) = point.summary, point.comparison.interval
        cells = [f"{100 * accuracy:.0f}" for accuracy in summary.certified_accuracy]
        cells += [f"{summary.average_certified_radius:.3f}", f"{point.comparison.acr_difference:+.3f}"]
        cells += [f"{low:+.3f} to {high:+.3f}", f"{100 * summary.abstention_rate:.0f}"]
        cells += [f"{point.evaluations:.0f}", *([f"{summary.seconds_per_image:.1f}"] if timed else [])]
        name = point.configuration.name + ("" if summary.sound else " (UNSOUND)")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_sizes(found: list[Point]) -> str:
    """Return, for each classifier and choice of n, samples and ACR in % of those of a fixed n.

    Where a radius is asked for, images certified there take the place of the ACR.
    """
    by_name = {point.configuration.name: point for point in found}
    lines = [f"| samples % / ACR % | {' | '.join(SIZES)} |", f"| --- |{' ---: |' * len(SIZES)}"]
    for point in found:
        if point.configuration.kind != "fixed" or "two-sided" in point.configuration.name:
            continue
        name, whole = point.configuration.name, point.summary.average_certified_radius or float("nan")
        cells = []
        for text, rule in SIZES.items():
            each = by_name[f"{name}, {text}"]
            kept = (each.summary.average_certified_radius or 0.0) / whole
            if rule.radius_in_sigma is not None:
                place = RADII.index(SIGMA * rule.radius_in_sigma)
                kept = each.summary.certified_accuracy[place] / max(point.summary.certified_accuracy[place], 1e-9)
            cells.append(f"{100 * each.samples / point.samples:.0f} / {100 * kept:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_frontier(found: list[Point], path: Path) -> None:
    """Draw ACR over evaluations per image, a line for each family; hollow: a variant, crosses: unsound.

    Of the escalations only the smallest is drawn.
    """
    families: dict[str, list[tuple[float, float]]] = {}
    for point in found:
        more = any(f"escalated {share} %" in point.configuration.name for share in (10, 20))
        if point.configuration.kind in ("fixed", "audit") and not more:
            place = point.evaluations, point.summary.average_certified_radius
            families.setdefault(_family(point.configuration), []).append(place)
    _, axes = new_axes("cell evaluations per image", "ACR")
    for name, line in families.items():
        color, marker = next(look for kind, look in _LOOKS.items() if name.startswith(kind))
        plain = not any(word in name for word in ("unsound", "exact", "two-sided"))
        style = {"linestyle": "solid" if plain else "dashed", "fillstyle": "full" if plain else "none"}
        axes.plot(*zip(*sorted(line), strict=True), color=color, marker=marker, label=name, **style, **_THIN)
    finish(axes, path, bottom=0.6)


def draw_sizes(found: list[Point], path: Path) -> None:
    """Draw ACR over evaluations per image: a color for each classifier, a marker for each choice of n."""
    _, axes = new_axes("cell evaluations per image", "ACR")
    colors = dict(zip(("standard-30A", "anchored-2N-learned", "anchored-3N-learned"), COLORS, strict=False))
    rules = dict(zip(("fixed n", *SIZES), MARKERS, strict=False))
    for name, color in colors.items():
        axes.plot([], [], color=color, label=name)
    for rule, marker in rules.items():
        axes.plot([], [], marker, color="black", fillstyle="none", label=rule, **_THIN)
    for point in found:
        name, _, rule = point.configuration.name.partition(", ")
        if name in colors and (rule or "fixed n") in rules and point.configuration.kind != "audit":
            place = [point.evaluations], [point.summary.average_certified_radius]
            axes.plot(*place, rules[rule or "fixed n"], color=colors[name], **_THIN)
    finish(axes, path, bottom=0.85)


def finish(axes: Any, path: Path, bottom: float) -> None:
    """Scale the axes, y from a share of the largest ACR on, and write the figure."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(LogLocator(subs=()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    largest = max(max(line.get_ydata(), default=0.0) for line in axes.get_lines())
    axes.set_ylim(bottom * largest, 1.02 * largest)
    handles, names = axes.get_legend_handles_labels()
    axes.figure.set_size_inches(5.2, 3.9)
    axes.figure.legend(handles, names, loc="outside upper left", ncols=3, frameon=False, fontsize=5.5)
    save_figure(axes.figure, path)


_THIN: dict[str, Any] = {"markersize": 4, "linewidth": 0.8}
_LOOKS = {
    "standard": ("#000000", "o"),
    "SRS-1A published": ("#E69F00", "x"),
    "SRS-3A published": ("#D55E00", "x"),
    "SRS-1A": ("#E69F00", "<"),
    "SRS-3A": ("#D55E00", ">"),
    "anchored zero": ("#56B4E9", "s"),
    "anchored mean": ("#009E73", "^"),
    "anchored learned": ("#CC79A7", "D"),
}


def _family(configuration: Configuration) -> str:
    name, _, rule = configuration.name.partition(", ")
    if configuration.kind == "audit":
        parts = [part for part in rule.split(", ") if not part.endswith(" %") or part.startswith("escalated")]
        return f"{name} {' '.join(parts)}{' (unsound)' if rule == 'published' else ''}"
    kind = f"anchored {name.split('-', 2)[2]}" if name.startswith("anchored") else "standard"
    return f"{kind} two-sided" if rule == "two-sided" else kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="root of CIFAR-10, as data.root")
    parser.add_argument("--store", type=Path, required=True, help="directory of the predictions")
    parser.add_argument("--n", type=int, default=10_000, help="estimation samples (%(default)s)")
    parser.add_argument("--to", type=Path, help="directory of the figures; none without")
    parser.add_argument("--time", action="store_true", help="measure the seconds per sample first")
    options = parser.parse_args()
    data = CIFAR10(root=options.data)
    if options.time:
        measure_seconds(data, options.store)
    split = data.load_split("test")
    labels = [int(split[i][1]) for i in range(len(split))]
    found = points(Store(options.store), labels, options.n)
    print(f"{found[0].summary.examples} images, n = {options.n}", table(found), table_of_sizes(found), sep="\n\n")
    if options.to:
        options.to.mkdir(parents=True, exist_ok=True)
        draw_frontier(found, options.to / f"frontier_{options.n}.png")
        draw_sizes(found, options.to / f"sizes_{options.n}.png")


if __name__ == "__main__":
    main()
