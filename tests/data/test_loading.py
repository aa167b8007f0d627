from itertools import chain

import pytest
import torch

from deqcert.data.loading import EpochSampler, ResumableLoader, UnpaddedSampler, collated


def make_loader(images, **settings):
    sampler = EpochSampler(images, 1, 0, seed=7)
    loader = ResumableLoader(images, batch_size=4, sampler=sampler, collate_fn=collated, **settings)
    return loader, sampler


def order(loader):
    return [indices.tolist() for _, _, indices in loader]


def test_order_repeats_after_a_restart_and_differs_among_epochs(tensor_images):
    first, sampler = make_loader(tensor_images())
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(order(first))
    assert epochs[0] != epochs[1] != epochs[2]

    second, sampler = make_loader(tensor_images())
    sampler.set_epoch(2)
    assert order(second) == epochs[2]
    assert sorted(chain.from_iterable(epochs[2])) == list(range(20))


def test_resumes_in_mid_epoch(tensor_images):
    whole = order(make_loader(tensor_images())[0])
    interrupted, _ = make_loader(tensor_images())
    batches = iter(interrupted)
    seen = [next(batches)[2].tolist() for _ in range(2)]

    resumed, _ = make_loader(tensor_images())
    resumed.load_state_dict(interrupted.state_dict())
    assert seen + order(resumed) == whole
    assert order(resumed) == whole


@pytest.mark.parametrize("used", [3, 5])
def test_after_an_epoch_the_next_starts_at_the_beginning(tensor_images, used):
    """Also after an epoch that was cut short by ``limit_train_batches``."""
    loader, _ = make_loader(tensor_images())
    assert len(list(zip(range(used), loader, strict=False))) == used
    state = loader.state_dict()
    assert state["epoch"] == 0
    resumed, sampler = make_loader(tensor_images())
    resumed.load_state_dict(state)
    sampler.set_epoch(1)
    expected, sampler = make_loader(tensor_images())
    sampler.set_epoch(1)
    assert order(resumed) == order(expected)


def test_workers_use_the_epoch_set_after_iter(tensor_images):
    loader, sampler = make_loader(tensor_images(), num_workers=1)
    batches = iter(loader)
    sampler.set_epoch(3)
    expected, sampler = make_loader(tensor_images())
    sampler.set_epoch(3)
    assert [indices.tolist() for _, _, indices in batches] == order(expected)


def test_set_epoch_reaches_data_sets_that_want_it(tensor_images):
    images = tensor_images()
    EpochSampler(images, 1, 0, seed=0).set_epoch(4)
    assert not hasattr(images, "epoch")
    images.epoch = 0
    EpochSampler(images, 1, 0, seed=0).set_epoch(4)
    assert images.epoch == 4


def test_two_processes_partition_the_training_images(tensor_images):
    images = tensor_images()
    shares = [list(EpochSampler(images, 2, rank, seed=0)) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == 10
    assert sorted(shares[0] + shares[1]) == list(range(20))


@pytest.mark.parametrize(("count", "replicas"), [(7, 2), (8, 3), (5, 5), (9, 1)])
def test_evaluation_deals_each_image_once(tensor_images, count, replicas):
    samplers = [UnpaddedSampler(tensor_images(count), replicas, rank) for rank in range(replicas)]
    dealt = [list(sampler) for sampler in samplers]
    assert sorted(chain.from_iterable(dealt)) == list(range(count))
    assert [len(share) for share in dealt] == [len(sampler) for sampler in samplers]


def test_batches_are_read_at_once(tensor_images, monkeypatch):
    loader, _ = make_loader(tensor_images())
    monkeypatch.setattr(type(loader.dataset), "__getitem__", None)
    images, labels, indices = next(iter(loader))
    assert images.shape == (4, 3, 8, 8)
    assert labels.dtype == indices.dtype == torch.int64
