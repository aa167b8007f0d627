import json

import pytest
import torch

from deqcert.data.images import TensorImages, to_unit_interval
from deqcert.errors import DataError


def test_batches_equal_single_images(tensor_images):
    images = tensor_images(indices=torch.arange(20) * 3)
    pixels, labels, indices = images.__getitems__([4, 0, 7])
    for row, position in enumerate([4, 0, 7]):
        pixel, label, index = images[position]
        assert torch.equal(pixels[row], pixel)
        assert (int(labels[row]), int(indices[row])) == (label, index) == (position % 10, 3 * position)


def test_subset_keeps_original_indices(tensor_images):
    images = tensor_images()
    subset = images.subset([5, 2]).subset([1])
    assert subset.indices.tolist() == [2]
    assert torch.equal(subset.images[0], images.images[2])


def test_every_pixel_value_maps_into_the_unit_interval():
    values = torch.arange(256, dtype=torch.uint8)
    scaled = to_unit_interval(values)
    assert scaled.dtype == torch.float32
    assert scaled[0] == 0
    assert scaled[255] == 1
    assert torch.equal(torch.round(scaled * 255).to(torch.uint8), values)
    assert torch.equal(values, torch.arange(256, dtype=torch.uint8))


def test_identity_is_json_and_repeats(tensor_images):
    identity = tensor_images().identity()
    assert json.loads(json.dumps(identity)) == identity == tensor_images().identity()
    assert identity["name"] == "random"
    assert identity["images"] == 20


@pytest.mark.parametrize("what", ["images", "labels", "indices"])
def test_identity_changes_with_one_value(tensor_images, what):
    changed = tensor_images()
    getattr(changed, what).view(-1)[3] += 1
    assert changed.identity() != tensor_images().identity()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "uint8"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "labels"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), "labels"),
    ],
)
def test_wrong_tensors_are_refused(images, labels, message):
    with pytest.raises(DataError, match=message):
        TensorImages(images, labels, ("a",), "wrong")
