"""Rows that have stopped leave the batch, and buffers are used again: nothing a solution may depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deqcert.solvers import Anderson, Broyden, Function, Picard, Solver, Workspace
from deqcert.solvers.rows import RunningRows, inner_products, weighted_sum

BATCH, SIZE = 32, 6
SOLVERS = [
    solver(max_steps=60, tolerance=1e-6, iterate=iterate)
    for solver in (Picard, Anderson, Broyden)
    for iterate in ("last", "best")
]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: f"{type(s).__name__}-{s.iterate}")


class Rows:
    """z = tanh(A z) + b, row i with its own contraction, so that rows stop at different steps; row 3 is NaN."""

    def __init__(self, places: Tensor | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(BATCH, SIZE, SIZE, generator=generator, dtype=torch.float64)
        rates = torch.linspace(0.02, 0.95, BATCH, dtype=torch.float64)[torch.randperm(BATCH, generator=generator)]
        self.matrix = matrix * (rates / torch.linalg.matrix_norm(matrix, 2)).view(-1, 1, 1)
        self.offset = torch.randn(BATCH, SIZE, generator=generator, dtype=torch.float64)
        self.offset[3] = torch.nan
        self.sizes: list[int] = []
        self.places = torch.arange(BATCH) if places is None else places

    def __call__(self, z: Tensor) -> Tensor:
        self.sizes.append(len(z))
        return torch.einsum("bij,bj->bi", self.matrix[self.places], z).tanh() + self.offset[self.places]

    def restrict(self, places: Tensor) -> Rows:
        assert len(set(places.tolist())) == len(places)
        part = Rows(places)
        part.sizes = self.sizes
        return part


START = torch.zeros(BATCH, SIZE, dtype=torch.float64)


@each_solver
def test_solutions_do_not_depend_on_rows_leaving(solver: Solver) -> None:
    alone, shrinking = Rows(), Rows()
    expected = solver.solve(alone, START)
    solution = solver.solve(shrinking, START, shrinking.restrict)
    assert len(set(expected.steps.tolist())) > 4
    assert expected.diverged.nonzero().flatten().tolist() == [3]
    for field in ("steps", "converged", "diverged"):
        assert torch.equal(getattr(solution, field), getattr(expected, field)), field
    finite = expected.value.isfinite()
    assert torch.equal(solution.value.isfinite(), finite)
    torch.testing.assert_close(solution.value[finite], expected.value[finite], rtol=0, atol=1e-12)
    torch.testing.assert_close(solution.residual, expected.residual, rtol=1e-6, atol=1e-14)


@each_solver
def test_the_batch_halves_as_soon_as_half_of_it_has_stopped(solver: Solver) -> None:
    function = Rows()
    solution = solver.solve(function, START, function.restrict)
    assert solution.evaluations == sum(function.sizes)
    assert function.sizes == sorted(function.sizes, reverse=True)
    assert set(function.sizes) == {32, 16, 8, 4}
    steps = solution.steps if solver.iterate == "last" else replace(solver, iterate="last").solve(Rows(), START).steps
    for calls, size in enumerate(function.sizes):
        running = int((steps > calls).sum())
        assert running <= size
        assert size == 32 or size < 2 * max(running, 4) or calls == 0 or function.sizes[calls - 1] > size


def test_small_batches_stay_whole() -> None:
    function = Rows(torch.arange(4, 11))
    solver = Anderson(max_steps=60, tolerance=1e-6)
    solver.solve(function, START[4:11], lambda places: pytest.fail("no rows should leave"))
    assert set(function.sizes) == {7}


def test_without_a_tolerance_no_row_leaves() -> None:
    Picard(max_steps=80).solve(Rows(), START, lambda places: pytest.fail("no rows should leave"))


@each_solver
def test_what_a_workspace_holds_does_not_matter(solver: Solver) -> None:
    expected = solver.solve(Rows(), START)
    workspace = Workspace()
    for _ in range(3):
        solution = solver.solve(Rows(), START, workspace=workspace)
        assert torch.equal(solution.steps, expected.steps)
        assert torch.equal(solution.value.nan_to_num(7.0), expected.value.nan_to_num(7.0))
        if solver.history:
            workspace._kept.fill_(torch.nan)
    # Other shapes and precisions get room of their own.
    part = solver.solve(Rows(torch.arange(4, 9)), START[4:9], workspace=workspace)
    assert torch.equal(part.steps, expected.steps[4:9])


def test_the_value_of_a_solve_survives_the_next_one() -> None:
    workspace, solver = Workspace(), Anderson(max_steps=5)
    value = solver.solve(Rows(), START, workspace=workspace).value
    before = value.clone()
    solver.solve(lambda z: z + 1, START, workspace=workspace)
    assert torch.equal(value.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("count", [0, 1, 5])
def test_row_algebra(count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    vectors, target = torch.randn(count, 4, 9, generator=generator), torch.randn(4, 9, generator=generator)
    weights = torch.randn(4, count, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(inner_products(vectors, target), torch.einsum("mbd,bd->bm", vectors, target))
    torch.testing.assert_close(weighted_sum(vectors, weights), torch.einsum("bm,mbd->bd", weights.float(), vectors))


@each_solver
def test_autocast_does_not_reach_the_algebra(solver: Solver) -> None:
    """Only F may be evaluated in a lower precision; this one is not, so neither values nor dtype may change."""
    function = Rows()
    function.matrix, function.offset = function.matrix.float(), function.offset.float()
    solver = replace(solver, tolerance=1e-4)

    def scaled(places: Tensor) -> Function:
        matrix, offset = function.matrix[places], function.offset[places]
        return lambda z: (matrix * z[:, None]).sum(dim=2).tanh() + offset  # no operation that autocast knows

    everything = torch.arange(BATCH)
    expected = solver.solve(scaled(everything), START.float(), scaled)
    with torch.autocast("cpu", torch.bfloat16):
        given = solver.solve(scaled(everything), START.float(), scaled)
    assert given.value.dtype == torch.float32
    assert torch.equal(given.steps, expected.steps)
    assert torch.equal(given.value.nan_to_num(), expected.value.nan_to_num())


@each_solver
def test_the_state_keeps_its_precision_where_images_have_a_lower_one(solver: Solver) -> None:
    solver, function = replace(solver, tolerance=1e-2), Rows()

    def rounded(places: Tensor) -> Function:
        part = function.restrict(places)
        return lambda z: part(z.double()).bfloat16()

    solution = solver.solve(rounded(torch.arange(BATCH)), START.float(), rounded)
    assert solution.value.dtype == solution.residual.dtype == torch.float32
    assert solution.converged.sum() > BATCH // 2


def test_running_rows_are_counted() -> None:
    watch = RunningRows(torch.zeros(5, 2))
    assert watch.exact
    assert watch.count(torch.tensor([True, False, True, True, False])) == 3


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for() -> None:
    running = torch.ones(1000, dtype=torch.bool, device="cuda")
    watch = RunningRows(running)
    assert not watch.exact
    counts = []
    for stopped in range(0, 1001, 100):
        running[:stopped] = False
        counts.append(watch.count(running))
        assert counts[-1] >= 1000 - stopped
    torch.cuda.synchronize()
    watch.count(running)
    torch.cuda.synchronize()
    assert watch.count(running) == 0
