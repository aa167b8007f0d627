"""What a classifier must pass before it votes: its logits are a function of one image, and so are those of its twin.

A certificate is about a function of one image. None of these checks can prove that a classifier is one; they find what
modules do by mistake, on a few noisy samples of the kind that will vote.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from deqcert.errors import SettingError, require
from deqcert.models import DEQ
from deqcert.solvers import Solver

SAMPLES = 8
"""Noisy samples to check on."""

_STEPS = 5  # enough to go through every part; more would magnify rounding

# Logit errors that may still be rounding: of float32 to TF32, or of so many units of the last place of the largest.
_ROUNDING, _ROUNDING_UNITS = 2e-2, 16


def demand_evaluation_mode(classifier: nn.Module) -> None:
    """Raise :class:`SettingError` unless every part of ``classifier`` is in evaluation mode."""
    training = [name or "classifier" for name, module in classifier.named_modules() if module.training]
    if training:
        raise SettingError("classifier", training[0], "must be in evaluation mode: call .eval() first")


@torch.no_grad()
def checked(classifier: nn.Module, samples: Tensor, solver: Solver, anchored: bool) -> nn.Module:
    """Return the network that is to vote: the classifier, or its faster form if that computes the same.

    Args:
        classifier: Base classifier.
        samples: Noisy samples, shape (B, C, H, W).
        solver: Solver that makes a DEQ the base classifier; its first steps are what is compared.
        anchored: Whether it starts from the network's anchor.

    Raises:
        SettingError: The classifier is in training mode, its logits of a sample depend on the rest of the batch, or
            its parts hand something to each other through attributes, which threads would mix up.
    """
    demand_evaluation_mode(classifier)
    probe = dataclasses.replace(solver, max_steps=min(_STEPS, solver.max_steps), tolerance=0.0, iterate="last")

    def logits(network: nn.Module, x: Tensor) -> Tensor:
        result: Tensor = network.solve(x, probe, anchored=anchored)[0] if isinstance(network, DEQ) else network(x)
        return result

    with torch.autocast(samples.device.type, enabled=False):
        network = _faster(classifier, samples, logits) if isinstance(classifier, DEQ) else classifier
        _demand_rows_apart(network, samples, logits)
        if isinstance(network, DEQ):
            _demand_calls_apart(network, samples, probe, anchored)
    return network


def logit_error(expected: Tensor, given: Tensor) -> float:
    """Return how far ``given`` logits are from ``expected`` ones in what decides labels.

    The distance of each class from the top one is what counts, not the logits themselves; an error in it is relative to
    that distance plus the mean distance of the runner-up. A label that differs is an error of 1/2 or more, unless the
    runner-up was nearer than on average. What the last places of the largest logit can hold is no error.

    Args:
        expected: Shape (B, classes).
        given: The same; infinite error if it is of another shape or not finite in other rows.
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


_Logits = Callable[[nn.Module, Tensor], Tensor]


def _faster(network: DEQ, samples: Tensor, logits: _Logits) -> DEQ:
    """Return the faster form of a network if it is one: nobody should have to trust that it computes the same."""
    twin = network.for_inference()
    if twin is network:
        return network
    error = logit_error(logits(network, samples), logits(twin, samples))
    if error <= _ROUNDING:
        return twin
    warnings.warn(
        f"{type(network).__name__}.for_inference() changes differences of logits by {error:.1e} of what decides a "
        "label: not used. Certification is slower without it.",
        stacklevel=2,
    )
    return network


def _demand_rows_apart(classifier: nn.Module, samples: Tensor, logits: _Logits) -> None:
    """Refuse a classifier whose logits of a sample depend on the samples beside it, or on random numbers."""
    alone = torch.cat([logits(classifier, sample[None]) for sample in samples])
    require(
        logit_error(logits(classifier, samples), alone) <= _ROUNDING,
        "classifier",
        type(classifier).__name__,
        "must give a noisy sample the same logits alone and in a batch: a certificate is about a function of one image "
        "(no batch statistics, no random numbers)",
    )


def _demand_calls_apart(network: DEQ, samples: Tensor, solver: Solver, anchored: bool) -> None:
    """Refuse a network whose parts hand something to each other through attributes, by a solve between any two."""

    def undisturbed() -> None:
        pass

    def disturb() -> None:
        _logits_by_parts(network, samples.flip(0), solver, anchored, undisturbed)

    expected, given = (_logits_by_parts(network, samples, solver, anchored, each) for each in (undisturbed, disturb))
    require(
        logit_error(expected, given) <= _ROUNDING,
        "classifier",
        type(network).__name__,
        "must not change its logits when another batch is solved meanwhile, as threads do: inject, initial_state, cell "
        "and head may not hand anything to each other through self; what they need, inject returns",
    )


def _logits_by_parts(network: DEQ, x: Tensor, solver: Solver, anchored: bool, between: Callable[[], None]) -> Tensor:
    """Solve and classify as :meth:`DEQ.solve` does, and call ``between`` between any two calls of the network."""
    injection = network.inject(x)
    between()
    start = network.anchor(injection) if anchored else network.initial_state(injection)
    between()

    def function(z: Tensor) -> Tensor:
        image = network.cell(z, injection)
        between()
        return image

    return network.head(solver.solve(function, start).value)
