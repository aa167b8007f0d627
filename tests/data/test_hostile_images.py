"""Whatever stands in an image file: a clear error that names it, or its pixels."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from deqcert.data import ImageFolder, read_image
from deqcert.data.cifar10 import find_reader, read_packed, read_tree
from deqcert.data.decoding import MAXIMUM_PIXELS, opened_image
from deqcert.errors import DataError

GRADIENT = np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (32, 1))
COLOR = np.stack([GRADIENT, GRADIENT.T, 255 - GRADIENT], axis=-1)


def encoded(image, form="PNG", **settings):
    stream = io.BytesIO()
    image.save(stream, form, **settings)
    return stream.getvalue()


def frames(form, **settings):
    first, second = Image.fromarray(COLOR), Image.fromarray(255 - COLOR)
    return encoded(first, form, save_all=True, append_images=[second], **settings)


def png_of_size(width, height):
    """A PNG of a few hundred bytes that says it has this size."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(victim) (w) file closefile\n%%EOF\n"
SIXTEEN = (GRADIENT.astype(np.uint16) * 257).astype("<u2")

HOSTILE = {
    "empty": (b"", "damaged image"),
    "text": (b"no image", "damaged image"),
    "zeros": (bytes(10_000), "damaged image"),
    "postscript": (EPS, "none of JPEG, PNG"),
    "truncated jpeg": (encoded(Image.fromarray(COLOR), "JPEG")[:-60], "truncated"),
    "truncated png": (encoded(Image.fromarray(COLOR))[:-60], "damaged image"),
    "png without pixels": (png_of_size(32, 32), "truncated"),
    "warned of": (png_of_size(MAXIMUM_PIXELS // 8000 + 1, 8000), "pixels"),
    "bomb": (png_of_size(60_000, 60_000), "pixels"),
    "largest header": (png_of_size(2**31 - 1, 2**31 - 1), "pixels"),
    "animated gif": (frames("GIF"), "animation"),
    "animated png": (frames("PNG"), "animation"),
    "animated webp": (frames("WEBP"), "animation"),
    "pages": (frames("TIFF"), "several pages"),
    "16-bit gray png": (encoded(Image.fromarray(SIXTEEN)), "16 or 32 bits"),
    "16-bit gray tiff": (encoded(Image.fromarray(SIXTEEN), "TIFF"), "16 or 32 bits"),
    "32-bit tiff": (encoded(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"), "16 or 32 bits"),
    "float tiff": (encoded(Image.fromarray(GRADIENT / np.float32(255)), "TIFF"), "16 or 32 bits"),
}


@pytest.fixture
def folder(image_folder):
    """Reads a file that is put among others."""

    def read(content, resize=20, name="0.jpeg", split="test"):
        path = image_folder / {"test": "val", "train": "train"}[split] / "ant" / name
        path.write_bytes(content)
        module = ImageFolder(root=str(image_folder), image_size=16, resize=resize, num_classes=2)
        return module.load_split(split)[0][0]

    return read


@pytest.mark.parametrize("warned", ["error", "ignore"])  # the refusal must not hang on the warning
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_in_a_folder(folder, name, warned):
    content, message = HOSTILE[name]
    with warnings.catch_warnings():
        warnings.simplefilter(warned, Image.DecompressionBombWarning)
        with pytest.raises(DataError, match=rf"0\.jpeg: .*{message}"):
            folder(content)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_in_a_tree(tmp_path, name):
    file = tmp_path / "test" / "cat" / "00003.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(HOSTILE[name][0])
    with pytest.raises(DataError, match=r"00003\.png: "):
        read_tree(tmp_path, "test")


@pytest.mark.parametrize("error", [struct.error, zlib.error, EOFError, IndexError, KeyError, MemoryError, SystemError])
def test_whatever_a_decoder_raises(folder, monkeypatch, error):
    def broken(self):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", broken)
    with pytest.raises(DataError, match=rf"0\.jpeg: damaged image.*: {error.__name__}$"):
        folder(encoded(Image.fromarray(COLOR)))


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
@pytest.mark.parametrize("split", ["test", "train"])
def test_extreme_aspect_ratio(folder, size, split):
    """Its shorter side resized to 256 pixels, the other one would have 15 million."""
    content = encoded(Image.new("RGB", size))
    with pytest.raises(DataError, match=r"0\.jpeg: resized to 256 pixels on its shorter side: 256 x 15360000 pixels"):
        folder(content, resize=256, split=split)


def test_resizing_to_a_huge_size(folder):
    with pytest.raises(DataError, match=r"resized to 1000000 pixels .* allowed are 89478485"):
        folder(encoded(Image.fromarray(COLOR)), resize=10**6)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_limits_are_inclusive(folder):
    assert folder(encoded(Image.new("RGB", (4, 4000))), resize=20).shape == (3, 16, 16)
    content = png_of_size(MAXIMUM_PIXELS, 1)
    with opened_image(content, "largest") as image:
        assert image.size == (MAXIMUM_PIXELS, 1)
    with (
        pytest.raises(DataError, match="larger: 89478486 x 1 pixels"),
        opened_image(png_of_size(MAXIMUM_PIXELS + 1, 1), "larger"),
    ):
        pass


@pytest.mark.parametrize("kind", ["pipe", "dangling", "loop", "device"])
def test_what_is_no_file(image_folder, kind):
    path = image_folder / "val" / "ant" / "0.jpeg"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"dangling": "nowhere", "loop": "0.jpeg", "device": "/dev/zero"}[kind])
    images = ImageFolder(root=str(image_folder), image_size=16, resize=20, num_classes=2).load_split("test")
    with pytest.raises(DataError, match=r"0\.jpeg: must be a regular file"):
        images[0]
    if kind in ("dangling", "loop"):
        with pytest.raises(DataError, match=r"0\.jpeg: "):
            images.identity()


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_in_a_tree(tmp_path, kind):
    path = tmp_path / "test" / "cat" / "00003.png"
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(DataError, match=r"00003\.png: must be a regular file"):
        read_tree(tmp_path, "test")


def test_a_pipe_as_root(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="no such file or folder"):
        find_reader(tmp_path / "pipe")


@pytest.mark.parametrize("target", [".", "../ant", "../bee"])
def test_links_do_not_list_images_twice(image_folder, target):
    (image_folder / "val" / "ant" / "more").symlink_to(target)
    with pytest.raises(DataError, match=r"every folder must be listed once"):
        ImageFolder(root=str(image_folder), num_classes=2).load_split("test")


def test_links_to_folders_and_files_elsewhere_are_followed(image_folder, tmp_path):
    (image_folder / "val" / "ant").rename(tmp_path / "elsewhere")
    (image_folder / "val" / "ant").symlink_to(tmp_path / "elsewhere")
    (image_folder / "val" / "bee" / "9.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    assert len(ImageFolder(root=str(image_folder), num_classes=2).load_split("test")) == 7


def test_names_that_are_not_utf8(image_folder):
    path = image_folder / "val" / "ant"
    (path / "0.jpeg").rename(path / os.fsdecode(b"\xff\xfe.jpeg"))
    images = ImageFolder(root=str(image_folder), image_size=16, resize=20, num_classes=2).load_split("test")
    assert len(images.identity()["sha256"]) == 64
    assert [images[position][0].shape for position in range(3)] == [(3, 16, 16)] * 3


# What is no attack.


def test_pictures_with_a_preview_are_photographs(folder):
    photograph, preview = Image.fromarray(COLOR), Image.fromarray(255 - COLOR)
    content = encoded(photograph, "MPO", save_all=True, append_images=[preview])
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    assert torch.equal(folder(content), folder(encoded(photograph, "JPEG")))


ALPHA = Image.fromarray(np.dstack([COLOR, GRADIENT]))
ORDINARY = {
    "gray": (Image.fromarray(GRADIENT), "PNG"),
    "two colors": (Image.fromarray(GRADIENT).convert("1"), "PNG"),
    "palette": (Image.fromarray(COLOR).quantize(16), "PNG"),
    "still gif": (Image.fromarray(COLOR).quantize(16), "GIF"),
    "gray with alpha": (Image.fromarray(np.dstack([GRADIENT, GRADIENT])), "PNG"),
    "alpha": (ALPHA, "PNG"),
    "print": (Image.fromarray(COLOR).convert("CMYK"), "TIFF"),
    "bmp": (Image.fromarray(COLOR), "BMP"),
    "ppm": (Image.fromarray(COLOR), "PPM"),
    "webp": (Image.fromarray(COLOR), "WEBP"),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_images_are_what_pillow_makes_of_them(folder, name):
    image, form = ORDINARY[name]
    content = encoded(image, form)
    with Image.open(io.BytesIO(content)) as opened:
        expected = np.asarray(opened.convert("RGB").resize((20, 20), Image.Resampling.BILINEAR))[2:18, 2:18]
    assert torch.equal(folder(content), torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_flipped_bytes_are_refused_or_decoded(folder):
    random = np.random.default_rng(0)
    outcomes = []
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF"):
        content = np.frombuffer(encoded(Image.fromarray(COLOR), form), np.uint8)
        for _ in range(60):
            changed = content.copy()
            # Headers are short and do most.
            places = random.integers(0, random.choice([64, len(content)]), 3)
            changed[places] = random.integers(0, 256, 3)
            try:
                outcomes.append(tuple(folder(changed.tobytes()).shape))
            except DataError as error:
                outcomes.append("0.jpeg: " in str(error))
    assert set(outcomes) == {(3, 16, 16), True}
    assert 50 < outcomes.count(True) < len(outcomes) - 50


# The packed file of CIFAR-10.


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"test_labels": np.zeros(12)}, "test_labels is float64"),
        ({"test_labels": np.zeros((12, 1), np.uint8)}, "test_labels is uint8 with 2 dimensions"),
        ({"test_offsets": np.array(["a"] * 13)}, "test_offsets is <U1"),
        ({"test_offsets": np.uint32(3)}, "test_offsets is uint32 with 0 dimensions"),
        ({"test_scan": np.zeros(3, np.uint16)}, "test_scan is uint16"),
        ({"header": np.array(["x"])}, "header is <U1"),
        ({"classes": np.array("cat")}, "classes is <U3 with 0 dimensions"),
        ({"test_labels": np.zeros(10**7, np.uint8), "test_offsets": np.zeros(10**7 + 1, np.uint8)}, "10000000 test"),
    ],
)
def test_arrays_of_another_kind(pack, replaced, message):
    with pytest.raises(DataError, match=rf"packed\.npz: .*{message}"):
        read_packed(pack(**replaced), "test")


def test_offsets_whose_differences_overflow(pack):
    path = pack(count=4)
    with np.load(path) as archive:
        end = len(archive["test_scan"])
    offsets = np.array([0, 2**63 - 1, -(2**63), -1, end], np.int64)
    assert (np.diff(offsets) >= 0).all()
    with pytest.raises(DataError, match="offsets do not match"):
        read_packed(pack(count=4, test_offsets=offsets), "test")


def test_a_packed_file_that_would_fill_the_memory(tmp_path):
    path = tmp_path / "packed.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("classes.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(65):
            member.write(bytes(2**24))
    assert path.stat().st_size < 2**23
    with pytest.raises(DataError, match="bytes when unpacked; allowed are 1073741824"):
        read_packed(path, "test")


def test_an_array_that_says_it_is_huge(pack):
    path = pack()
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "|u1", "fortran_order": False, "shape": (2**60,)})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, huge.getvalue() if name == "test_scan.npy" else content)
    with pytest.raises(DataError, match=r"packed\.npz: damaged"):
        read_packed(path, "test")


@pytest.mark.parametrize(("channels", "expected"), [(1, (1, 32, 32)), (3, (3, 32, 32))])
@pytest.mark.parametrize("pixels", [GRADIENT, COLOR], ids=["gray", "color"])
def test_an_image_is_read_in_the_channels_of_the_network(channels, expected, pixels):
    image = read_image(encoded(Image.fromarray(pixels)), "upload", channels, size=32)
    assert image.shape == expected
    assert image.dtype == torch.float32
    if pixels.ndim == channels == 3:
        assert torch.equal((image * 255).round().byte(), torch.from_numpy(COLOR.copy()).permute(2, 0, 1))
    if channels == 1 and pixels.ndim == 2:
        assert torch.equal((image[0] * 255).round().byte(), torch.from_numpy(GRADIENT))


def test_an_image_of_another_size_is_refused_by_name():
    with pytest.raises(DataError, match="upload: 32 x 16 pixels; the network takes 32 x 32"):
        read_image(encoded(Image.fromarray(GRADIENT[:16])), "upload", 1, 32)
    with pytest.raises(DataError, match="upload: damaged image"):
        read_image(b"no image", "upload")
