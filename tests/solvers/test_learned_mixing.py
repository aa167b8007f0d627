"""Learned mixing by a mixer with random weights: what must hold whatever it has learned."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deqcert.errors import SettingError
from deqcert.models.mixing import LearnedMixer
from deqcert.solvers import Anderson, Broyden, LearnedMixing, Picard
from deqcert.solvers.learned import unrolled

STEPS, BATCH, SIZE = 5, 16, 7


def mixer(scale: float = 0.3) -> LearnedMixer:
    generator = torch.Generator().manual_seed(0)
    made = LearnedMixer(STEPS)
    for predictor in made.predictors:
        for parameter in predictor[-1].parameters():
            parameter.data = scale * torch.randn(parameter.shape, generator=generator) / 4
    return made


class Rows:
    """z = tanh(A z) + b, row i with its own A and b."""

    def __init__(self, places: Tensor | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.places = torch.arange(BATCH) if places is None else places
        matrix = torch.randn(BATCH, SIZE, SIZE, generator=generator, dtype=torch.float64)
        rates = torch.linspace(0.01, 0.9, BATCH, dtype=torch.float64)
        self.matrix = (matrix * (rates / torch.linalg.matrix_norm(matrix, 2)).view(-1, 1, 1))[self.places]
        self.offset = torch.randn(BATCH, SIZE, generator=generator, dtype=torch.float64)[self.places]

    def __call__(self, z: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self.matrix, z).tanh() + self.offset


START = torch.zeros(BATCH, SIZE, dtype=torch.float64)


@pytest.mark.parametrize("k", range(1, STEPS + 1))
def test_it_begins_exactly_as_the_plain_iteration(k):
    expected = Picard(max_steps=k).solve(Rows(), START)
    solution = LearnedMixing(max_steps=k).bound_to(LearnedMixer(STEPS)).solve(Rows(), START)
    assert torch.equal(solution.value, expected.value)
    assert torch.equal(solution.residual, expected.residual)
    assert solution.evaluations == BATCH * k


def test_a_row_does_not_depend_on_its_batch():
    solver = LearnedMixing(max_steps=STEPS).bound_to(mixer())
    batch = solver.solve(Rows(), START)
    assert not torch.allclose(batch.value, Picard(max_steps=STEPS).solve(Rows(), START).value, rtol=1e-3)
    for places in ([3], [9, 0, 4], list(range(BATCH))[::-1]):
        part = solver.solve(Rows(torch.tensor(places)), START[places])
        # The mixer computes in single precision.
        torch.testing.assert_close(part.value, batch.value[places], rtol=1e-5, atol=1e-6)
        assert torch.equal(part.steps, batch.steps[places])


@pytest.mark.parametrize("iterate", ["last", "best"])
def test_rows_that_have_stopped_may_leave(iterate):
    solver = LearnedMixing(max_steps=STEPS, tolerance=0.1, iterate=iterate).bound_to(mixer(0.03))
    expected = solver.solve(Rows(), START)
    solution = solver.solve(Rows(), START, Rows)
    assert solution.evaluations < expected.evaluations
    assert len(set(expected.steps.tolist())) > 2
    torch.testing.assert_close(solution.value, expected.value, rtol=1e-5, atol=1e-6)
    assert torch.equal(solution.steps, expected.steps)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_reported_and_harms_no_other(poison):
    solver = LearnedMixing(max_steps=STEPS).bound_to(mixer())
    alone = solver.solve(Rows(), START)
    calls = 0

    def function(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        image = Rows()(z)
        if calls >= 2:
            image[3, 0] = poison
        return image

    solution = solver.solve(function, START)
    others = [i for i in range(BATCH) if i != 3]
    assert solution.diverged.nonzero().flatten().tolist() == [3]
    assert solution.steps[3] == 2
    assert solution.residual[3] == math.inf
    torch.testing.assert_close(solution.value[others], alone.value[others], rtol=1e-5, atol=1e-6)


def test_an_exact_fixed_point_stays():
    root = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    solution = LearnedMixing(max_steps=3).bound_to(mixer()).solve(lambda z: root + (z - root) / 4, root)
    assert solution.converged.all()
    assert torch.equal(solution.value, root)


def test_the_unrolled_iterates_are_those_of_the_solver_and_have_a_graph():
    made = mixer()
    iterates = list(unrolled(Rows(), START, made))
    assert len(iterates) == STEPS
    for k, iterate in enumerate(iterates, start=1):
        value = LearnedMixing(max_steps=k).bound_to(made).solve(Rows(), START).value
        torch.testing.assert_close(iterate.detach(), value, rtol=1e-5, atol=1e-6)
    iterates[-1].square().sum().backward()
    gradients = [parameter.grad for parameter in made.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_gradients_stay_finite_beside_rows_that_are_not():
    made = mixer()

    def function(z: Tensor) -> Tensor:
        return torch.cat([z[:1] * 0, torch.full_like(z[1:2], math.inf), Rows()(z)[2:]])

    for iterate in unrolled(function, START, made):
        iterate[2:].square().sum().backward(retain_graph=True)
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


def test_it_needs_a_mixer_for_all_its_steps():
    with pytest.raises(SettingError, match=r"^solver = 'LearnedMixing': needs a network with learned mixing"):
        LearnedMixing().bound_to(None)
    with pytest.raises(SettingError, match=r"^solver\.max_steps = 6: must be at most 5, the mixing_steps"):
        LearnedMixing(max_steps=6).bound_to(mixer())
    with pytest.raises(SettingError, match=r"^solver = 'LearnedMixing': can only be used where a network"):
        LearnedMixing().solve(Rows(), START)


def test_binding_keeps_the_settings_and_leaves_other_solvers_alone():
    made = mixer()
    settings = LearnedMixing(max_steps=2, tolerance=0.1, stop="absolute", iterate="best")
    bound = settings.bound_to(made)
    assert bound == replace(bound, max_steps=2)
    assert (bound.tolerance, bound.stop, bound.iterate) == (0.1, "absolute", "best")
    for solver in (Picard(), Anderson(), Broyden()):
        assert solver.bound_to(made) is solver.bound_to(None) is solver
