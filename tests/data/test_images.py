import json

import pytest
import torch

from deqcert.data.images import CertificationSet, IndexedImages, TensorImages, to_unit_interval
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


class FloatImages(IndexedImages):
    """Two float images, the second with one chosen pixel value."""

    def __init__(self, pixel):
        super().__init__(torch.tensor([0, 1]), ("a", "b"), "floats", torch.tensor([5, 9]))
        self.images = torch.full((2, 1, 2, 2), 0.5)
        self.images[1, 0, 1, 1] = pixel

    def __getitem__(self, position):
        return self.images[position], int(self.labels[position]), int(self.indices[position])

    def __getitems__(self, positions):
        return self.images[positions], self.labels[positions], self.indices[positions]

    def subset(self, positions):
        raise NotImplementedError

    @property
    def sha256(self):
        return ""


def test_examples_are_floats_with_original_indices(tensor_images):
    images = tensor_images(indices=torch.arange(20) + 100)
    examples = CertificationSet(images, range(3, 20, 8), "test", 10)
    assert len(examples) == 3
    assert examples.indices == [103, 111, 119]
    assert [index for _, _, index in examples] == examples.indices
    image, label, _ = examples[1]
    assert image.dtype == torch.float32
    assert image.shape == (3, 8, 8)
    assert torch.equal(torch.round(image * 255).to(torch.uint8), images.images[11])
    assert (type(label), label) == (int, 1)


def test_identity_is_that_of_the_whole_split(tensor_images):
    few = CertificationSet(tensor_images(), [3], "test", 10).identity()
    many = CertificationSet(tensor_images(), range(20), "test", 10).identity()
    assert few == many
    assert json.loads(json.dumps(few)) == few
    assert few["images"] == 20
    assert few != CertificationSet(tensor_images(), [3], "train", 10).identity()


def test_nothing_selected_is_refused(tensor_images):
    with pytest.raises(DataError, match="no image of 20"):
        CertificationSet(tensor_images(), [], "test", 10)


@pytest.mark.parametrize("label", [-1, 10])
def test_label_out_of_range_is_refused_before_any_work(tensor_images, label):
    images = tensor_images(indices=torch.arange(20) + 100)
    images.labels[4] = label
    with pytest.raises(DataError, match=f"image 104 has label {label}, .*10"):
        CertificationSet(images, range(20), "test", 10)
    assert len(CertificationSet(images, [3], "test", 10)) == 1


@pytest.mark.parametrize("pixel", [float("nan"), -0.001, 1.001, float("inf")])
def test_pixel_out_of_range_is_refused(pixel):
    examples = CertificationSet(FloatImages(pixel), [0, 1], "test", 2)
    assert torch.equal(examples[0][0], torch.full((1, 2, 2), 0.5))
    with pytest.raises(DataError, match="image 9"):
        examples[1]
