"""Summaries of runs that were never made."""

from __future__ import annotations

from deqcert.runs import Summary


def summary_of(radii=(0.0, 0.25), accuracy=0.67, sound=True, costs=True, acr=0.538):
    """A summary whose accuracies fall with the position of the radius."""
    return Summary(
        examples=500,
        radii=tuple(radii),
        certified_accuracy=tuple(accuracy / (1 + i) for i in range(len(radii))),
        clean_accuracy=accuracy,
        average_certified_radius=acr,
        abstention_rate=0.123,
        nfe_fast=3.05 if costs else None,
        nfe_audit=12.41 if costs else None,
        nfe_total=15.46 if costs else None,
        mismatch_rate=0.01,
        mean_residual=1e-3,
        seconds_per_image=12.894,
        sound=sound,
    )
