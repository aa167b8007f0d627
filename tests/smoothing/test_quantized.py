from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import chi2

from deqcert.data.images import to_unit_interval
from deqcert.errors import SettingError
from deqcert.seeding import Purpose, mixed_seed
from deqcert.smoothing.noise import Stream, noisy_batches
from deqcert.smoothing.quantized import _table, integer_noise, pixel_levels
from deqcert.statistics import CertificationRule, Votes
from deqcert.statistics.noise_error import noise_error, thresholds

LEVELS = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
IMAGE = to_unit_interval(LEVELS)
CPU = torch.device("cpu")


def samples(image=IMAGE, index=3, purpose=Purpose.ESTIMATION, seed=0, **changes):
    settings = {"sigma": 0.5, "count": 10, "batch_size": 4, "noise": "quantised"} | changes
    return torch.cat(list(noisy_batches(image, Stream(seed, index), purpose, **settings)))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_samples_are_the_levels_plus_integers_divided_by_255():
    batch = samples()
    assert batch.dtype == torch.float32
    assert batch.shape == (10, 1, 16, 16)
    integers = (batch.double() * 255).round()
    assert torch.equal(integers.float() / 255, batch)
    drawn = generator(mixed_seed(0, 3, Purpose.ESTIMATION, 0))
    noise = torch.cat([integer_noise((size, 1, 16, 16), 0.5, drawn) for size in (4, 4, 2)])
    assert torch.equal(integers, LEVELS + noise.double())
    assert integers.min() < 0  # nothing is clipped
    assert integers.max() > 255


def test_the_noise_is_the_same_integers_whatever_the_image():
    black = torch.zeros_like(IMAGE)
    difference = (samples().double() * 255).round() - (samples(black).double() * 255).round()
    assert torch.equal(difference, LEVELS.double().expand(10, 1, 16, 16))


def test_the_same_arguments_yield_the_same_samples_whatever_the_global_generator_did():
    first = samples()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(samples(), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_streams_of_purposes_indices_seeds_and_parts_are_independent():
    others = [{}, {"purpose": Purpose.SELECTION}, {"index": 4}, {"seed": 1}, {"part": 1}]
    noise = torch.stack([samples(count=400, **each).flatten() - IMAGE.flatten().repeat(400) for each in others])
    correlation = torch.corrcoef(noise) - torch.eye(len(others))
    assert correlation.abs().max() < 5 / math.sqrt(noise.shape[1])


def test_uniform_integers_are_uniform_in_their_highest_and_lowest_bits():
    uniform = torch.empty(2**20, dtype=torch.int64).random_(generator=generator())
    assert uniform.min() >= 0
    for byte in (uniform >> 55, uniform & 255):
        counts = torch.bincount(byte, minlength=256).numpy()
        assert len(counts) == 256
        assert chi2(255).sf(((counts - 2**12) ** 2 / 2**12).sum()) > 1e-4


@pytest.mark.parametrize("sigma", [0.004, 0.25, 1.0])
def test_noise_has_the_probabilities_of_rounded_gaussian_noise(sigma):
    draws, scale = 4_000_000, 255 * sigma
    noise = integer_noise((4, 1_000_000), sigma, generator(1)).numpy().ravel()
    assert abs(noise.mean(dtype=np.float64)) < 5 * scale / math.sqrt(draws)
    if scale > 2:  # Sheppard's correction is exact up to exp(-2 pi^2 s^2)
        assert noise.var(dtype=np.float64) == pytest.approx(scale**2 + 1 / 12, rel=5 * math.sqrt(2 / draws))

    inner = int(3.5 * scale) + 1
    edges = np.arange(-inner, inner) + 0.5
    expected = draws * np.diff(ndtr(np.concatenate([[-np.inf], edges / scale, [np.inf]])))
    counts = np.bincount(np.clip(noise, -inner, inner) + inner, minlength=2 * inner + 1)
    kept = expected > 5
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi2(kept.sum() - 1).sf(statistic) > 1e-4


@pytest.mark.parametrize("sigma", [1e-5, 0.003, 0.5, 2.0])
def test_the_guide_gives_the_levels_of_the_search(sigma):
    table = _table(sigma, CPU)
    ascending = torch.from_numpy(thresholds(sigma))
    random = torch.empty(500_000, dtype=torch.int64).random_(generator=generator())
    ends = torch.tensor([0, 2**63 - 1])
    cells = torch.arange(1, 2**18) << 45
    uniform = torch.cat([random, ends, cells, cells - 1, ascending, ascending - 1])
    by_search = torch.searchsorted(ascending, uniform, right=True) - len(ascending) // 2
    assert torch.equal(table.levels(uniform).long(), by_search)
    assert torch.equal(table._replace(guide=None).levels(uniform).long(), by_search)
    assert table.levels(ends).tolist() == [-len(ascending) // 2, len(ascending) // 2]


def test_noise_does_not_depend_on_how_many_pixels_are_drawn_at_a_time():
    noise = integer_noise((3, 100_000), 0.5, generator())
    uniform = torch.empty(300_000, dtype=torch.int64).random_(generator=generator())
    assert torch.equal(noise.flatten(), _table(0.5, CPU).levels(uniform))


@pytest.mark.gpu
def test_a_gpu_draws_the_levels_of_the_search_from_its_own_integers():
    drawn = [torch.Generator("cuda").manual_seed(1) for _ in range(2)]
    noise = integer_noise((100_000,), 0.5, drawn[0])
    uniform = torch.empty(100_000, dtype=torch.int64, device="cuda").random_(generator=drawn[1])
    assert torch.equal(noise.cpu(), _table(0.5, CPU).levels(uniform.cpu()))
    assert torch.equal(pixel_levels(IMAGE.cuda()).cpu(), LEVELS.float())
    batch = samples(IMAGE.cuda())
    assert torch.equal(samples(IMAGE.cuda()), batch)
    assert (batch.double() * 255).frac().abs().sub(0.5).abs().min() > 0.499


def test_every_level_is_recognized_also_when_a_device_rounds_it_differently():
    expected = LEVELS.float()
    for image in (IMAGE, LEVELS * torch.tensor(1 / 255), torch.nextafter(IMAGE, torch.ones(()))[:, 1:]):
        assert torch.equal(pixel_levels(image), expected[:, -image.shape[1] :])


@pytest.mark.parametrize("pixel", [0.3, 1e-6, 1.0 + 1e-6, -1 / 255, 256 / 255, math.nan, math.inf])
def test_images_that_are_not_8_bit_are_refused(pixel):
    image = IMAGE.clone()
    image[0, 5, 5] = pixel
    with pytest.raises(SettingError, match=r"^noise = 'quantised'"):
        samples(image)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_integers_are_added_exactly_whatever_the_dtype_of_the_image(dtype):
    black_and_white = (LEVELS % 2).float()  # 0 and 1, which every dtype holds; sums beyond 256 bfloat16 does not
    assert torch.equal(samples(black_and_white.to(dtype), sigma=1.0), samples(black_and_white, sigma=1.0))


def test_levels_that_were_not_divided_by_255_are_refused():
    with pytest.raises(SettingError, match=r"^noise = 'quantised'"):
        samples(LEVELS)


@pytest.mark.parametrize(("changes", "message"), [({"noise": "exact"}, "noise = 'exact'"), ({"sigma": 20.0}, "sigma")])
def test_bad_settings_are_named(changes, message):
    with pytest.raises(SettingError, match=message):
        samples(**changes)


def test_float32_noise_is_what_it_was():
    image = torch.full((3, 8, 8), 0.3)  # need not be 8-bit
    drawn = torch.Generator().manual_seed(mixed_seed(7, 5, 1, 2))
    expected = [image + 0.25 * torch.randn(size, 3, 8, 8, generator=drawn) for size in (4, 4, 2)]
    settings = {"index": 5, "seed": 7, "part": 2, "sigma": 0.25}
    assert torch.equal(samples(image, noise="float32", **settings), torch.cat(expected))
    defaults = noisy_batches(image, Stream(7, 5), Purpose.ESTIMATION, sigma=0.25, count=10, batch_size=4, part=2)
    assert torch.equal(torch.cat(list(defaults)), torch.cat(expected))


def fine_bits(batch):
    """Class 1 if every value below 2^-10 is a multiple of 2^-32, else class 0.

    A float32 near 1/255 is a multiple of 2^-31, and noise that nearly cancels it one of 2^-32: so is the sum. Around
    a black pixel, the sum is the noise itself, with whatever bits it has.
    """
    fine = (batch.abs() < 2**-10) & ((batch.double() * 2**32).frac() != 0)
    return 1 - fine.flatten(1).any(1).long()


def certificate(level, noise):
    """Certify an image of 3 x 32 x 32 pixels of one level by what ``fine_bits`` says."""
    image = to_unit_interval(torch.full((3, 32, 32), level, dtype=torch.uint8))

    def counts(purpose, count):
        return tuple(
            torch.bincount(fine_bits(samples(image, 0, purpose, count=count, noise=noise)), minlength=2).tolist()
        )

    selection, estimation = counts(Purpose.SELECTION, 100), counts(Purpose.ESTIMATION, 1000)
    error = noise_error(noise, image.numel())
    votes = Votes(100, 1000, selection, estimation, None, 0, 0, 0, math.nan, 0.0, 0.5, error)
    return CertificationRule().certify(votes)


def test_rounded_noise_issues_a_false_certificate_and_quantized_noise_does_not():
    distance = math.sqrt(3072) / 255
    gray, black = certificate(1, "float32"), certificate(0, "float32")
    assert gray.radius > 5 * distance  # certified to be of class 1 far beyond the black image
    assert black.radius > distance  # which is certified to be of class 0
    assert (gray.prediction, black.prediction) == (1, 0)

    gray, black = certificate(1, "quantised"), certificate(0, "quantised")
    assert gray.prediction == black.prediction == 1
