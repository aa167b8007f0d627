"""The distribution of p_A over images, which depends on neither n nor alpha.

ACR depends on the certification budget and is dominated by easy images; Sun et al., "Average certified radius is a
poor metric for randomized smoothing" (arXiv 2410.06895), recommend this distribution instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deqcert.errors import DataError
from deqcert.report.figures.style import add_legend, line_looks, new_axes, notice_repeats
from deqcert.report.runs import ReportedRun
from deqcert.statistics import Votes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def probability_of_label(votes: Votes) -> float:
    """Estimate the probability of the true class under noise.

    Without an audit this is the fraction of noisy samples of that class. Cheap predictions of the selected class count
    only as far as the audit confirmed them: N_A / n · (1 − m / K). An estimate, not a bound; slightly biased if votes
    decided where sampling stopped.
    """
    fraction = votes.estimation[votes.label] / votes.n
    if votes.audited and votes.label == votes.selected:
        fraction *= 1 - votes.mismatches / votes.audited
    return fraction


def plot_probabilities(runs: Sequence[ReportedRun]) -> Figure:
    """Draw, over p, the fraction of images whose true class has at least the probability p under noise.

    Args:
        runs: Runs; those whose votes are not known are left out. Audit rules make no difference here.

    Raises:
        DataError: No run has votes.
    """
    figure, axes = new_axes("p", "fraction of images with $\\hat{p}_{y} \\geq p$")
    at = np.linspace(0.0, 1.0, 1001)
    known = [run for run in runs if run.votes is not None]
    if not known:
        raise DataError("no run has votes to estimate probabilities from")
    looks = [look for _, look in zip(known, line_looks(), strict=False)]
    notice_repeats(looks)
    for run, (colour, style) in zip(known, looks, strict=True):
        probabilities = np.array([probability_of_label(vote) for vote in run.votes or ()])
        axes.plot(at, (probabilities[:, None] >= at).mean(axis=0), color=colour, linestyle=style, label=run.name)
    axes.axvline(0.5, color="0.6", linewidth=0.8)
    axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0))
    add_legend(figure, axes, "lower left")
    return figure
