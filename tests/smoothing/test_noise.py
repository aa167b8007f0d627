from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest, norm

from deqcert.errors import SettingError
from deqcert.seeding import Purpose
from deqcert.smoothing.noise import Stream, audit_subset, noisy_batches
from deqcert.statistics.noise_error import thresholds

IMAGE = torch.full((2, 3, 3), 0.25)


def noise(index=3, seed=0, purpose=Purpose.ESTIMATION, **changes):
    return list(
        noisy_batches(IMAGE, Stream(seed, index), purpose, **{"sigma": 0.5, "count": 10, "batch_size": 4, **changes})
    )


def test_batches_have_the_size_and_dtype_asked_for():
    batches = noise()
    assert [tuple(batch.shape) for batch in batches] == [(4, 2, 3, 3), (4, 2, 3, 3), (2, 2, 3, 3)]
    assert {batch.dtype for batch in batches} == {torch.float32}


def test_the_same_arguments_yield_the_same_noise_whatever_the_global_generator_did():
    first = torch.cat(noise())
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(torch.cat(noise()), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "changes",
    [{"index": 4}, {"purpose": Purpose.SELECTION}, {"seed": 1}, {"seed": 2**32}, {"batch_size": 5}, {"part": 1}],
)
def test_noise_belongs_to_index_purpose_seed_part_and_batch_size(changes):
    assert not torch.equal(torch.cat(noise(**changes)), torch.cat(noise()))


def test_streams_of_all_purposes_are_distinct():
    selection, estimation = (torch.cat(noise(purpose=p)) for p in (Purpose.SELECTION, Purpose.ESTIMATION))
    assert not (selection == estimation).any()


def test_noise_is_gaussian_around_the_image():
    samples = (torch.cat(noise(count=500, sigma=0.3)) - 0.25).flatten() / 0.3
    assert kstest(samples.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    ("stream", "field"),
    [((seed, 0), "seed") for seed in (-1, 2**64, 1.0, True)] + [((0, index), "index") for index in (-1, 2**32)],
)
def test_streams_out_of_range_are_refused_by_name(stream, field):
    with pytest.raises(SettingError, match=f"^{field} = "):
        Stream(*stream)


def test_audit_subset_is_sorted_without_replacement_and_repeatable():
    positions = np.array([2, 3, 5, 7, 11, 13])
    for index in range(50):
        subset = audit_subset(positions, 4, Stream(0, index))
        assert len(set(subset)) == 4
        assert set(subset) <= set(positions)
        assert list(subset) == sorted(subset)
        assert np.array_equal(subset, audit_subset(positions, 4, Stream(0, index)))
    assert np.array_equal(audit_subset(positions, 6, Stream(0, 0)), positions)
    assert len(audit_subset(positions, 0, Stream(0, 0))) == 0


def test_audit_subset_is_uniform():
    size, population, draws = 10, 30, 2000
    counts = np.zeros(population)
    for index in range(draws):
        counts[audit_subset(np.arange(population), size, Stream(7, index))] += 1
    share = size / population
    statistic = ((counts - draws * share) ** 2).sum() / (draws * share * (1 - share)) * (population - 1) / population
    assert chi2(population - 1).sf(statistic) > 1e-4


def test_audit_subset_pairs_are_uniform():
    together = np.zeros((6, 6))
    for seed in range(3000):
        first, second = audit_subset(np.arange(6), 2, Stream(seed, 0))
        together[first, second] += 1
    pairs = together[np.triu_indices(6, 1)]
    assert pairs.sum() == 3000
    assert chi2(14).sf(((pairs - 200) ** 2 / 200).sum()) > 1e-4


def test_float32_noise_ends_where_the_documentation_says():
    """docs/floating_point.md: uniforms of 24 bits, by Box and Muller's method."""
    end = math.sqrt(48 * math.log(2))
    generator = torch.Generator().manual_seed(0)
    assert 5 < float(torch.randn(10**7, generator=generator).abs().max()) <= end + 1e-6
    beyond = {d: -math.expm1(d * math.log1p(-2 * norm.sf(end))) for d in (3072, 150_528)}
    assert beyond == pytest.approx({3072: 2.46e-5, 150_528: 1.206e-3}, rel=2e-3)
    assert norm.isf(beyond[150_528]) == pytest.approx(3.03, abs=5e-3)
    assert norm.isf(-math.expm1(math.log(0.001) / 10_000)) == pytest.approx(3.20, abs=5e-3)


@pytest.mark.parametrize("sigma", [0.12, 0.25, 0.5, 1.0, 2.0])
def test_quantized_noise_reaches_beyond_9_standard_deviations(sigma):
    assert len(thresholds(sigma)) / 2 / (255 * sigma) > 9
