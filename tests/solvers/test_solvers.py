from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_runs import shipped_network
from scipy_solves import broyden_by_scipy
from torch import Tensor

from deqcert.errors import SettingError
from deqcert.solvers import Anderson, Broyden, Picard, Solver, Workspace

SEEDS = st.integers(0, 2**32 - 1)
quickly = settings(max_examples=25, deadline=None)


class Counted:
    """Remembers every pair (X, F(X))."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, z: Tensor) -> Tensor:
        image = self.function(z)
        self.pairs.append((z.clone(), image.clone()))
        return image

    def residuals(self, stop: str) -> Tensor:
        """Shape (calls, B)."""
        rows = []
        for z, image in self.pairs:
            residual = (image - z).flatten(1).norm(dim=1)
            rows.append(residual if stop == "absolute" else residual / image.flatten(1).norm(dim=1))
        return torch.stack(rows)


class Linear:
    """z = A z + b with one A of spectral norm ``contraction`` per row."""

    def __init__(self, seed: int, batch: int, size: int, contraction: float = 0.7) -> None:
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(batch, size, size, generator=generator, dtype=torch.float64)
        self.matrix = matrix * contraction / torch.linalg.matrix_norm(matrix, 2).view(-1, 1, 1)
        self.offset = torch.randn(batch, size, generator=generator, dtype=torch.float64)
        self.start = torch.randn(batch, size, generator=generator, dtype=torch.float64)

    def __call__(self, z: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self.matrix.to(z), z) + self.offset.to(z)

    def root(self) -> Tensor:
        identity = torch.eye(self.offset.shape[1], dtype=torch.float64)
        return torch.linalg.solve(identity - self.matrix, self.offset)

    def rows(self, index: list[int]) -> Linear:
        part = object.__new__(type(self))
        part.matrix, part.offset, part.start = self.matrix[index], self.offset[index], self.start[index]
        return part


class Tanh(Linear):
    """z = tanh(A z + b): no closed form, contraction as A."""

    def __call__(self, z: Tensor) -> Tensor:
        return super().__call__(z).tanh()


SOLVERS = {
    "picard": Picard(max_steps=40),
    "picard-best": Picard(max_steps=40, iterate="best"),
    "anderson": Anderson(max_steps=40),
    "anderson-best": Anderson(max_steps=40, iterate="best"),
    "anderson-no-ridge": Anderson(max_steps=40, memory=3, ridge=0),
    "broyden": Broyden(max_steps=40),
    "broyden-last": Broyden(max_steps=40, iterate="last"),
}
each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
each_stop = pytest.mark.parametrize("stop", ["relative", "absolute"])


# Correct fixed points


@each_solver
@quickly
@given(seed=SEEDS, batch=st.integers(1, 5), size=st.integers(3, 7), contraction=st.floats(0, 0.7))
def test_linear_contractions_have_the_closed_form_solution(solver, seed, batch, size, contraction):
    problem = Linear(seed, batch, size, contraction)
    solution = replace(solver, max_steps=600, tolerance=1e-12, stop="absolute").solve(problem, problem.start)
    assert solution.converged.all()
    assert not solution.diverged.any()
    assert (solution.residual <= 1e-12).all()
    torch.testing.assert_close(solution.value, problem.root(), rtol=0, atol=1e-9)


@each_solver
@pytest.mark.parametrize("seed", range(4))
def test_tanh_agrees_with_scipy(solver, seed):
    problem = Tanh(seed, 1, 6)
    solution = replace(solver, max_steps=300, tolerance=1e-11).solve(problem, problem.start)
    assert solution.converged.all()

    def gap(z: np.ndarray) -> np.ndarray:
        row = torch.from_numpy(z)[None]
        return (problem(row) - row)[0].numpy()

    for root, options in ((scipy.optimize.anderson, {"M": 2}), (scipy.optimize.broyden1, {})):
        expected = root(gap, problem.start[0].numpy(), f_tol=1e-11, maxiter=500, **options)
        np.testing.assert_allclose(solution.value[0].numpy(), expected, rtol=0, atol=1e-9)


@each_solver
def test_scalar_cosine(solver):
    start = torch.tensor([[0.0], [1.0], [-2.0]], dtype=torch.float64)
    solution = replace(solver, max_steps=200, tolerance=1e-12).solve(torch.cos, start)
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, torch.full_like(start, 0.7390851332151607), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("solver", "tolerance"),
    [(Anderson(max_steps=6, ridge=1e-10), 1e-3), (Broyden(max_steps=12), 1e-7)],
    ids=["anderson", "broyden"],
)
def test_acceleration_solves_small_linear_problems_where_picard_runs_away(solver, tolerance):
    # ‖A‖ > 1. In 5 dimensions Anderson is GMRES, exact from 6 pairs but for its ridge; Broyden needs at most
    # 2·5 steps (Gay 1979).
    problem = Linear(3, 4, 5, contraction=1.6)
    problem.matrix = (problem.matrix + problem.matrix.mT) / 2 + 1.5 * torch.eye(5, dtype=torch.float64)
    root = problem.root()
    plain = Picard(max_steps=solver.max_steps).solve(problem, problem.start)
    assert ((plain.value - root).norm(dim=1) > 1).all()
    torch.testing.assert_close(solver.solve(problem, problem.start).value, root, rtol=0, atol=tolerance)


@each_solver
def test_states_of_any_shape(solver):
    problem = Tanh(0, 3, 12)
    flat = solver.solve(problem, problem.start)
    shaped = solver.solve(lambda z: problem(z.reshape(3, 12)).reshape(3, 3, 2, 2), problem.start.reshape(3, 3, 2, 2))
    assert shaped.value.shape == (3, 3, 2, 2)
    assert torch.equal(shaped.value.flatten(1), flat.value)
    assert torch.equal(shaped.residual, flat.residual)


@each_solver
def test_start_is_left_alone_and_no_graph_is_built(solver):
    problem = Tanh(0, 2, 4)
    start = problem.start.clone().requires_grad_()
    solution = solver.solve(problem, start)
    assert torch.equal(start.detach(), problem.start)
    assert not solution.value.requires_grad


# The published iterates


def published_anderson(
    function: Callable[[np.ndarray], np.ndarray], start: np.ndarray, k: int, ridge: float, memory: int = 6
) -> np.ndarray:
    """X_k of the public code for one row, from its bordered system and with nothing clever."""
    points, images = [start], [function(start)]
    for step in range(1, k + 1):
        if step == 1:
            new = images[0]
        else:
            n = min(step, memory)
            gaps = np.stack(images[-n:]) - np.stack(points[-n:])
            bordered = np.zeros((n + 1, n + 1))
            bordered[0, 1:] = bordered[1:, 0] = 1
            bordered[1:, 1:] = gaps @ gaps.T + ridge * np.eye(n)
            right = np.zeros(n + 1)
            right[0] = 1
            new = np.linalg.solve(bordered, right)[1:] @ np.stack(images[-n:])
        if step == k:
            return new
        points.append(new)
        images.append(function(new))
    raise AssertionError


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 6, 7, 8, 14])
@pytest.mark.parametrize("ridge", [1e-4, 1.0])
def test_anderson_returns_the_published_iterate_at_k_evaluations(k, ridge, dtype):
    problem = Tanh(1, 4, 9, contraction=2.5)
    function = Counted(problem)
    solution = Anderson(max_steps=k, ridge=ridge).solve(function, problem.start.to(dtype))
    assert len(function.pairs) == k
    assert solution.steps.tolist() == [k] * 4
    assert solution.evaluations == 4 * k
    for row in range(4):
        calls = Counted(problem.rows([row]))
        expected = published_anderson(
            lambda z, calls=calls: calls(torch.from_numpy(z)[None])[0].numpy(),
            problem.start[row].numpy(),
            k,
            ridge,
        )
        assert len(calls.pairs) == k
        tolerance = 1e-8 if dtype == torch.float64 else 2e-2
        np.testing.assert_allclose(solution.value[row].double().numpy(), expected, rtol=0, atol=tolerance)


def published_broyden(function: Callable[[np.ndarray], np.ndarray], start: np.ndarray, k: int) -> np.ndarray:
    """X_k from the Jacobian itself, updated as in Broyden 1965 and solved with; never its inverse."""
    jacobian = -np.eye(len(start))
    point = start
    gap = function(point) - point
    for step in range(1, k + 1):
        move = np.linalg.solve(jacobian, -gap)
        point = point + move
        if step == k:
            break
        new_gap = function(point) - point
        jacobian = jacobian + np.outer(new_gap - gap - jacobian @ move, move) / (move @ move)
        gap = new_gap
    return point


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_broyden_returns_the_textbook_iterate_at_k_evaluations(k):
    problem = Tanh(2, 4, 9, contraction=2.5)
    function = Counted(problem)
    solution = Broyden(max_steps=k, iterate="last").solve(function, problem.start)
    assert len(function.pairs) == k
    for row in range(4):
        one = problem.rows([row])
        expected = published_broyden(
            lambda z, one=one: one(torch.from_numpy(z)[None])[0].numpy(), problem.start[row].numpy(), k
        )
        np.testing.assert_allclose(solution.value[row].numpy(), expected, rtol=1e-8, atol=1e-8)


def explicit_broyden(gaps: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """Return the sum of all moves for the given values of G, from the explicit inverse, and where it began anew."""
    inverse, total, anew = -np.eye(len(gaps[0])), np.zeros(len(gaps[0])), []
    move = gap = None
    for number, new_gap in enumerate(gaps):
        if move is not None:
            change = new_gap - gap
            denominator = move @ inverse @ change
            if abs(denominator) > 1e-12 * (move @ move):
                inverse = inverse + np.outer(move - inverse @ change, move @ inverse) / denominator
            else:
                inverse, anew = -np.eye(len(gap)), [*anew, number]
        move, gap = -inverse @ new_gap, new_gap
        total = total + move
    return total, anew


def test_a_row_of_broyden_begins_anew_by_itself():
    generator = np.random.default_rng(5)
    gaps = generator.normal(size=(9, 3, 12))
    gaps[3, 1] = 0.0  # after a fixed point that is none any more: the move before the next change is zero
    for row, calls in ((0, (0, 1)), (2, (4, 5))):
        # The change is orthogonal to what the inverse makes of the move, whatever that is after a restart.
        gaps[calls[0] - 1 if calls[0] else 0, row] = 0.0
        gaps[calls[0], row], gaps[calls[1], row] = np.eye(12)[0], np.eye(12)[0] + np.eye(12)[1]
    given = iter(torch.from_numpy(gaps))
    solver = Broyden(max_steps=9, iterate="last", stop="absolute", tolerance=0.0)
    iteration = solver.init(torch.zeros(3, 12, dtype=torch.float64), Workspace())
    z = torch.zeros(3, 12, dtype=torch.float64)
    for gap in given:
        z = iteration.step(z, z + gap, gap)
    restarts = []
    for row in range(3):
        expected, anew = explicit_broyden(list(gaps[:, row]))
        restarts.append(anew)
        np.testing.assert_allclose(z[row].numpy(), expected, rtol=1e-9, atol=1e-9)
    assert all(restarts)
    assert len({tuple(each) for each in restarts}) > 1


@pytest.mark.parametrize("k", [1, 2, 6, 14])
def test_broyden_takes_the_steps_of_scipy_on_a_multiscale_network(k):
    network = shipped_network().double()
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, solution = network.solve(x, Broyden(max_steps=k, iterate="last"))
    for row in range(3):
        expected = broyden_by_scipy(network, x[row : row + 1], k)
        np.testing.assert_allclose(solution.value[row].flatten().numpy(), expected, rtol=0, atol=1e-8)


def test_broyden_remembers_one_vector_per_step_but_the_last():
    workspace, start = Workspace(), torch.zeros(2, 7)
    Broyden(max_steps=14).solve(torch.cos, start, workspace=workspace)
    assert workspace.take(13, start).untyped_storage().nbytes() == 13 * start.nbytes
    assert (Broyden(max_steps=14).vectors, Broyden(max_steps=14, iterate="last").vectors) == (16, 15)
    assert (Anderson(max_steps=30).vectors, Anderson(max_steps=3).vectors, Picard().vectors) == (14, 8, 2)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_picard_composes_the_map(k):
    start = torch.tensor([[0.3], [2.0]], dtype=torch.float64)
    expected = start
    for _ in range(k):
        expected = expected.cos()
    assert torch.equal(Picard(max_steps=k).solve(torch.cos, start).value, expected)


@each_solver
def test_the_first_step_is_the_plain_one(solver):
    problem = Tanh(4, 3, 5)
    value = replace(solver, max_steps=1, iterate="last").solve(problem, problem.start).value
    torch.testing.assert_close(value, problem(problem.start), rtol=1e-14, atol=1e-14)


@each_solver
@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_k_steps_are_k_calls(solver, k):
    problem = Tanh(5, 3, 8, contraction=2.0)
    function = Counted(problem)
    solution = replace(solver, max_steps=k).solve(function, problem.start)
    calls = k if solver.iterate == "last" else k + 1  # the best needs the residual of X_k
    assert len(function.pairs) == calls
    assert solution.evaluations == 3 * calls
    assert solution.steps.tolist() == [calls] * 3


# Stopping


@each_stop
def test_picard_stops_every_row_where_a_plain_loop_would(stop):
    rates, roots, start, tolerance = [0.1, 0.4, 0.6, 0.97], [3.0, -2.0, 50.0, 1.0], 7.0, 1e-3
    expected_steps, expected_values, expected_residuals, expected_converged = [], [], [], []
    for rate, root in zip(rates, roots, strict=True):
        z, steps = start, 0
        for _ in range(30):
            steps += 1
            image = rate * z + (1 - rate) * root
            residual = abs(image - z) / (abs(image) if stop == "relative" else 1)
            z = image
            if residual <= tolerance:
                break
        expected_steps.append(steps)
        expected_values.append(z)
        expected_residuals.append(residual)
        expected_converged.append(residual <= tolerance)
    assert expected_converged == [True, True, True, False]
    assert len(set(expected_steps)) == 4

    rate, root = (torch.tensor(values, dtype=torch.float64)[:, None] for values in (rates, roots))
    solver = Picard(max_steps=30, tolerance=tolerance, stop=stop)
    solution = solver.solve(lambda z: rate * z + (1 - rate) * root, torch.full_like(root, start))
    assert solution.steps.tolist() == expected_steps
    assert solution.converged.tolist() == expected_converged
    assert solution.value[:, 0].tolist() == pytest.approx(expected_values, rel=1e-12)
    assert solution.residual.tolist() == pytest.approx(expected_residuals, rel=1e-9)
    assert solution.evaluations == 4 * 30
    assert not solution.diverged.any()


@each_stop
@each_solver
def test_rows_stop_at_the_first_residual_within_tolerance(solver, stop):
    problem = Tanh(6, 6, 5)
    problem.matrix *= torch.tensor([0.01, 0.2, 0.5, 0.8, 1.0, 1.2]).double().view(-1, 1, 1)
    problem.offset *= 4
    function = Counted(problem)
    free = replace(solver, max_steps=25, stop=stop)
    free.solve(function, problem.start)
    residuals = function.residuals(stop)  # of X_0, X_1, ...
    tolerance = 1e-4
    stopped = replace(free, tolerance=tolerance).solve(problem, problem.start)
    assert len(set(stopped.steps.tolist())) > 2
    rated = 0 if solver.iterate == "last" else 1  # the start is never the best iterate
    for row in range(6):
        first = rated + int((residuals[rated:, row] <= tolerance).nonzero()[0])
        assert stopped.steps[row] == first + 1
        assert stopped.converged[row]
        # The row is frozen there, whatever the others still do.
        expected = replace(free, max_steps=first + 1 - rated).solve(problem, problem.start)
        torch.testing.assert_close(stopped.value[row], expected.value[row], rtol=0, atol=1e-12)
        assert stopped.residual[row].item() == pytest.approx(residuals[first, row].item(), rel=1e-6)
    assert stopped.evaluations == 6 * int(stopped.steps.max())


@each_stop
@each_solver
def test_an_unmet_tolerance_is_reported(solver, stop):
    problem = Linear(7, 3, 6, contraction=0.9)
    solution = replace(solver, max_steps=2, tolerance=1e-9, stop=stop).solve(problem, problem.start)
    assert not solution.converged.any()
    assert not solution.diverged.any()
    assert (solution.residual > 1e-9).all()


def test_stop_modes_differ_by_the_norm_of_the_image():
    problem = Linear(8, 3, 4)
    absolute = Picard(max_steps=3, stop="absolute").solve(problem, problem.start).residual
    relative = Picard(max_steps=3, stop="relative").solve(problem, problem.start)
    torch.testing.assert_close(absolute / relative.value.norm(dim=1), relative.residual, rtol=1e-9, atol=0)


@each_stop
@each_solver
def test_a_fixed_point_at_zero_does_not_divide_by_zero(solver, stop):
    solution = replace(solver, max_steps=3, stop=stop).solve(lambda z: z / 2, torch.zeros(2, 3).double())
    assert solution.residual.tolist() == [0, 0]
    assert solution.converged.all()
    assert (solution.value == 0).all()


@each_solver
@pytest.mark.parametrize("tolerance", [0.0, 1e-8])
def test_warm_start_at_the_solution_takes_one_step(solver, tolerance):
    evaluations = 1 if solver.iterate == "last" else 2
    root = torch.tensor([[1.0, -2.0], [0.5, 4.0]], dtype=torch.float64)
    solution = replace(solver, tolerance=tolerance).solve(lambda z: root + (z - root) / 4, root)
    assert solution.steps.tolist() == [evaluations] * 2
    assert solution.converged.all()
    assert torch.equal(solution.value, root)
    if tolerance:
        assert solution.evaluations == 2 * evaluations


@each_solver
def test_warm_start_of_a_solved_row_does_not_wait_for_a_cold_one(solver):
    problem = Tanh(9, 2, 5)
    root = Picard(max_steps=300).solve(problem, problem.start).value
    start = torch.stack([root[0], problem.start[1]])
    solution = replace(solver, tolerance=1e-9).solve(problem, start)
    assert solution.steps[0] == (1 if solver.iterate == "last" else 2)
    assert solution.steps[1] > 3
    torch.testing.assert_close(solution.value[0], root[0], rtol=0, atol=1e-12)


# Which iterate is returned

LOGISTIC_START = torch.tensor([[0.1], [0.3], [0.745], [0.9]], dtype=torch.float64)


def logistic(z: Tensor) -> Tensor:
    """Chaotic: the residual goes up and down."""
    return 3.9 * z * (1 - z)


@each_stop
@pytest.mark.parametrize("solver", [Picard(), Anderson(ridge=10.0), Broyden()], ids=["picard", "anderson", "broyden"])
def test_best_is_the_evaluated_iterate_of_least_residual(solver, stop):
    function = Counted(logistic)
    solution = replace(solver, max_steps=7, stop=stop, iterate="best").solve(function, LOGISTIC_START)
    assert len(function.pairs) == 8
    assert solution.steps.tolist() == [8] * 4
    residuals = function.residuals(stop)
    places = []
    for row in range(4):
        least = 1 + int(residuals[1:, row].argmin())
        assert solution.residual[row].item() == pytest.approx(residuals[least, row].item(), rel=1e-9)
        assert torch.equal(solution.value[row], function.pairs[least][0][row])
        places.append(least)
    if isinstance(solver, Picard):
        assert len(set(places)) > 1
        assert min(places) < 7


def published_iterates(solver: Solver, problem: Linear, row: int, k: int) -> list[np.ndarray]:
    """X_1, ..., X_k of one row by the statements above."""
    one = problem.rows([row])

    def function(z: np.ndarray) -> np.ndarray:
        return one(torch.from_numpy(z)[None])[0].numpy()

    start = problem.start[row].numpy()
    if isinstance(solver, Broyden):
        return [published_broyden(function, start, j) for j in range(1, k + 1)]
    if isinstance(solver, Anderson):
        return [published_anderson(function, start, j, solver.ridge, solver.memory) for j in range(1, k + 1)]
    iterates = [start]
    for _ in range(k):
        iterates.append(function(iterates[-1]))
    return iterates[1:]


@each_stop
@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=["picard", "anderson", "broyden"])
def test_k_steps_return_the_best_of_the_published_iterates(solver, stop):
    problem = Tanh(2, 4, 9, contraction=2.5)
    choices = set()
    for k in range(1, 15):
        counted = Counted(problem)
        solution = replace(solver, max_steps=k, stop=stop, iterate="best").solve(counted, problem.start)
        assert len(counted.pairs) == k + 1
        for row in range(4):
            one = problem.rows([row])
            residuals = []
            iterates = published_iterates(solver, problem, row, k)
            for point in iterates:
                image = one(torch.from_numpy(point)[None])[0].numpy()
                size = np.linalg.norm(image) if stop == "relative" else 1.0
                residuals.append(np.linalg.norm(image - point) / size)
            best = int(np.argmin(residuals))
            np.testing.assert_allclose(solution.value[row].numpy(), iterates[best], rtol=0, atol=1e-6)
            assert solution.residual[row].item() == pytest.approx(residuals[best], rel=1e-4, abs=1e-7)
            choices.add((k, best + 1))
    assert (1, 1) in choices
    assert any(best < k for k, best in choices)


def test_one_step_of_broyden_is_no_constant():
    for solver in (Broyden(max_steps=1), Picard(max_steps=1, iterate="best"), Anderson(max_steps=1, iterate="best")):
        solution = solver.solve(lambda z: 0.5 * z + 1, torch.zeros(1, 1))
        assert solution.value.tolist() == [[1.0]]
        assert solution.residual.tolist() == pytest.approx([1 / 3])
        assert solution.steps.tolist() == [2]


@each_solver
def test_a_row_whose_first_evaluation_is_not_finite_has_no_value(solver):
    solution = replace(solver, max_steps=3).solve(
        lambda z: torch.where(z > 0, torch.nan, z / 2 + 1), torch.tensor([[1.0], [-8.0]])
    )
    assert solution.diverged.tolist() == [True, solution.diverged[1].item()]
    assert solution.value[0].isnan()


@pytest.mark.parametrize("solver", [Picard(), Anderson(ridge=10.0), Broyden()], ids=["picard", "anderson", "broyden"])
def test_last_is_the_next_iterate_with_the_newest_residual(solver):
    function = Counted(logistic)
    solver = replace(solver, max_steps=9, stop="absolute", iterate="last")
    solution = solver.solve(function, LOGISTIC_START)
    torch.testing.assert_close(solution.residual, function.residuals("absolute")[-1])
    longer = Counted(logistic)
    replace(solver, max_steps=10).solve(longer, LOGISTIC_START)
    # Exact: slots of Anderson's ring exceed neither run's needs.
    torch.testing.assert_close(solution.value, longer.pairs[9][0])


def test_defaults_of_the_returned_iterate():
    assert Broyden().iterate == "best"
    assert Anderson().iterate == Picard().iterate == "last"


# Rows never look at each other


def assert_rows_equal(solution, index, other, other_index, atol=1e-10):
    torch.testing.assert_close(solution.value[index], other.value[other_index], rtol=0, atol=atol, equal_nan=True)
    torch.testing.assert_close(solution.residual[index], other.residual[other_index], rtol=1e-5, atol=atol)
    for name in ("steps", "converged", "diverged"):
        assert torch.equal(getattr(solution, name)[index], getattr(other, name)[other_index]), name


@each_solver
@quickly
@given(seed=SEEDS, order=st.permutations(range(5)), size=st.integers(4, 12))
def test_a_row_does_not_depend_on_its_batch(solver, seed, order, size):
    problem = Tanh(seed, 5, size, contraction=0.9)
    solver = replace(solver, max_steps=12, tolerance=1e-3)
    batch = solver.solve(problem, problem.start)
    part = problem.rows(order[:4])
    assert_rows_equal(solver.solve(part, part.start), slice(None), batch, order[:4])
    alone = problem.rows([order[0]])
    assert_rows_equal(solver.solve(alone, alone.start), 0, batch, order[0])


def poisoned_by(kind: str) -> Callable[[Tensor], Tensor]:
    def poison(z: Tensor) -> Tensor:
        if kind == "nan":
            return torch.full_like(z, math.nan)
        if kind == "one nan":
            return torch.cat([z[:, :1] * math.nan, z[:, 1:] / 2], dim=1)
        if kind == "inf":
            return torch.full_like(z, math.inf)
        return z.pow(5) * 1e3 + 1e3  # finite at first

    return poison


@each_solver
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
@pytest.mark.parametrize("kind", ["nan", "one nan", "inf", "blow-up"])
def test_a_diverging_row_is_reported_and_harms_no_other(solver, kind, tolerance):
    problem, poison = Tanh(11, 5, 6), poisoned_by(kind)
    solver = replace(solver, max_steps=15, tolerance=tolerance)
    alone = solver.solve(problem, problem.start)

    def function(z: Tensor) -> Tensor:
        image = problem(z)
        image[2] = poison(z[2:3])[0]
        return image

    batch = solver.solve(function, problem.start)
    others = [0, 1, 3, 4]
    assert_rows_equal(batch, others, alone, others)
    assert batch.diverged[others].logical_not().all()
    if kind == "blow-up" and not batch.diverged[2]:
        # Acceleration may tame z ↦ 1000 z⁵ + 1000; plain iteration cannot.
        assert not isinstance(solver, Picard)
        return
    assert batch.diverged[2]
    assert not batch.converged[2]
    if solver.iterate == "last" or kind != "blow-up":
        assert batch.residual[2] == math.inf
    else:  # the best iterate and its own residual
        assert batch.value[2].isfinite().all()
        assert batch.residual[2].isfinite()
    if kind != "blow-up":
        assert batch.steps[2] == 1
        assert not batch.value[2].isfinite().all()


@each_solver
@pytest.mark.parametrize("stop", ["relative", "absolute"])
def test_a_row_that_diverges_late_stops_there(solver, stop):
    calls = 0

    def function(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        image = 0.5 * z + 1
        if calls >= 4:
            image[1] = math.nan
        return image

    start = torch.arange(6, dtype=torch.float64).view(2, 3)
    solution = replace(solver, max_steps=8, iterate="last", stop=stop).solve(function, start)
    assert solution.diverged[1] or solution.steps[1] < 4  # an accelerated row may have been exact by then
    assert not solution.diverged[0]
    assert solution.value[0].tolist() == pytest.approx([2.0] * 3, abs=0.02)
    if isinstance(solver, Picard):
        assert solution.diverged.tolist() == [False, True]
        assert solution.steps.tolist() == [8, 4]
        assert solution.residual[1] == math.inf


# Small systems that cannot be solved


@pytest.mark.parametrize(
    "solver",
    [Anderson(max_steps=5, ridge=0), Broyden(max_steps=5, iterate="last")],
    ids=["anderson", "broyden"],
)
def test_a_singular_system_takes_plain_steps(solver):
    # F(z) = z + c: all residuals are equal, the Gram matrix is singular and Broyden's ΔG is zero.
    shift = torch.tensor([[0.0, 0.0, 2.0], [0.5, 0.0, 0.0]], dtype=torch.float64)
    problem = Tanh(12, 1, 3)
    alone = solver.solve(problem, problem.start)

    def function(z: Tensor) -> Tensor:
        return torch.cat([z[:2] + shift, problem(z[2:])])

    start = torch.cat([torch.ones(2, 3, dtype=torch.float64), problem.start])
    solution = solver.solve(function, start)
    torch.testing.assert_close(solution.value[:2], 1 + 5 * shift, rtol=0, atol=1e-12)
    assert not solution.diverged.any()
    assert_rows_equal(solution, 2, alone, 0)


@pytest.mark.parametrize("tilt", [0.0, 1e-18])
def test_a_vanishing_denominator_of_broyden_takes_a_plain_step(tilt):
    # ΔG is orthogonal to Δx (but for the tilt, less than rounding), so that Δxᵀ J⁻¹ ΔG = −Δxᵀ ΔG vanishes.
    start = torch.zeros(1, 2, dtype=torch.float64)
    gaps = iter([[1.0, tilt], [1.0, 1.0]])

    def function(z: Tensor) -> Tensor:
        return z + torch.tensor([next(gaps)], dtype=torch.float64)

    solution = Broyden(max_steps=2, iterate="last").solve(function, start)
    assert solution.value.tolist() == [[2.0, 1.0]]


def test_ridge_keeps_equal_residuals_solvable():
    value = Anderson(max_steps=2, ridge=1e-4).solve(lambda z: z + 1, torch.zeros(1, 1).double()).value
    assert value.item() == pytest.approx(1.5)  # the mean of F(X_0) = 1 and F(X_1) = 2


@pytest.mark.parametrize("solver", [Anderson(max_steps=9), Broyden(max_steps=9)], ids=["anderson", "broyden"])
def test_single_precision_stays_close_to_double(solver):
    problem = Tanh(13, 4, 10)
    single = solver.solve(problem, problem.start.float())
    assert single.value.dtype == single.residual.dtype == torch.float32
    torch.testing.assert_close(single.value.double(), solver.solve(problem, problem.start).value, rtol=0, atol=1e-4)


def test_memory_of_one_is_picard():
    problem = Tanh(14, 3, 5)
    anderson = Anderson(max_steps=4, memory=1).solve(problem, problem.start)
    assert torch.equal(anderson.value, Picard(max_steps=4).solve(problem, problem.start).value)


# Settings


@pytest.mark.parametrize("kind", [Picard, Anderson, Broyden])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_steps", 0),
        ("max_steps", -3),
        ("tolerance", -1e-9),
        ("tolerance", math.nan),
        ("stop", "rel"),
        ("iterate", "lowest"),
    ],
)
def test_settings_out_of_range_are_named(kind, field, value):
    with pytest.raises(SettingError, match=rf"^{field} = "):
        kind(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("memory", 0), ("ridge", -1e-4), ("ridge", math.nan)])
def test_anderson_settings_out_of_range_are_named(field, value):
    with pytest.raises(SettingError, match=rf"^{field} = "):
        Anderson(**{field: value})


def test_the_solver_is_abstract_and_immutable():
    with pytest.raises(TypeError):
        Solver()
    with pytest.raises(AttributeError):
        Picard().max_steps = 3
