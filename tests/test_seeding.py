"""Every purpose has random streams of its own."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from deqcert.data.streams import DataPurpose, raw_stream
from deqcert.errors import SettingError
from deqcert.lightning import ConvergenceHealth
from deqcert.seeding import Purpose, image_seed, mixed_seed, purpose_seed
from deqcert.training import classifier
from deqcert.training.classifier import DEQClassifier

OF_IMAGES = (
    Purpose.SELECTION,
    Purpose.ESTIMATION,
    Purpose.AUDIT_SUBSET,
    Purpose.ATTACK,
    Purpose.ATTACK_CHECK,
    Purpose.CHECK,
)
WORDS = {Purpose.TRAINING: 4, Purpose.VALIDATION: 2, Purpose.ATTACK_DIRECTION: 3, Purpose.ANCHOR: 1}
SEEDS = (0, 1, 2, 3, 2**32, 2**32 + 1, 3 * 2**32, 2**64 - 1)


def image_seeds():
    keys = itertools.product(SEEDS, range(5), OF_IMAGES, range(4))
    return [image_seed(*key) for key in keys]


def other_seeds():
    return [
        purpose_seed(purpose, *words)
        for purpose, size in WORDS.items()
        for words in itertools.product(range(3), repeat=size)
    ]


def test_streams_of_all_purposes_are_distinct():
    assert {*OF_IMAGES, *WORDS} == set(Purpose)
    seeds = image_seeds() + other_seeds()
    measured = [ConvergenceHealth(seed=seed).stream_seed for seed in SEEDS]
    seeds += [image_seed(*key) for key in itertools.product(measured, range(3), OF_IMAGES[:2])]
    assert len(set(seeds)) == len(seeds) > 1000
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)  # what torch's CPU generator reads


def test_streams_of_the_data_are_distinct():
    assert len(set(DataPurpose)) == 4
    keys = [(seed, purpose, *rest) for seed in (0, 1, 1797) for purpose in DataPurpose for rest in ((), (1,), (1, 2))]
    assert len({int(raw_stream(1, *key)[0]) for key in keys}) == len(keys)


def test_streams_of_certification_are_those_that_have_always_been():
    assert image_seed(0, 3, Purpose.ESTIMATION, 2) == mixed_seed(0, 3, 1, 2) == 1162106841550606366
    assert image_seed(7, 3, Purpose.AUDIT_SUBSET) == mixed_seed(7, 3, 2)
    assert np.array_equal(raw_stream(5, 1797, DataPurpose.FIXED_SPLIT), raw_stream(5, 1797))


@pytest.mark.parametrize("stream_seed", SEEDS)
def test_training_draws_from_no_other_stream(stream_seed, monkeypatch):
    monkeypatch.setattr(classifier, "repair_progress", lambda trainer: None)
    drawn = []
    for rank, epoch, batch in itertools.product(range(3), range(4), range(3)):
        module = SimpleNamespace(trainer=None, stream_seed=stream_seed, global_rank=rank, current_epoch=epoch)
        with torch.random.fork_rng():
            DEQClassifier.on_train_batch_start(module, None, batch)
            drawn.append(torch.initial_seed())
    assert len(set(drawn)) == len(drawn)
    assert not set(drawn) & set(image_seeds())


def test_validation_draws_from_no_other_stream(monkeypatch):
    generators = []
    real = torch.randn

    def recorded(*shape, generator, **more):
        generators.append(generator)
        return real(*shape, generator=generator, **more)

    monkeypatch.setattr(torch, "randn", recorded)
    for rank, batch in itertools.product(range(3), range(3)):
        module = SimpleNamespace(
            global_rank=rank,
            sigma=0.5,
            _classify=lambda x: (nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 2).float(), None),
            _log_mean=lambda stage, name, values: None,
        )
        DEQClassifier._evaluate(
            module, "val", (torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), None), batch
        )
    seeds = [generator.initial_seed() for generator in generators]
    assert len(set(seeds)) == 9
    assert not set(seeds) & set(image_seeds())


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(SettingError, match=r"^seed = "):
        ConvergenceHealth(seed=seed)


def test_keys_out_of_range_are_refused():
    with pytest.raises(SettingError, match=r"^index = 4294967296"):
        image_seed(0, 2**32, Purpose.SELECTION)
    with pytest.raises(SettingError, match=r"^index = -1"):
        image_seed(0, -1, Purpose.SELECTION)
    with pytest.raises(SettingError, match=r"^words = "):
        purpose_seed(Purpose.TRAINING, 1, 2, 3, 4, 5)
