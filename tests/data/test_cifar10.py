import pickle
import shutil
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from deqcert.data import CIFAR10
from deqcert.data.cifar10 import CLASSES, SIZES, read_batches, read_packed, read_tree
from deqcert.errors import DataError, SettingError

FIRST_TEST_LABELS = [3, 8, 8, 0, 6]


def write_tree(root: Path, packed: Path, positions: list[int]) -> None:
    """Write some test JPEGs of a packed file as a tree, byte by byte."""
    with np.load(packed, allow_pickle=False) as archive:
        header, trailer = archive["header"].tobytes(), archive["trailer"].tobytes()
        labels, offsets = archive["test_labels"], archive["test_offsets"]
        scan = archive["test_scan"].tobytes()
    for position in positions:
        folder = root / "test" / CLASSES[labels[position]]
        folder.mkdir(parents=True, exist_ok=True)
        jpeg = header + scan[offsets[position] : offsets[position + 1]] + trailer
        (folder / f"{position:05d}.jpg").write_bytes(jpeg)


# The real data


def test_real_test_split(real_cifar10):
    module = CIFAR10(root=str(real_cifar10))
    module.prepare_data()
    examples = module.certification_set()
    assert len(examples) == SIZES["test"]
    assert examples.indices == list(range(SIZES["test"]))
    assert [examples[position][1] for position in range(5)] == FIRST_TEST_LABELS
    image = examples[0][0]
    assert image.shape == (module.channels, module.image_size, module.image_size)
    images = module.load_split("test")
    assert torch.bincount(images.labels).tolist() == [1000] * 10
    assert torch.allclose(
        images.images.double().mean((0, 2, 3)) / 255, torch.tensor([0.49, 0.48, 0.45]).double(), atol=0.01
    )


def test_real_training_labels(real_cifar10):
    with np.load(real_cifar10, allow_pickle=False) as archive:
        assert archive["classes"].tolist() == list(CLASSES)
        assert archive["train_labels"][:5].tolist() == [6, 9, 9, 4, 1]


def test_real_tree_equals_packed_file(real_cifar10, tmp_path):
    positions = [0, 1, 2, 3, 4, 17, 9999]
    write_tree(tmp_path, real_cifar10, positions)
    tree = CIFAR10(root=str(tmp_path)).load_split("test")
    expected = read_packed(real_cifar10, "test").subset(positions)
    assert tree.indices.tolist() == positions
    assert tree.labels[:5].tolist() == FIRST_TEST_LABELS
    assert torch.equal(tree.labels, expected.labels)
    assert torch.equal(tree.images, expected.images)
    assert tree.identity() == expected.identity()


# The packed file


def test_packed_file_and_whole_tree_have_one_identity(pack, tmp_path):
    packed = pack()
    write_tree(tmp_path, packed, list(range(12)))
    assert read_tree(tmp_path, "test").identity() == read_packed(packed, "test").identity()


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"classes": np.array(["cat", "dog"])}, "classes"),
        ({"test_labels": np.full(12, 10, np.uint8)}, "label 10"),
        ({"test_labels": np.zeros(11, np.uint8)}, "offsets"),
        ({"test_offsets": np.zeros(13, np.uint32)}, "offsets"),
        ({"test_offsets": np.arange(13, dtype=np.uint32)[::-1]}, "offsets"),
        ({"test_scan": np.zeros(3, np.uint8)}, "offsets"),
        ({"header": np.zeros(20, np.uint8)}, "test image 0: damaged"),
        ({"classes": np.array([None])}, "damaged"),
    ],
)
def test_damaged_arrays_are_refused(pack, replaced, message):
    path = pack(**replaced)
    with pytest.raises(DataError, match=message):
        read_packed(path, "test")


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "npy", "byte"])
def test_damaged_file_is_refused(pack, damage):
    path = pack()
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "byte":
        middle = content.index(b"test_scan") + 2000
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    elif damage == "npy":
        with path.open("wb") as stream:
            np.save(stream, np.arange(3))
    else:
        path.write_bytes(b"" if damage == "empty" else b"not a packed file")
    module = CIFAR10(root=str(path))
    with pytest.raises(DataError, match=r"packed\.npz.*damaged"):
        module.load_split("test")


def test_missing_array_is_refused(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, something=np.zeros(3))
    with pytest.raises(DataError, match="classes"):
        read_packed(path, "test")


def test_images_of_another_size_are_refused(pack):
    with pytest.raises(DataError, match="must be 32 x 32 RGB"):
        read_packed(pack(size=16), "test")


# The tree


@pytest.fixture
def tree(pack, tmp_path):
    write_tree(tmp_path / "tree", pack(), [1, 3, 11])
    return tmp_path / "tree"


def test_tree_with_few_images_keeps_indices_and_class_numbers(tree):
    (tree / "test" / "truck").mkdir()
    (tree / "test" / ".hidden").touch()
    images = read_tree(tree, "test")
    assert images.indices.tolist() == [1, 3, 11]
    assert images.labels.tolist() == [1, 3, 1]
    module = CIFAR10(root=str(tree), skip=2)
    module.prepare_data()
    assert module.certification_set().indices == [1, 11]


@pytest.mark.parametrize("name", ["unicorn/00000.jpg", "cat/first.jpg", "cat/00004.txt", "cat/10000.jpg"])
def test_unknown_names_are_refused(tree, name):
    path = tree / "test" / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(DataError, match=name):
        read_tree(tree, "test")


def test_index_that_occurs_twice_is_refused(tree):
    shutil.copy(tree / "test" / "cat" / "00003.jpg", tree / "test" / "cat" / "3.jpg")
    with pytest.raises(DataError, match="index 3 occurs twice"):
        read_tree(tree, "test")


@pytest.mark.parametrize("keep", [0, 100, 0.7])
def test_truncated_image_is_refused_by_name(tree, keep):
    file = tree / "test" / "cat" / "00003.jpg"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(DataError, match=r"00003\.jpg"):
        read_tree(tree, "test")


def test_absent_or_empty_split_is_refused(tree):
    for _ in range(2):
        with pytest.raises(DataError, match="train: holds no image"):
            CIFAR10(root=str(tree)).load_split("train")
        (tree / "train").mkdir(exist_ok=True)


# Torchvision's folder


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """Three images per batch file in the layout of the python version, with matching checksums."""
    folder = tmp_path / "python" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5((folder / name).read_bytes()).hexdigest()]

    def batch(name):
        return write(name, {"data": random.integers(0, 256, (3, 3072), dtype=np.uint8), "labels": [3, 8, 0]})

    source = torchvision.datasets.CIFAR10
    monkeypatch.setattr(source, "train_list", [batch(f"data_batch_{number}") for number in range(1, 6)])
    monkeypatch.setattr(source, "test_list", [batch("test_batch")])
    name, checksum = write("batches.meta", {"label_names": list(CLASSES)})
    monkeypatch.setattr(source, "meta", {"filename": name, "key": "label_names", "md5": checksum})
    return tmp_path / "python"


def test_torchvision_folder_in_original_order(batches):
    module = CIFAR10(root=str(batches))
    module.prepare_data()
    train, test = module.load_split("train"), module.load_split("test")
    assert train.indices.tolist() == list(range(15))
    assert test.labels.tolist() == [3, 8, 0]
    content = pickle.loads((batches / "cifar-10-batches-py" / "test_batch").read_bytes())
    assert torch.equal(test.images, torch.from_numpy(content["data"].reshape(3, 3, 32, 32)))


def test_damaged_torchvision_folder_is_refused(batches):
    (batches / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        read_batches(batches, "test")


def test_download_is_left_to_torchvision(batches, tmp_path, monkeypatch):
    root, calls = tmp_path / "fresh", []

    def fetch(self):
        calls.append(self.root)
        shutil.copytree(batches, root)

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fetch)
    module = CIFAR10(root=str(root), download=True)
    module.prepare_data()
    assert calls == [str(root)]
    assert module.certification_set().indices == [0, 1, 2]
    assert len(calls) == 1


def test_failed_download_is_reported(tmp_path, monkeypatch):
    def fail(self):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    with pytest.raises(DataError, match="cannot be read or downloaded: no route to host"):
        CIFAR10(root=str(tmp_path), download=True).prepare_data()


def test_download_into_a_file_is_refused(pack):
    with pytest.raises(SettingError, match="download = True"):
        CIFAR10(root=str(pack()), download=True).prepare_data()


# Any root


@pytest.mark.parametrize("kind", ["missing", "empty", "other"])
def test_root_without_data_is_refused_with_what_is_allowed(tmp_path, kind):
    root = tmp_path / kind
    if kind != "missing":
        root.mkdir()
    if kind == "other":
        (root / "notes").mkdir()
    with pytest.raises(DataError, match=rf"root = .*{kind}.*download: true.*test.*<class>.*cifar10_jpeg\.npz"):
        CIFAR10(root=str(root)).prepare_data()


@pytest.mark.parametrize("augment", [True, False])
def test_augmentation_can_be_switched_off(augment):
    module = CIFAR10(augment=augment)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    augmented = module.augment_batch(pixels, torch.arange(49_992, 50_000), epoch=1)
    assert torch.equal(augmented, pixels) is not augment
