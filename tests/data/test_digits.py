import numpy as np
import torch
from sklearn.datasets import load_digits

from deqcert.data import Digits


def test_splits_partition_the_digits_of_scikit_learn():
    module = Digits()
    train, test = module.load_split("train"), module.load_split("test")
    assert (len(train), len(test)) == (1297, 500)
    assert sorted(train.indices.tolist() + test.indices.tolist()) == list(range(1797))


def test_split_does_not_depend_on_the_seed():
    indices = Digits(seed=1).load_split("test").indices
    assert torch.equal(indices, Digits(seed=2).load_split("test").indices)
    assert indices[:5].tolist() == [0, 1, 2, 4, 5]


def test_pixels_and_labels_are_those_of_scikit_learn():
    source = load_digits()
    images = Digits().load_split("test")
    assert images.images.shape[1:] == (Digits.channels, Digits.image_size, Digits.image_size)
    for pixels, label, index in images:
        assert label == source.target[index]
        assert np.abs(pixels[0].numpy() * (16 / 255) - source.images[index]).max() <= 0.5 * 16 / 255
    assert int(images.images.max()) == 255
    assert set(images.labels.tolist()) == set(range(Digits.num_classes))


def test_training_batches_are_not_augmented():
    module = Digits()
    pixels = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    assert module.augment_batch(pixels, torch.arange(2), 0) is pixels
