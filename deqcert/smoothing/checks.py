"""What must hold before a classifier votes: its logits are a function of one image, and so are those of its twin.

A certificate is about a function of one image. None of these checks can prove that a classifier is one; they find what
modules do by mistake, on a few noisy samples of the kind that will vote.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from deqcert.errors import DataError, require
from deqcert.models import DEQ, Start
from deqcert.smoothing.base_classifier import SolvedClassifier
from deqcert.solvers import Solver

SAMPLES = 8  # noisy samples to check on
_STEPS = 5  # enough to go through every part; more would magnify rounding

# Logit errors that may still be rounding: of float32 to TF32, or of so many units of the last place of the largest.
_ROUNDING, _ROUNDING_UNITS = 2e-2, 16


def demand_unit_interval(images: Tensor) -> None:
    """Raise :class:`DataError` unless images, of any shape, are in the unit of sigma: floats in [0, 1]."""
    if not images.is_floating_point():
        raise DataError(f"image: must hold floats in [0, 1], not {images.dtype}; divide integers in [0, 255] by 255")
    inside = (images >= 0) & (images <= 1)  # false for NaN too
    if not bool(inside.all()):
        raise DataError(f"image: must hold floats in [0, 1], but a pixel is {images[~inside][0].item()!r}")


def demand_evaluation_mode(classifier: nn.Module) -> None:
    """Raise :class:`SettingError` unless every part of ``classifier`` is in evaluation mode."""
    for name, module in classifier.named_modules():
        require(not module.training, "classifier", name or "classifier", "must be in evaluation mode: call .eval()")


@torch.no_grad()
def checked(base: nn.Module, samples: Tensor, sigma: float) -> nn.Module:
    """Return the classifier that is to vote: f, or its faster form if that computes the same.

    Args:
        base: Base classifier f; of a DEQ, the first steps of its solver are what is compared.
        samples: Noisy samples, shape (B, C, H, W).
        sigma: Their noise; a warning says so if the anchored start was computed under another one.

    Raises:
        SettingError: The classifier is in training mode or for other channels, its logits of a sample depend on the
            rest of the batch, or its parts hand something to each other through attributes, which threads would mix up.
    """
    demand_evaluation_mode(base)
    network = base.network if isinstance(base, SolvedClassifier) else base
    # A gray image would pass through a network for color by broadcasting.
    channels = getattr(network, "image_channels", samples.shape[1])
    allowed = f"must have {channels} channels, as the classifier"
    require(samples.shape[1] == channels, "image", tuple(samples.shape[1:]), allowed)
    with torch.autocast(samples.device.type, enabled=False):
        if not isinstance(base, SolvedClassifier):
            _demand_rows_apart(base, base, samples)
            return base
        solver, start, computed = base.solver, base.start, base.network.start_sigma
        if start == "anchor" and computed not in (None, sigma):
            what = f"The {base.network.start_kind} start was computed at sigma = {computed}"
            warnings.warn(f"{what}, but is certified at sigma = {sigma}.", stacklevel=4)
        probe = dataclasses.replace(solver, max_steps=min(_STEPS, solver.max_steps), tolerance=0.0, iterate="last")
        network = _faster(base.network, samples, probe, start)
        _demand_rows_apart(network, SolvedClassifier(network, probe, start), samples)
        _demand_calls_apart(network, samples, probe, start)
        return SolvedClassifier(network, solver, start)


def logit_error(expected: Tensor, given: Tensor) -> float:
    """Return how far ``given`` logits, shape (B, classes), are from ``expected`` ones in what decides predictions.

    The distance of each class from the top one is what counts, not the logits themselves; an error in it is relative to
    that distance plus the mean distance of the runner-up. A prediction that differs is an error of 1/2 or more, unless
    the runner-up was nearer than on average. What the last places of the largest logit can hold is no error; another
    shape, or other rows that are not finite, is an infinite one.
    """
    finite = expected.isfinite().all(dim=1)
    if given.shape != expected.shape or not torch.equal(finite, given.isfinite().all(dim=1)):
        return math.inf
    if not finite.any():
        return 0.0
    rounding = _ROUNDING_UNITS * torch.finfo(expected.dtype).eps * float(expected[finite].abs().max())
    expected, given = expected[finite].double(), given[finite].double()
    top = expected.argmax(dim=1, keepdim=True)
    distances, others = (logits.gather(1, top) - logits for logits in (expected, given))
    runner_up = distances.sort(dim=1).values[:, :2][:, -1].mean()
    error = ((others - distances).abs() - rounding).clamp_min(0)
    return float((error / (distances + runner_up).clamp_min(torch.finfo(torch.float64).tiny)).max())


def _faster(network: DEQ, samples: Tensor, solver: Solver, start: Start) -> DEQ:
    """Return the faster form of a network if it is one: nobody should have to trust that it computes the same."""
    twin = network.for_inference()
    if twin is network:
        return network
    error = logit_error(*(each.solve(samples, solver, start)[0] for each in (network, twin)))
    if error <= _ROUNDING:
        return twin
    warnings.warn(
        f"{type(network).__name__}.for_inference() changes differences of logits by {error:.1e} of what decides a "
        "prediction: not used. Certification is slower without it.",
        stacklevel=2,
    )
    return network


def _demand_rows_apart(network: nn.Module, classifier: nn.Module, samples: Tensor) -> None:
    """Refuse a classifier whose logits of a sample depend on the samples beside it, or on random numbers."""
    alone = torch.cat([classifier(sample[None]) for sample in samples])
    allowed = (
        "must give a noisy sample the same logits alone and in a batch: a certificate is about a function of one image "
        "(no batch statistics, no random numbers)"
    )
    require(logit_error(classifier(samples), alone) <= _ROUNDING, "classifier", type(network).__name__, allowed)


def _demand_calls_apart(network: DEQ, samples: Tensor, solver: Solver, start: Start) -> None:
    """Refuse a network whose parts hand something to each other through attributes, by a solve between any two."""

    def disturbed(returned: Any) -> Any:
        network.solve(samples.flip(0), solver, start)
        return returned

    injection = disturbed(network.inject(samples))
    state = disturbed(network.start_state(injection, start))
    given = network.head(solver.solve(lambda z: disturbed(network.cell(z, injection)), state).value)
    allowed = (
        "must not change its logits when another batch is solved meanwhile, as threads do: inject, initial_state, cell "
        "and head may not hand anything to each other through self; what they need, inject returns"
    )
    expected = network.solve(samples, solver, start)[0]
    require(logit_error(expected, given) <= _ROUNDING, "classifier", type(network).__name__, allowed)
