"""ImageNet, or any other data set of color images in files or archives, decoded when they are asked for."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from deqcert.data.augmentation import CropAndFlip
from deqcert.data.base import ImageDataModule, Split
from deqcert.data.decoding import EXTENSIONS, demand_pixels, opened_image
from deqcert.data.images import Batch, Example, IndexedImages
from deqcert.data.labels import StatedLabels, read_class_map, read_labels
from deqcert.data.sources import Source, TarSource, find_source
from deqcert.data.streams import DataPurpose, raw_stream
from deqcert.errors import DataError, require, require_count

_FOLDERS: dict[Split, str] = {"train": "train", "test": "val"}
_ENDS = f"names of images end in {' '.join(EXTENSIONS)}"


class ImageFolder(ImageDataModule):
    """Images in ``train/<class>/*`` and ``val/<class>/*``, in folders or in tar archives; the test split is ``val``.

    Classes are numbered in the sorted order of their folders, images in the sorted order of their files.
    Both splits must have the same class folders, or a label of one would be another class in the other; where only one
    of them is there, it cannot be compared. ``docs/data.md`` lists all layouts.

    Args:
        root: Folder that holds train and val, or their archives; or one tar archive, or a packed .npz file, with both.
        image_size: Side of the images the model sees, pixels, >= 1.
        resize: Shorter side to which evaluation images are resized before cropping, pixels, >= image_size.
        num_classes: Number of classes, >= 1.
        augmentation: Of training images: resized_crop (random crops of random size, flips; by the workers),
            crop_and_flip (shifts by up to 4 pixels, flips; on the device, of images that are resized and cropped as for
            evaluation), or none.
        val_labels: File with the labels of val where they are not in class folders: the ground truth in the devkit of
            ImageNet, or a table of names and classes.
        classes: File with lines FOLDER<TAB>CLASS, for class folders of other names. Classes are numbered in the sorted
            order of CLASS, and folders that are not in the file are left out.
        orientation: Whether pixels are taken as they are stored, or turned as the EXIF data says.
        damaged: Whether an image that cannot be decoded is refused, or skipped with a warning.
        **settings: Settings of every data module, see :class:`ImageDataModule`.
    """

    channels = 3

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        resize: int = 256,
        num_classes: int = 1000,
        augmentation: Literal["resized_crop", "crop_and_flip", "none"] = "resized_crop",
        val_labels: str | None = None,
        classes: str | None = None,
        orientation: Literal["stored", "exif"] = "stored",
        damaged: Literal["refuse", "skip"] = "refuse",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        require_count("image_size", image_size, 1)
        require(resize >= image_size, "resize", resize, f"must be >= image_size = {image_size}")
        require_count("num_classes", num_classes, 1)
        for field, value, allowed in (
            ("augmentation", augmentation, ("resized_crop", "crop_and_flip", "none")),
            ("orientation", orientation, ("stored", "exif")),
            ("damaged", damaged, ("refuse", "skip")),
        ):
            require(value in allowed, field, value, f"must be one of {', '.join(allowed)}")
        self.root = root
        self.image_size = image_size
        self.resize = resize
        self.num_classes = num_classes
        self.augmentation = augmentation
        self.val_labels = val_labels
        self.classes = classes
        self.orientation = orientation
        self.damaged = damaged

    def prepare_data(self) -> None:
        """Raise :class:`DataError` if ``root`` holds neither train nor val."""
        if not any(self._find(split) for split in _FOLDERS):
            raise DataError(
                f"root = {self.root!r}: must be a folder with {{train,val}}/<class>/<images>, with {{train,val}}.tar, "
                "with shards {train,val}-*.tar or with ILSVRC2012_img_{train,val}.tar (none of them compressed); a tar "
                "archive of {train,val}/<class>/<images>; or tiny_imagenet_jpeg.npz"
            )

    def load_split(self, split: Split) -> FileImages:
        """List the images of one whole split, sorted.

        Raises:
            DataError: The split is missing or cannot be read, has another number of classes or, if both are there,
                other class folders than the other split; or a class has no image, or an image no class.
        """
        source = self._find(split)
        if source is None:
            self.prepare_data()
            raise DataError(f"root = {self.root!r}: has no {_FOLDERS[split]}")
        positions, labels, classes = self._labeled(source, split)
        if len(classes) != self.num_classes:
            raise DataError(f"{source.origin}: has {len(classes)} class folders, but num_classes = {self.num_classes}")
        if self.classes is None and self.val_labels is None:
            self._demand_same_folders(source, split)
        return FileImages(
            source,
            positions,
            labels,
            classes,
            image_size=self.image_size,
            resize=self.resize,
            random_crops=self.augmentation == "resized_crop",
            orientation=self.orientation,
            damaged=self.damaged,
        )

    def augment_batch(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Crop and flip ``images`` (B, C, H, W) at random, if that is the augmentation."""
        return self._crop_and_flip(images, indices, epoch) if self.augmentation == "crop_and_flip" else images

    @cached_property
    def _crop_and_flip(self) -> CropAndFlip:
        return CropAndFlip(self.seed, count=len(self._train_split))

    def _find(self, split: Split) -> Source | None:
        return find_source(Path(self.root), _FOLDERS[split])

    def _class_folders(self, split: Split) -> frozenset[str]:
        source = self._find(split)
        return source.folders if source else frozenset()

    def _labeled(self, source: Source, split: Split) -> tuple[list[int], list[int], tuple[str, ...]]:
        """Return the positions of the images in the source, sorted, their labels, and the classes."""
        names = source.names
        images = [position for position, name in enumerate(names) if name.lower().endswith(EXTENSIONS)]
        images.sort(key=lambda position: names[position].rpartition("/")[::2])
        stated = self._stated(source, split, [names[position] for position in images])
        if stated is None:
            # By class first: in the order of whole folders, "ant-b" would come between "ant" and "ant/b".
            images = sorted((p for p in images if "/" in names[p]), key=lambda p: names[p].partition("/")[0])
            folders = [names[position].partition("/")[0] for position in images]
        else:
            folders = stated.labels
        _warn_of_others(source, images)

        if self.classes is not None:
            mapping = self._mapping(Path(self.classes), source.folders.union(folders), split)
        elif stated is None:
            mapping = {folder: folder for folder in source.folders}
        else:
            mapping = {folder: folder for folder in self._class_folders("train") or stated.classes}
        classes = sorted(set(mapping.values())) or [str(number) for number in range(self.num_classes)]
        rank_of = {name: number for number, name in enumerate(classes)}
        number_of = {folder: rank_of[name] for folder, name in mapping.items()}
        # Stated numbers are those of classes, unless folders are called so.
        if stated is not None and not stated.classes and not number_of.keys() & set(folders):
            folders = [number.lstrip("0") or "0" for number in folders]
            number_of = {str(number): number for number in range(len(classes))}
        elif self.classes is not None:
            images, folders = self._without_others(source, images, folders, number_of)

        labels = []
        for position, folder in zip(images, folders, strict=True):
            if folder not in number_of:
                allowed = f"must be one of the {len(classes)} from {classes[0]!r} to {classes[-1]!r}, or its number"
                raise DataError(f"{source.place(position)}: has the class {folder!r}; {allowed}")
            labels.append(number_of[folder])
        if stated is None and (empty := sorted(set(range(len(classes))) - set(labels))):
            named = ", ".join(repr(classes[number]) for number in empty[:5])
            raise DataError(f"{source.origin}: {len(empty)} classes have no image, e.g. {named}; {_ENDS}")
        if not labels:
            raise DataError(f"{source.origin}: holds no image; {_ENDS}")
        return images, labels, tuple(classes)

    def _stated(self, source: Source, split: Split, names: Sequence[str]) -> StatedLabels | None:
        """Return the labels that stand in files; None where the folder of an image is its class."""
        if split == "test" and self.val_labels is not None:
            return read_labels(Path(self.val_labels), names)
        if isinstance(source, TarSource) and source.paired:
            return StatedLabels(source.paired_labels(names), [])
        if not source.folders:
            hint = "; val_labels must name the file with the labels of a flat val" if split == "test" else ""
            raise DataError(f"{source.origin}: has no class folder{hint}")
        return None

    def _demand_same_folders(self, source: Source, split: Split) -> None:
        other = self._find("train" if split == "test" else "test")
        if source.folders and other and other.folders and (odd := source.folders ^ other.folders):
            allowed = f"only one has the class folder {min(odd)!r}; both must have it, or val_labels the labels of val"
            raise DataError(f"{source.origin} and {other.origin}: {allowed}")

    def _mapping(self, path: Path, folders: frozenset[str], split: Split) -> dict[str, str]:
        """Read the mapping of class folders, each of which must be there in one of the splits."""
        mapping = read_class_map(path)
        if mapping.keys() - folders:
            folders |= self._class_folders("train" if split == "test" else "test")
        if unknown := sorted(mapping.keys() - folders):
            raise DataError(f"{path}: names {len(unknown)} folders that neither train nor val has, e.g. {unknown[0]!r}")
        return mapping

    def _without_others(
        self, source: Source, images: list[int], folders: list[str], known: Mapping[str, int]
    ) -> tuple[list[int], list[str]]:
        """Leave out images whose folder the mapping does not name."""
        if others := sorted(source.folders.union(folders) - known.keys()):
            named = f"{len(others)} class folders that {self.classes} does not name, e.g. {others[0]!r}"
            warnings.warn(f"{source.origin}: left out {named}", stacklevel=2)
        kept = [pair for pair in zip(images, folders, strict=True) if pair[1] in known]
        return [position for position, _ in kept], [folder for _, folder in kept]


def _warn_of_others(source: Source, images: Sequence[int]) -> None:
    """Warn of files that are not among the ``images``; not of hidden ones, labels, and what lies beside the folders."""
    used, paired = set(images), isinstance(source, TarSource) and source.paired
    others = [
        position
        for position, name in enumerate(source.names)
        if position not in used
        and not name.rpartition("/")[2].startswith(".")
        and ("/" in name or name.lower().endswith(EXTENSIONS))
        and not (paired and name.endswith(".cls"))
    ]
    if others:
        left_out = f"left out {len(others)} files, e.g. {source.place(others[0])}"
        warnings.warn(f"{source.origin}: {left_out}; {_ENDS}, in class folders", stacklevel=2)


class FileImages(IndexedImages):
    """Images in the files of a source, as uint8 (3, S, S); the original index is the position in the sorted list.

    The shorter side is resized to ``resize`` (smaller images are enlarged) and the center is cropped to S =
    ``image_size``, pixels. :meth:`augmented` images are cropped, resized and flipped at random instead, as a function
    of (seed, epoch, index).

    Args:
        source: The files.
        positions: Which of them are the images, in the order of their original indices.
        labels: The label of each.
        classes: Names of the classes.
        image_size: Side of the images, pixels.
        resize: Shorter side before cropping, pixels.
        random_crops: Whether augmented images are cropped at random.
        orientation: ``exif`` turns images as their EXIF data says, ``stored`` does not.
        damaged: Whether to ``refuse`` or ``skip`` images that cannot be decoded.
    """

    def __init__(
        self,
        source: Source,
        positions: Sequence[int],
        labels: Sequence[int],
        classes: tuple[str, ...],
        *,
        image_size: int,
        resize: int,
        random_crops: bool,
        orientation: Literal["stored", "exif"],
        damaged: Literal["refuse", "skip"],
    ) -> None:
        super().__init__(torch.tensor(labels), classes, "image_folder", torch.arange(len(labels)))
        self.seed: int | None = None
        self._source = source
        self._positions = torch.tensor(positions)
        self._resize = resize
        self._random_crops = random_crops
        self._orientation = orientation
        self._skips = damaged == "skip"
        preprocessing = {"resize": resize, "center_crop": image_size, "interpolation": "bilinear"}
        if orientation == "exif":
            preprocessing["orientation"] = orientation
        if self._skips:
            preprocessing["damaged"] = damaged
        self.preprocessing = preprocessing
        self._evaluation = v2.Compose([v2.Resize(resize), v2.CenterCrop(image_size), v2.PILToTensor()])
        self._training = v2.Compose([v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip(), v2.PILToTensor()])
        # Shared with worker processes that live on from epoch to epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch that random crops are drawn for, in all processes that share this object."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    @property
    def names(self) -> list[str]:
        """Names of the files below the split."""
        return [self._source.names[position] for position in self._positions.tolist()]

    def __getitem__(self, position: int) -> Example:
        content, origin = self._content(position)
        return self._decoded(content, origin, position)

    def __getitems__(self, positions: list[int]) -> Batch:
        examples = []
        for position in positions:
            content, origin = self._content(position)
            try:
                examples.append(self._decoded(content, origin, position))
            except DataError as error:
                if not self._skips:
                    raise
                warnings.warn(f"left out: {error}", stacklevel=2)
        if not examples:
            raise DataError(f"{self._source.origin}: not one of the {len(positions)} images of a batch can be decoded")
        images, labels, indices = zip(*examples, strict=True)
        return torch.stack(images), torch.tensor(labels), torch.tensor(indices)

    def usable(self, positions: Sequence[int]) -> Sequence[int]:
        """Return the ``positions`` of images that can be decoded, if others are to be skipped; warn of those."""
        if not self._skips:
            return positions
        good, errors = [], []
        for position in positions:
            content, origin = self._content(position)  # what cannot be read now is not damaged
            try:
                self._decoded(content, origin, position)
                good.append(position)
            except DataError as error:
                errors.append(str(error))
        if errors:
            warnings.warn(f"left out {len(errors)} of {len(positions)} images: {'; '.join(errors)}", stacklevel=2)
        return good

    def subset(self, positions: Sequence[int]) -> FileImages:
        """Return the images at ``positions``, in that order, with their original indices."""
        chosen = copy.copy(self)
        chosen.__dict__.pop("sha256", None)
        chosen._positions = self._positions[list(positions)]
        chosen.labels = self.labels[list(positions)]
        chosen.indices = self.indices[list(positions)]
        return chosen

    def augmented(self, seed: int) -> FileImages:
        """Return the same images with random crops and flips that belong to ``seed``, if images are cropped here."""
        chosen = copy.copy(self)
        chosen.seed = seed if self._random_crops else None
        return chosen

    @cached_property
    def sha256(self) -> str:
        """Digest of file names, sizes and labels; the pixels are not read: that takes an hour for ImageNet."""
        digest = hashlib.sha256()
        for position, label in zip(self._positions.tolist(), self.labels.tolist(), strict=True):
            line = f"{self._source.names[position]}\0{self._source.size(position)}\0{label}\n"
            digest.update(line.encode(errors="surrogateescape"))  # names of files need not be UTF-8
        return digest.hexdigest()

    def _content(self, position: int) -> tuple[bytes, str]:
        """Return the content of a file, and what errors call it."""
        place = int(self._positions[position])
        return self._source.read(place), self._source.place(place)

    def _decoded(self, content: bytes, origin: str, position: int) -> Example:
        index = int(self.indices[position])
        with opened_image(content, origin) as opened:
            shorter, longer = sorted(opened.size)
            # Images that are augmented are not resized, but a file is either usable or not.
            resized = self._resize * longer // shorter
            demand_pixels(self._resize, resized, f"{origin}: resized to {self._resize} pixels on its shorter side")
            upright = ImageOps.exif_transpose(opened) if self._orientation == "exif" else opened
            image: Image.Image = upright.convert("RGB")
        if self.seed is None:
            pixels: Tensor = self._evaluation(image)
        else:
            # The transforms draw from torch's global CPU generator; those of the accelerators are left alone.
            with torch.random.fork_rng(devices=[]):
                word = raw_stream(1, self.seed, DataPurpose.FILE_AUGMENTATION, self.epoch, index)[0]
                torch.default_generator.manual_seed(int(word) % 2**32)
                pixels = self._training(image)
        return pixels, int(self.labels[position]), index
