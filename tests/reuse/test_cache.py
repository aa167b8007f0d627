"""The cache of fixed points: what comes out does not depend on it, what it takes does."""

from __future__ import annotations

import copy
import threading
from typing import get_args

import pytest
import torch
from torch import nn

from deqcert.checkpoints import load_network
from deqcert.errors import SettingError
from deqcert.models import MDEQ, FunctionDEQ
from deqcert.reuse import FixedPointCache, Policy
from deqcert.solvers import Anderson, Picard

POLICIES = get_args(Policy)
SOLVER = Anderson(max_steps=100, tolerance=1e-5)
DIMENSION = 6
DIGITS = "deqcert:digits_mdeq_tiny"


def contraction(x):
    """F(z) = x + tanh(W z) / 2 with orthogonal W: its rate is at most 1/2."""
    mixing = torch.linalg.qr(torch.randn(DIMENSION, DIMENSION, generator=torch.Generator().manual_seed(0)))[0]
    return lambda z: x + torch.tanh(z @ mixing) / 2


def frames(count, rows=3, step=0.01):
    """Yield inputs that drift."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, DIMENSION, generator=generator)
    for _ in range(count):
        yield x
        x = x + step * torch.randn(rows, DIMENSION, generator=generator)


def solve(cache, x, key=None, solver=SOLVER):
    return cache.solve(contraction(x), torch.zeros_like(x), solver, key, features=x)


def network(seed=0):
    torch.manual_seed(seed)
    sizes = {"channels": [4, 6], "head_channels": [2, 3], "final_channels": 8, "num_classes": 3, "image_size": 8}
    sizes |= {"num_groups": 2, "dropout": 0.0}
    return MDEQ(**sizes, mean=[0.0], std=[1.0], image_channels=1, solver=SOLVER).eval()


@pytest.mark.parametrize("policy", POLICIES)
def test_solutions_are_those_of_cold_solves_at_tolerance_and_take_less(policy):
    cache = FixedPointCache(policy)
    cold = 0
    for x in frames(30):
        expected = SOLVER.solve(contraction(x), torch.zeros_like(x))
        cold += int(expected.steps.sum())
        found = solve(cache, x)
        assert found.converged.all()
        # Both are within rate / (1 - rate) = 1 of their last move, whose relative size is the tolerance.
        distance = (found.value - expected.value).norm(dim=1)
        assert (distance <= 4 * SOLVER.tolerance * expected.value.norm(dim=1)).all()
    savings = cache.savings
    assert (savings.hits, savings.misses) == (29 * 3, 3)
    assert savings.saved == pytest.approx(savings.hits * savings.nfe_misses / 3 - savings.nfe_hits)
    if policy != "mean":  # the mean of rows that have nothing in common helps nobody
        assert savings.nfe_hits + savings.nfe_misses < cold


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("previous", [[3.0], [2.0]]),
        ("first", [[1.0], [1.5]]),
        ("mean", [[1.875], [1.875]]),
        ("nearest", [[3.0], [1.5]]),
    ],
)
def test_each_policy_starts_from_its_own_states(policy, expected):
    # One step of F(z) = x from anywhere is x: the fixed points are known.
    cache, starts = FixedPointCache(policy), []
    for values in ([[1.0], [1.5]], [[3.0], [2.0]]):
        x = torch.tensor(values)
        cache.solve(lambda z, x=x: x, torch.zeros(2, 1), Picard(max_steps=1), features=x)

    def seen(z):
        starts.append(z.clone())
        return z

    cache.solve(seen, torch.zeros(2, 1), Picard(max_steps=1), features=torch.tensor([[9.0], [1.6]]))
    assert starts[0].tolist() == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_keys_know_nothing_of_each_other(policy):
    cache = FixedPointCache(policy)
    x = next(frames(1))
    solve(cache, x, ("camera", 1))
    assert solve(cache, x, ("camera", 2)).steps.tolist() == SOLVER.solve(contraction(x), 0 * x).steps.tolist()
    assert cache.savings.hits == 0
    assert len(cache) == 2


@pytest.mark.parametrize("policy", POLICIES)
def test_batches_may_grow_and_shrink(policy):
    cache = FixedPointCache(policy)
    for rows in (2, 5, 1, 5):
        x = next(frames(1, rows))
        assert solve(cache, x).converged.all()
    assert cache.savings.hits == 11


def test_rows_of_a_larger_batch_start_from_those_known_modulo_their_number():
    cache = FixedPointCache("first")
    cache.solve(lambda z: torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1), Picard(max_steps=1))
    starts = []
    cache.solve(lambda z: starts.append(z.clone()) or z, torch.zeros(5, 1), Picard(max_steps=1))
    assert starts[0].flatten().tolist() == [1, 2, 1, 2, 1]


@pytest.mark.parametrize("policy", POLICIES)
def test_rows_that_diverge_are_not_kept(policy):
    cache = FixedPointCache(policy)
    x = next(frames(1))
    poison = torch.tensor([[0.0], [float("nan")], [0.0]])
    bad = cache.solve(lambda z: contraction(x)(z) + poison, torch.zeros_like(x), SOLVER, features=x)
    assert bad.diverged.tolist() == [False, True, False]
    again = solve(cache, x)
    assert again.value.isfinite().all()
    assert again.converged.all()


def test_memory_is_bounded_and_the_keys_used_last_stay():
    size = 3 * DIMENSION * 4
    cache = FixedPointCache(max_bytes=3 * size)
    x = next(frames(1))
    for key in (0, 1, 2, 0, 3):  # 1 is the one not used for longest
        solve(cache, x, key)
        assert cache.bytes <= 3 * size
    hits = cache.savings.hits
    for key in (0, 2, 3):
        solve(cache, x, key)
    assert cache.savings.hits == hits + 9
    solve(cache, x, 1)
    assert cache.savings.hits == hits + 9


def test_the_nearest_rows_are_bounded_too():
    cache = FixedPointCache("nearest", rows=4)
    for x in frames(5):
        solve(cache, x)
    assert cache.bytes == 2 * 4 * DIMENSION * 4


def test_one_key_larger_than_the_memory_is_refused():
    cache = FixedPointCache(max_bytes=10)
    with pytest.raises(SettingError, match=r"^max_bytes = 10: must be at least 72, the states of key 'camera'"):
        solve(cache, next(frames(1)), "camera")
    assert cache.bytes == 0


def test_threads_share_a_cache():
    cache = FixedPointCache(max_bytes=4 * 3 * DIMENSION * 4)
    inputs = list(frames(40))
    expected = [SOLVER.solve(contraction(x), torch.zeros_like(x)).value for x in inputs]
    wrong = []

    def work(number):
        for position, x in enumerate(inputs):
            value = solve(cache, x, (number + position) % 6).value
            if (value - expected[position]).norm() > 1e-3:
                wrong.append(position)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.savings.hits + cache.savings.misses == 6 * 40 * 3
    assert cache.bytes <= 4 * 3 * DIMENSION * 4


def test_states_handed_out_are_not_written_to():
    cache = FixedPointCache()
    first = solve(cache, next(frames(1))).value
    before = first.clone()
    for x in frames(3, step=1.0):
        solve(cache, x)
    assert torch.equal(first, before)


# Networks.


@pytest.mark.parametrize("policy", POLICIES)
def test_a_network_classifies_as_from_a_cold_start(policy):
    deq, cache = load_network(DIGITS).network, FixedPointCache(policy)
    solver = Anderson(max_steps=100, tolerance=1e-4)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 8, 8, generator=generator)
    for _ in range(4):
        x = image + 0.01 * torch.randn(2, 1, 8, 8, generator=generator)
        logits, solution = cache.classify(deq, x, solver, key="video")
        assert solution.converged.all()
        torch.testing.assert_close(logits, deq.solve(x, solver)[0], rtol=1e-2, atol=1e-2)
    assert cache.savings.hits == 6
    assert cache.savings.saved > 0


def test_a_function_of_torchdeq_takes_part():
    class Half(nn.Module):
        def forward(self, z, x):
            return (z + x) / 2

    deq = FunctionDEQ(nn.Flatten(), Half(), nn.Identity(), shapes=[[4]], solver=SOLVER).eval()
    cache = FixedPointCache()
    for _ in range(2):
        logits, _ = cache.classify(deq, torch.ones(1, 1, 2, 2))
    torch.testing.assert_close(logits, torch.ones(1, 4), rtol=1e-4, atol=1e-4)
    assert cache.savings.nfe_hits == 1


def test_another_network_is_refused_and_so_are_changed_weights():
    deq, x = network(), torch.rand(1, 1, 8, 8)
    cache = FixedPointCache()
    cache.classify(deq, x)
    cache.classify(copy.deepcopy(deq), x)  # the same function
    with pytest.raises(SettingError, match=r"^network = 'MDEQ': must have the weights that this cache began with"):
        cache.classify(network(seed=1), x)
    cache.classify(deq, x)
    with torch.no_grad():
        next(deq.parameters()).mul_(1.1)
    with pytest.raises(SettingError, match="weights"):
        cache.classify(deq, x)


def test_weight_samples_share_a_cache_that_says_so():
    x = torch.rand(1, 1, 8, 8)
    cache = FixedPointCache(across_weights=True)
    for seed in range(3):
        cache.classify(network(seed), x)
    assert cache.savings.hits == 2
    wider = network()
    wider.mdeq_head.classifier = nn.Linear(8, 4)
    with pytest.raises(SettingError, match="architecture"):
        cache.classify(wider, x)


# Rows that a caller writes itself.


@pytest.mark.parametrize("policy", ["previous", "first"])
def test_held_rows_are_those_of_the_key(policy):
    cache = FixedPointCache(policy)
    start, keep = cache.hold("chain", torch.zeros(1, 2).expand(2, 2))
    assert start is None
    keep.copy_(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    start, keep = cache.hold("chain", torch.zeros(3, 2))
    assert start.tolist() == [[1, 1], [2, 2], [1, 1]]
    assert (keep is None) if policy == "first" else (keep.data_ptr() == start.data_ptr())
    start, _ = cache.hold("chain", torch.zeros(1, 2))
    assert start.tolist() == [[1, 1]]


@pytest.mark.parametrize("policy", ["mean", "nearest"])
def test_rows_of_other_policies_cannot_be_held(policy):
    with pytest.raises(SettingError, match=rf"^policy = '{policy}': must be previous or first to be held"):
        FixedPointCache(policy).hold(None, torch.zeros(1, 2))


# Bad input.


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("other", [torch.zeros(3, DIMENSION + 1), torch.zeros(3, DIMENSION, dtype=torch.float64)])
def test_states_of_another_shape_or_type_are_refused(policy, other):
    cache = FixedPointCache(policy)
    x = next(frames(1))
    expected = solve(cache, x, "camera").value
    with pytest.raises(SettingError, match=r"^key = 'camera': has states of shape, type and device"):
        cache.solve(lambda z: z, other, SOLVER, "camera", features=x)
    torch.testing.assert_close(solve(cache, x, "camera").value, expected, rtol=0, atol=1e-4)  # nothing is lost


def test_states_on_another_device_are_refused():
    cache = FixedPointCache()
    x = next(frames(1))
    solve(cache, x)
    with pytest.raises(SettingError, match=r"device.*'meta'|device.*meta"):
        cache.solve(lambda z: z, x.to("meta"), SOLVER)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "last"}, r"^policy = 'last': must be one of previous, first, mean, nearest"),
        ({"rows": 0}, r"^rows = 0"),
        ({"max_bytes": 0}, r"^max_bytes = 0"),
        ({"max_bytes": 1e6}, r"^max_bytes = 1000000.0: must be an integer"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(SettingError, match=message):
        FixedPointCache(**settings)


def test_the_nearest_needs_features_that_fit():
    cache = FixedPointCache("nearest")
    x = next(frames(1))
    with pytest.raises(SettingError, match=r"^features = None: must be given"):
        cache.solve(contraction(x), torch.zeros_like(x), SOLVER)
    solve(cache, x)
    with pytest.raises(SettingError, match=r"^features = \(3, 2\): must have 6 numbers per row"):
        cache.solve(contraction(x), torch.zeros_like(x), SOLVER, features=torch.zeros(3, 2))
