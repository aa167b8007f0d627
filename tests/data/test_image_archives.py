"""The same images from a folder, from tar archives and from a packed file; labels beside them; bad archives."""

import io
import os
import pickle
import shutil
import struct
import tarfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from deqcert.data import ImageFolder
from deqcert.data.sources import find_source
from deqcert.errors import DataError, SettingError

SETTINGS = {"image_size": 16, "resize": 20, "num_classes": 2}


def make(root, **settings):
    return ImageFolder(root=str(root), **{**SETTINGS, **settings})


def load(root, split="test", **settings):
    return make(root, **settings).load_split(split)


def add(archive, name, content=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def tar_of(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            add(archive, name, content)
    return path


def members_of(folder, prefix=""):
    """Files of a folder, in no order that anything could rely on."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    files.sort(key=lambda path: path.read_bytes())
    return [(prefix + path.relative_to(folder).as_posix(), path.read_bytes()) for path in files]


def jpeg(color=(200, 30, 60), size=(20, 20)):
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "JPEG")
    return stream.getvalue()


def same(one, other):
    assert one.identity() == other.identity()
    assert one.classes == other.classes
    assert torch.equal(one.labels, other.labels)
    assert all(torch.equal(one[position][0], other[position][0]) for position in range(len(one)))


# Where the bytes are.


def split_tar(root, folder, split, prefix):
    tar_of(root / f"{split}.tar", members_of(folder / split, prefix))


def shards(root, folder, split):
    members = members_of(folder / split)
    for number in range(3):
        tar_of(root / f"{split}-{number:05}.tar", members[number::3])


def official(root, folder, split):
    """As ImageNet's training images are downloaded: a tar of one tar per class."""
    inner = []
    for path in sorted((folder / split).iterdir(), reverse=True):
        tar_of(root / f"{path.name}.tar", members_of(path))
        inner.append((f"{path.name}.tar", (root / f"{path.name}.tar").read_bytes()))
        (root / f"{path.name}.tar").unlink()
    tar_of(root / f"ILSVRC2012_img_{split}.tar", inner)


def in_every_split(write, *arguments):
    def wrapped(root, folder):
        for split in ("train", "val"):
            write(root, folder, split, *(each.format(split) for each in arguments))
        return root

    return wrapped


def one_tar(prefix):
    def write(root, folder):
        members = [each for split in ("train", "val") for each in members_of(folder / split, f"{prefix}{split}/")]
        return tar_of(root / "all.tar", members)

    return write


FORMS = {
    "tar": in_every_split(split_tar, ""),
    "tar of .": in_every_split(split_tar, "./"),
    "tar of the split": in_every_split(split_tar, "{}/"),
    "shards": in_every_split(shards),
    "tar of tars": in_every_split(official),
    "one tar": one_tar(""),
    "one tar of .": one_tar("./"),
    "one tar of a folder": one_tar("my-images/"),
}


@pytest.mark.parametrize("form", FORMS)
def test_archives_hold_what_the_folder_holds(image_folder, tmp_path, form):
    more = image_folder / "val" / "ant" / "more"
    more.mkdir()
    (image_folder / "val" / "ant" / "1.png").rename(more / "1.png")
    (tmp_path / "packed").mkdir()
    packed = FORMS[form](tmp_path / "packed", image_folder)
    for split in ("train", "test"):
        same(load(packed, split), load(image_folder, split))


def test_a_folder_goes_before_an_archive(image_folder):
    tar_of(image_folder / "val.tar", [("cow/0.jpg", jpeg())])
    assert load(image_folder).classes == ("ant", "bee")


def test_identity_of_a_folder_never_changes(tmp_path):
    """Ledgers are resumed by it."""
    files = {"ant/a.JPEG": b"one", "ant/b/c.png": b"three", "ant/b.d/e.png": b"3", "ant/b-c.png": b"4444"}
    files |= {"bee/0.jpg": b"22", "bee-b/é.jpg": b"5"}
    for name, content in files.items():
        (tmp_path / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / name).write_bytes(content)
    assert ImageFolder(root=str(tmp_path), num_classes=3).load_split("test").identity() == {
        "name": "image_folder",
        "images": 6,
        "sha256": "806fe9c2ae0a15f3349575c162a539dc27517c2180a578bc3578074759aaec0a",
        "preprocessing": {"resize": 256, "center_crop": 224, "interpolation": "bilinear"},
    }


def packed_arrays(**replaced):
    images = [jpeg((40 * number, 0, 0)) for number in range(6)]
    arrays = {"wnids": np.array(["n01", "n02"])}
    for split in ("train", "val"):
        arrays[f"{split}_labels"] = np.array([1, 0, 1, 0, 1, 1], np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, images)]).astype(np.uint32)
        arrays[f"{split}_bytes"] = np.frombuffer(b"".join(images), np.uint8)
    return {**arrays, **replaced}, images


def test_a_packed_file_is_the_tree_that_is_unpacked_from_it(tmp_path):
    arrays, images = packed_arrays()
    np.savez(tmp_path / "packed.npz", **arrays)
    for number, (label, content) in enumerate(zip(arrays["val_labels"], images, strict=True)):
        path = tmp_path / "tree" / "val" / arrays["wnids"][label] / f"{number:05}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    packed = load(tmp_path / "packed.npz")
    same(packed, load(tmp_path / "tree"))
    same(pickle.loads(pickle.dumps(packed)), packed)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"val_labels": np.full(6, 2, np.uint8)}, "label 2, but 2 classes"),
        ({"val_offsets": np.arange(7, dtype=np.uint32)}, "val offsets do not match"),
        ({"wnids": np.zeros(2)}, "wnids is float64"),
    ],
)
def test_a_damaged_packed_file(tmp_path, replaced, message):
    np.savez(tmp_path / "packed.npz", **packed_arrays(**replaced)[0])
    with pytest.raises(DataError, match=rf"packed\.npz: .*{message}"):
        load(tmp_path / "packed.npz")


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_read_archives(image_folder, tmp_path, workers):
    shards(tmp_path, image_folder, "val")
    loader = make(tmp_path, num_workers=workers, eval_batch_size=2).test_dataloader()
    expected = load(image_folder)
    for _ in range(2):
        found = {
            int(index): image for images, _, indices in loader for index, image in zip(indices, images, strict=True)
        }
        assert all(torch.equal(found[index], expected[index][0]) for index in range(6))


def test_archives_are_read_after_pickling_and_few_stay_open(image_folder, tmp_path, monkeypatch):
    shards(tmp_path, image_folder, "val")
    images, expected = load(tmp_path), load(image_folder)
    monkeypatch.setattr("deqcert.data.sources._OPEN_ARCHIVES", 2)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(2):
        same(images, expected)
    assert len(images._source._descriptors) == 2
    copied = pickle.loads(pickle.dumps(images))
    assert not copied._source._descriptors
    same(copied, expected)
    del images, copied
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # the shared epoch of a data set is a file, too


def test_an_archive_that_changes_is_refused(image_folder, tmp_path):
    split_tar(tmp_path, image_folder, "val", "")
    images = load(tmp_path)
    images.identity()
    tar_of(tmp_path / "val.tar", [("ant/0.jpg", jpeg()), ("bee/0.jpg", jpeg())])
    with pytest.raises(DataError, match=r"val\.tar: was changed while it was in use"):
        images[0]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("as_root", [False, True])
def test_a_compressed_archive_is_refused(tmp_path, suffix, as_root):
    path = tar_of(tmp_path / "val.tar", [("val/ant/0.jpg", jpeg())], f"w:{suffix}")
    with pytest.raises(DataError, match=r"val\.tar: compressed by .*must be a plain tar"):
        load(path if as_root else tmp_path)


def test_only_compressed_archives(tmp_path):
    tar_of(tmp_path / "val.tar.gz", [("ant/0.jpg", jpeg())], "w:gz")
    with pytest.raises(DataError, match="none of them compressed"):
        make(tmp_path).prepare_data()


MEMBERS = [("ant/0.jpg", jpeg()), ("ant/1.jpg", jpeg()), ("bee/0.jpg", jpeg())]


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(lambda content: content[:0], id="nothing"),
        pytest.param(lambda content: content[:100], id="in the first header"),
        pytest.param(lambda content: content[:700], id="in the first file"),
        pytest.param(lambda content: content[: content.index(b"bee/0.jpg")], id="before the last header"),
        pytest.param(lambda content: content[: content.index(b"bee/0.jpg") + 100], id="in the last header"),
        pytest.param(lambda content: content[: content.index(b"bee/0.jpg") + 600], id="in the last file"),
        pytest.param(lambda content: content.replace(b"ant/1.jpg", b"ant/1.jpq"), id="header that is damaged"),
        pytest.param(lambda content: b"no archive" * 200, id="something else"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_truncated_and_damaged_archives(tmp_path, cut, nested):
    path = tar_of(tmp_path / "val.tar", MEMBERS)
    content = cut(path.read_bytes())
    path.write_bytes(content)
    if nested:  # what follows the inner archive must not be taken for its members
        tar_of(path, [("ant.tar", content), ("bee/5.jpg", jpeg())])
    with pytest.raises(DataError, match=r"val\.tar: .*(truncated|damaged)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("ant/2.jpg", {"type": tarfile.SYMTYPE, "linkname": "0.jpg"}, "'ant/2.jpg' is a link"),
        ("ant/2.jpg", {"type": tarfile.LNKTYPE, "linkname": "ant/0.jpg"}, "'ant/2.jpg' is a link"),
        ("ant/2.jpg", {"type": tarfile.FIFOTYPE}, "'ant/2.jpg' is a link"),
        ("ant/2.jpg", {"pax_headers": {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}}, "a sparse file"),
        ("./ant//0.jpg", {}, "is there twice"),
        ("../ant/0.jpg", {}, "leads out of the archive"),
        ("ant/../../0.jpg", {}, "leads out of the archive"),
        ("/ant/0.jpg", {}, "leads out of the archive"),
    ],
)
def test_members_that_are_refused(tmp_path, name, fields, message):
    with tarfile.open(tmp_path / "val.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for each, content in MEMBERS:
            add(archive, each, content)
        add(archive, name, **fields)
    with pytest.raises(DataError, match=rf"val\.tar: .*{message}"):
        load(tmp_path)


def test_one_name_in_two_shards_is_refused(tmp_path):
    for number in range(2):
        tar_of(tmp_path / f"val-{number}.tar", MEMBERS)
    with pytest.raises(DataError, match=r"val-1\.tar: 'ant/0\.jpg' is there twice; .* over all shards"):
        load(tmp_path)


def test_folders_without_images_and_other_files_in_archives(tmp_path):
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        for each, content in MEMBERS:
            add(archive, each, content)
        add(archive, "ant/notes.txt")
        add(archive, "README")
        add(archive, "bee/more.tar")
        add(archive, "cow", type=tarfile.DIRTYPE)
    with (
        pytest.warns(UserWarning, match=r"left out 2 files, e\.g\. .*val\.tar: ant/notes\.txt"),
        pytest.raises(DataError, match=r"val\.tar: 1 classes have no image, e\.g\. 'cow'"),
    ):
        load(tmp_path)


def test_names_that_are_not_utf8(image_folder, tmp_path):
    path = image_folder / "val" / "ant"
    (path / "0.jpeg").rename(path / os.fsdecode(b"\xff\xfe.jpeg"))
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        archive.add(image_folder / "val", "val")
    same(load(tmp_path), load(image_folder))


def test_damaged_image_in_an_archive_is_named(tmp_path):
    tar_of(tmp_path / "val.tar", [*MEMBERS[:2], ("bee/0.jpg", jpeg()[:300])])
    with pytest.raises(DataError, match=r"val\.tar: bee/0\.jpg: damaged image"):
        list(make(tmp_path).test_dataloader())


# Labels that are not in the names of folders.


def pairs(labels, suffix="jpg"):
    members = []
    for number, label in enumerate(labels):
        members += [(f"{number:04}.{suffix}", jpeg((40 * number, 0, 0))), (f"{number:04}.cls", str(label).encode())]
        members.append((f"{number:04}.json", b"{}"))
    return members


def test_pairs_of_webdataset(tmp_path):
    members = pairs([1, 0, 11, 10, 2])
    tar_of(tmp_path / "val-0.tar", members[6:])
    tar_of(tmp_path / "val-1.tar", members[:6])
    images = load(tmp_path, num_classes=12)
    assert images.labels.tolist() == [1, 0, 11, 10, 2]
    assert images.names == [f"{number:04}.jpg" for number in range(5)]
    assert images.classes == tuple(map(str, range(12)))
    assert [round(float(image[0].float().mean()), -1) for image, *_ in images] == [0, 40, 80, 120, 160]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (pairs([0, 2]), r"0001\.jpg: has the class '2'; must be one of the 2 from '0' to '1'"),
        (pairs([0, "cat"]), r"0001\.cls: holds b'cat'; must be the number of a class"),
        (pairs([0, 1])[:4], r"'0001\.jpg' has no label 0001\.cls"),
    ],
)
def test_bad_pairs(tmp_path, members, message):
    tar_of(tmp_path / "val.tar", members)
    with pytest.raises(DataError, match=rf"val\.tar: .*{message}"):
        load(tmp_path)


def test_numbers_of_pairs_in_a_mapping(tmp_path):
    tar_of(tmp_path / "val.tar", pairs([1, 0, 2]))
    (tmp_path / "map").write_text("0\tzebra\n1\tant\n")
    with pytest.warns(UserWarning, match=r"left out 1 class folders that .*map does not name, e\.g\. '2'"):
        images = load(tmp_path, classes=str(tmp_path / "map"))
    assert (images.classes, images.labels.tolist()) == (("ant", "zebra"), [0, 1])


@pytest.fixture
def flat(tmp_path):
    """Training images in folders n01, n02, n03 and four flat images of val."""
    for name in ("n01", "n02", "n03"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.JPEG").write_bytes(jpeg())
    (tmp_path / "val").mkdir()
    for number in range(1, 5):
        (tmp_path / "val" / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(jpeg((50 * number, 0, 0)))
    return tmp_path


def devkit(path, numbers, leaves, **replaced):
    """The devkit's data folder: classes have numbers, in another order than that of their folders."""
    path.mkdir()
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(float(number), name, "words", 0) for number, name in leaves.items()] + [(9, "n09", "animal", 3)]
    savemat(path / "meta.mat", {"synsets": np.array(rows, dtype=kinds), **replaced})
    (path / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in numbers))
    return str(path / "ILSVRC2012_validation_ground_truth.txt")


@pytest.mark.parametrize("with_train", [True, False])
@pytest.mark.parametrize("archive", [True, False])
def test_ground_truth_of_the_devkit(flat, with_train, archive):
    truth = devkit(flat / "data", [2, 3, 3, 1], {1: "n03", 2: "n01", 3: "n02"})
    if not with_train:
        shutil.rmtree(flat / "train")
    if archive:
        tar_of(flat / "ILSVRC2012_img_val.tar", members_of(flat / "val"))
        shutil.rmtree(flat / "val")
    images = load(flat, num_classes=3, val_labels=truth)
    assert images.labels.tolist() == [0, 1, 1, 2]
    assert images.classes == ("n01", "n02", "n03")
    assert [name[-6] for name in images.names] == ["1", "2", "3", "4"]
    if with_train:
        assert load(flat, "train", num_classes=3, val_labels=truth).labels.tolist() == [0, 1, 2]


def test_a_ground_truth_that_does_not_fit(flat):
    leaves = {1: "n03", 2: "n01", 3: "n02"}
    with pytest.raises(DataError, match="has labels of 3 images, but there are 4"):
        load(flat, num_classes=3, val_labels=devkit(flat / "short", [1, 2, 3], leaves))
    with pytest.raises(DataError, match=r"9 is not the number of a class in .*meta\.mat"):
        load(flat, num_classes=3, val_labels=devkit(flat / "inner", [1, 2, 3, 9], leaves))
    with pytest.raises(DataError, match="has the class 'n04'; must be one of the 3 from 'n01' to 'n03'"):
        load(flat, num_classes=3, val_labels=devkit(flat / "other", [1, 2, 3, 1], {**leaves, 1: "n04"}))
    truth = devkit(flat / "alone", [1, 2, 3, 1], leaves)
    (flat / "alone" / "meta.mat").write_bytes(b"MATLAB")
    with pytest.raises(DataError, match=r"meta\.mat: damaged, or not the devkit's"):
        load(flat, num_classes=3, val_labels=truth)
    (flat / "alone" / "meta.mat").unlink()
    with pytest.raises(DataError, match=r"numbers alone need the devkit's meta\.mat"):
        load(flat, num_classes=3, val_labels=truth)


NAMES = [f"ILSVRC2012_val_{number:08}" for number in range(1, 5)]
TABLES = {
    "kaggle": "ImageId,PredictionString\n"
    + "".join(
        f"{name},{label} 85 1 499 272 {label} 1 2 3 4 \n"
        for name, label in zip(NAMES[::-1], ["n03", "n02", "n02", "n01"], strict=True)
    ),
    "names and numbers": "".join(f"{name}.JPEG {label}\n" for name, label in zip(NAMES, [0, 1, 1, 2], strict=True)),
    "with folders": "".join(f"val/{name}.JPEG\tn0{k}\r\n" for name, k in zip(NAMES, [1, 2, 2, 3], strict=True)),
    "more than there are": "".join(
        f"{name}.JPEG  0{k}\n" for name, k in zip([*NAMES, "x"], [0, 1, 1, 2, 9], strict=True)
    ),
}


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_names_and_classes(flat, table):
    (flat / "labels").write_text(TABLES[table])
    images = load(flat, num_classes=3, val_labels=str(flat / "labels"))
    assert images.labels.tolist() == [0, 1, 1, 2]
    assert images.classes == ("n01", "n02", "n03")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "is empty"),
        (f"{NAMES[0]}\n", r"line 1: 'ILSVRC2012_val_00000001': must be the name of an image and its class"),
        (f"{NAMES[0]} 0\n{NAMES[2]} 0\n", r"has no label of 2 of 4 images, e\.g\. 'ILSVRC2012_val_00000002\.JPEG'"),
        (f"{NAMES[0]} 0\n{NAMES[0]}.JPEG 1\n", "line 2: .* stands there twice, with different classes"),
        ("".join(f"{name} 3\n" for name in NAMES), "00000001.JPEG: has the class '3'; must be one of the 3"),
        ("".join(f"{name} {'9' * 5000}\n" for name in NAMES), "has the class '99"),
        ("9" * 5000 + "\n", "numbers alone need the devkit"),
        ("".join(f"{name} n07\n" for name in NAMES), "00000001.JPEG: has the class 'n07'; must be one of the 3"),
    ],
)
def test_bad_tables(flat, table, message):
    (flat / "labels").write_text(table)
    with pytest.raises(DataError, match=message):
        load(flat, num_classes=3, val_labels=str(flat / "labels"))


def test_a_flat_split_needs_labels(flat):
    with pytest.raises(DataError, match=r"val: has no class folder; val_labels must name"):
        load(flat, num_classes=3)
    with pytest.raises(DataError, match=r"nowhere: must be a regular file"):
        load(flat, num_classes=3, val_labels=str(flat / "nowhere"))
    assert len(load(flat, "train", num_classes=3)) == 3


def test_numbers_without_training_folders(flat):
    shutil.rmtree(flat / "train")
    (flat / "labels").write_text(TABLES["names and numbers"])
    images = load(flat, num_classes=5, val_labels=str(flat / "labels"))
    assert (images.labels.tolist(), images.classes) == ([0, 1, 1, 2], tuple("01234"))


def test_tiny_imagenet_as_it_is_downloaded(tmp_path):
    for name in ("n01", "n02"):
        (tmp_path / "train" / name / "images").mkdir(parents=True)
        for number in range(2):
            (tmp_path / "train" / name / "images" / f"{name}_{number}.JPEG").write_bytes(jpeg())
    (tmp_path / "val" / "images").mkdir(parents=True)
    rows = []
    for number, name in enumerate(("n02", "n01", "n02")):
        (tmp_path / "val" / "images" / f"val_{number}.JPEG").write_bytes(jpeg())
        rows.append(f"val_{number}.JPEG\t{name}\t0\t32\t44\t62\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(rows))
    settings = {"val_labels": str(tmp_path / "val" / "val_annotations.txt")}
    assert load(tmp_path, **settings).labels.tolist() == [1, 0, 1]
    assert load(tmp_path, "train", **settings).labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(DataError, match=r"only one has the class folder 'images'; .*val_labels"):
        load(tmp_path, num_classes=1)


# Class folders of other names.


@pytest.fixture
def mapped(image_folder):
    def write(text, split="test", **settings):
        path = image_folder / "classes.tsv"
        path.write_text(text)
        return load(image_folder, split, classes=str(path), **settings)

    return write


def test_classes_are_numbered_by_their_names_in_the_mapping(mapped):
    images = mapped("ant\tinsect\nbee\tapid\n")
    assert (images.classes, images.labels.tolist()) == (("apid", "insect"), [1, 1, 1, 0, 0, 0])


def test_folders_may_share_a_class_or_be_left_out(mapped, image_folder):
    assert mapped("ant\tinsect\nbee\tinsect", num_classes=1).labels.tolist() == [0] * 6
    with pytest.warns(
        UserWarning, match=r"val: left out 1 class folders that .*classes\.tsv does not name, e\.g\. 'ant'"
    ):
        images = mapped("bee\n\n", num_classes=1)
    assert (images.classes, images.names[0], images.indices.tolist()) == (("bee",), "bee/0.jpeg", [0, 1, 2])


def test_splits_with_folders_of_different_names(mapped, image_folder):
    (image_folder / "val" / "ant").rename(image_folder / "val" / "formica")
    text = "ant\t0\nformica\t0\nbee\t1\n"
    assert mapped(text).labels.tolist() == [1] * 3 + [0] * 3  # bee, formica
    assert mapped(text, "train").labels.tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant\nwasp\nbee\n", r"classes\.tsv: names 1 folders that neither train nor val has, e\.g\. 'wasp'"),
        ("ant\t0\nbee\t1\nant\t1\n", r"classes\.tsv, line 3: the folder 'ant' stands there twice"),
        ("ant\t0\t1\n", r"classes\.tsv, line 1: .*must be FOLDER<TAB>CLASS"),
        ("ant\t\n", r"classes\.tsv, line 1: .*must be FOLDER<TAB>CLASS"),
        ("", r"classes\.tsv: is empty"),
        ("ant\nbee\tant\n", "has 1 class folders, but num_classes = 2"),
    ],
)
def test_bad_mappings(mapped, text, message):
    with pytest.raises(DataError, match=message):
        mapped(text)


# What becomes of the pixels.


def write(image_folder, image, **settings):
    image.save(image_folder / "val" / "ant" / "0.jpeg", **settings)


def first(image_folder, **settings):
    return load(image_folder, **settings)[0][0]


def test_print_colors_of_a_jpeg_come_out_right(image_folder):
    ink = (0, 128, 255, 64)
    write(image_folder, Image.new("CMYK", (40, 20), ink), format="JPEG", quality=95)
    content = (image_folder / "val" / "ant" / "0.jpeg").read_bytes()
    assert b"Adobe" in content  # such files hold the ink inverted
    expected = torch.tensor([(255 - each) * (255 - ink[3]) / 255 for each in ink[:3]])
    assert (first(image_folder).float().mean((1, 2)) - expected).abs().max() < 3


def test_a_palette_comes_out_right(image_folder):
    colors = Image.new("RGB", (40, 20), (10, 200, 30))
    write(image_folder, colors.convert("P", palette=Image.Palette.ADAPTIVE), format="PNG", transparency=0)
    assert first(image_folder).float().mean((1, 2)).tolist() == [10, 200, 30]


def test_color_of_16_bits_is_cut_to_8(image_folder):
    """Pillow cannot write such a file."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = b"\0" + struct.pack(">3H", 0x0AFF, 0xC801, 0x1E80) * 20
    header = struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row * 20)), chunk(b"IEND", b"")
    (image_folder / "val" / "ant" / "0.jpeg").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert first(image_folder).float().mean((1, 2)).tolist() == [0x0A, 0xC8, 0x1E]


def test_exif_orientation_is_applied_if_asked(image_folder):
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 20, 20))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left half is up
    write(image_folder, image, format="JPEG", exif=exif, quality=95)
    stored, turned = first(image_folder), first(image_folder, orientation="exif")
    assert stored[:, :, :6].min() > 200 > 50 > stored[:, :, -6:].max()
    assert turned[:, :6].min() > 200 > 50 > turned[:, -6:].max()
    identities = [load(image_folder, orientation=each).identity() for each in ("stored", "exif")]
    assert identities[0] != identities[1]
    assert "orientation" not in identities[0]["preprocessing"]


def test_images_smaller_than_the_crop_are_enlarged(image_folder):
    write(image_folder, Image.new("RGB", (5, 3), (255, 0, 0)), format="PNG")
    assert torch.equal(
        first(image_folder), torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 16, 16)
    )


# Images that cannot be decoded.


@pytest.fixture
def broken(image_folder):
    (image_folder / "val" / "ant" / "1.png").write_bytes(b"no image")
    (image_folder / "train" / "bee" / "0.jpeg").write_bytes(b"")
    return image_folder


def test_skipping_damaged_images_to_certify(broken):
    with pytest.raises(DataError, match=r"1\.png: damaged image"):
        list(make(broken).certification_set())
    with pytest.warns(UserWarning, match=r"left out 1 of 6 images: .*ant/1\.png: damaged image"):
        examples = make(broken, damaged="skip").certification_set()
    assert examples.indices == [0, 2, 3, 4, 5]
    assert [index for _, _, index in examples] == examples.indices
    assert examples.identity() != make(broken).certification_set().identity()
    assert "damaged" not in make(broken).certification_set().identity()["preprocessing"]
    only = make(broken, damaged="skip", start=1, skip=5)
    with (
        pytest.warns(UserWarning, match="left out 1 of 1"),
        pytest.raises(DataError, match="no image of 6 is selected"),
    ):
        only.certification_set()


def test_skipping_damaged_images_in_batches(broken):
    with pytest.warns(UserWarning, match=r"left out: .*ant/1\.png"):
        batches = list(make(broken, damaged="skip", eval_batch_size=3).test_dataloader())
    assert [indices.tolist() for *_, indices in batches] == [[0, 2], [3, 4, 5]]
    with pytest.warns(UserWarning, match=r"left out: .*bee/0\.jpeg"):
        (batch,) = make(broken, damaged="skip").train_dataloader()
    assert sorted(batch[2].tolist()) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DataError, match="not one of the 1 images of a batch"),
    ):
        list(make(broken, damaged="skip", eval_batch_size=1).test_dataloader())


@pytest.mark.parametrize("damaged", ["refuse", "skip"])
def test_a_file_that_cannot_be_read_is_never_skipped(image_folder, damaged):
    """Ranks that see different files would choose different images."""
    (image_folder / "val" / "ant" / "1.png").unlink()
    (image_folder / "val" / "ant" / "1.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"1\.png: must be a regular file"):
        list(make(image_folder, damaged=damaged).certification_set())


# Training.


def test_crop_and_flip_on_the_device(image_folder):
    module = make(image_folder, augmentation="crop_and_flip", validation_size=3, seed=5)
    (batch,) = module.train_dataloader()
    plain = module.load_split("train")
    for image, _, index in zip(*batch, strict=True):
        assert torch.equal(image, plain[int(index)][0])
    shifted = module.augment_batch(batch[0], batch[2], 0)
    assert shifted.shape == batch[0].shape
    assert not torch.equal(shifted, batch[0])
    assert torch.equal(module.augment_batch(batch[0][:2], batch[2][:2], 0), shifted[:2])
    assert not torch.equal(module.augment_batch(batch[0], batch[2], 1), shifted)


@pytest.mark.parametrize("augmentation", ["resized_crop", "none"])
def test_no_second_augmentation_on_the_device(image_folder, augmentation):
    module = make(image_folder, augmentation=augmentation)
    (batch,) = module.train_dataloader()
    assert module.augment_batch(batch[0], batch[2], 0) is batch[0]
    plain = module.load_split("train")
    same = [torch.equal(image, plain[int(index)][0]) for image, _, index in zip(*batch, strict=True)]
    assert any(same) == all(same) == (augmentation == "none")


@pytest.mark.parametrize("augmentation", ["resized_crop", "crop_and_flip"])
def test_workers_that_live_on_draw_for_the_new_epoch(image_folder, augmentation):
    """Also after an epoch that ended while workers were ahead."""
    loader = make(image_folder, augmentation=augmentation, batch_size=2, num_workers=1).train_dataloader()
    assert loader.persistent_workers
    next(iter(loader))
    process = loader._iterator._workers[0].pid
    for epoch in (1, 4):
        loader.sampler.set_epoch(epoch)
        alone = make(image_folder, augmentation=augmentation, batch_size=2).train_dataloader()
        alone.sampler.set_epoch(epoch)
        for batch, expected in zip(loader, alone, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(batch, expected, strict=True))
        assert loader._iterator._workers[0].pid == process


@pytest.mark.parametrize(("field", "value"), [("augmentation", "crop"), ("orientation", "up"), ("damaged", "ignore")])
def test_bad_choices_are_refused_by_name(field, value):
    with pytest.raises(SettingError, match=f"{field} = '{value}': must be one of "):
        ImageFolder(root="x", **{field: value})


def test_the_official_archive_is_not_read_to_the_end_for_its_classes(image_folder, tmp_path, monkeypatch):
    """A million headers, for the names of a thousand folders."""
    official(tmp_path, image_folder, "train")
    monkeypatch.setattr("deqcert.data.sources.TarSource._table", None)
    assert find_source(tmp_path, "train").folders == {"ant", "bee"}
