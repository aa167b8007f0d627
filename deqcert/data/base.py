"""What all data modules share: settings, splits, loaders, scaling on the device, the choice of images to certify."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from deqcert.data.images import CertificationSet, Example, IndexedImages, to_unit_interval
from deqcert.data.loading import EpochSampler, ResumableLoader, UnpaddedSampler, collated
from deqcert.data.streams import DataPurpose, permutation
from deqcert.errors import DataError, require, require_count

Split = Literal["train", "test"]


class ImageDataModule(LightningDataModule, ABC):
    """Images with labels and original indices for training, evaluation and certification.

    Batches are ``(images, labels, indices)``: float32 (B, C, H, W) in [0, 1], int64 (B,), int64 (B,).
    Normalization is part of the model. A subclass states its shapes and how to read a split; a split is read when it is
    first needed.

    Args:
        batch_size: Training images per process and step, >= 1.
        eval_batch_size: Validation and test images per process and step, >= 1.
        num_workers: Worker processes per loader, >= 0; 0 loads in the main process.
        seed: Seed of order, augmentation and validation split, in [0, 2**32).
        validation_size: Training images held out for validation; 0 validates on the test split.
        split: Split to certify: test or train.
        skip: Certify every skip-th image of the split, >= 1.
        start: Position of the first image to certify, >= 0.
        max_examples: Certify at most this many images, >= 1; null = no limit. They are the first ones of the selection;
            where images are sorted by class and the last classes would be left out, that is refused: a larger skip
            spreads as many images over the split.

    Raises:
        SettingError: A setting is outside of what is allowed.
    """

    num_classes: int
    image_size: int  # pixels; images are square
    channels: int

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        validation_size: int = 0,
        split: Split = "test",
        skip: int = 1,
        start: int = 0,
        max_examples: int | None = None,
    ) -> None:
        super().__init__()
        for field, value, minimum in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("validation_size", validation_size, 0),
            ("skip", skip, 1),
            ("start", start, 0),
        ):
            require_count(field, value, minimum)
        require(0 <= seed < 2**32, "seed", seed, "must be in [0, 2**32)")
        require(split in ("train", "test"), "split", split, "must be 'train' or 'test'")
        require(max_examples is None or max_examples >= 1, "max_examples", max_examples, "must be >= 1 or null")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.validation_size = validation_size
        self.split: Split = split
        self.skip = skip
        self.start = start
        self.max_examples = max_examples

    @abstractmethod
    def load_split(self, split: Split) -> IndexedImages:
        """Read one whole split, sorted by original index, without augmentation.

        Raises:
            DataError: The split cannot be read.
        """

    def augment_batch(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Return the augmented uint8 ``images`` (B, C, H, W) of original ``indices`` (B,) in ``epoch``."""
        return images

    @cached_property
    def training_images(self) -> IndexedImages:
        """The training split without what is held out, augmented."""
        images = self._shuffled(slice(self.validation_size, None)) if self.validation_size else self._train_split
        return images.augmented(self.seed)

    @cached_property
    def validation_images(self) -> IndexedImages:
        """What is held out of the training split, or else the test split."""
        return self._shuffled(slice(self.validation_size)) if self.validation_size else self._test_split

    @cached_property
    def _train_split(self) -> IndexedImages:
        return self.load_split("train")

    @cached_property
    def _test_split(self) -> IndexedImages:
        return self.load_split("test")

    def _shuffled(self, part: slice) -> IndexedImages:
        """Return ``part`` of the shuffled training split, sorted again."""
        count, held_out = len(self._train_split), self.validation_size
        require(held_out < count, "validation_size", held_out, f"must leave some of {count} images")
        positions = permutation(count, self.seed, DataPurpose.VALIDATION_SPLIT)[part]
        return self._train_split.subset(sorted(positions.tolist()))

    def train_dataloader(self) -> ResumableLoader:
        """Return batches in an order that depends on (seed, epoch) only.

        An incomplete last batch is dropped unless it is the only one: batch normalization suffers from small batches.
        """
        images = self.training_images
        sampler = EpochSampler(images, *self._processes, seed=self.seed)
        drop_last = len(sampler) >= self.batch_size
        return ResumableLoader(
            images, batch_size=self.batch_size, sampler=sampler, drop_last=drop_last, **self._loading
        )

    def val_dataloader(self) -> DataLoader[Example]:
        """Return the validation images, each once."""
        return self._evaluation_loader(self.validation_images)

    def test_dataloader(self) -> DataLoader[Example]:
        """Return the test images, each once."""
        return self._evaluation_loader(self._test_split)

    def _evaluation_loader(self, images: IndexedImages) -> DataLoader[Example]:
        replicas, rank = self._processes
        if len(images) < replicas:
            raise DataError(f"{images.name}: {len(images)} images are too few to evaluate in {replicas} processes")
        sampler = UnpaddedSampler(images, replicas, rank)
        return DataLoader(images, batch_size=self.eval_batch_size, sampler=sampler, **self._loading)

    @property
    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "collate_fn": collated,
            "pin_memory": torch.cuda.is_available(),
        }

    @property
    def _processes(self) -> tuple[int, int]:
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment (in training) and scale uint8 images on the device; float images pass as they are."""
        images, labels, indices = batch
        if images.dtype == torch.uint8:
            if self.trainer is not None and self.trainer.training:
                images = self.augment_batch(images, indices, self.trainer.current_epoch)
            images = to_unit_interval(images)
        return images, labels, indices

    def certification_set(self) -> CertificationSet:
        """Return every skip-th image of the split from ``start``, at most ``max_examples`` of them.

        Raises:
            DataError: Nothing is left, or a label is outside of ``[0, num_classes)``.
            SettingError: Images are sorted by class, and ``max_examples`` leaves out the last classes.
        """
        images = self._train_split if self.split == "train" else self._test_split
        chosen = range(self.start, len(images), self.skip)[: self.max_examples]
        if chosen and bool((images.labels.diff() >= 0).all()):
            skip = -(-(len(images) - self.start) // len(chosen))
            spread = range(self.start, len(images), skip)
            reaches = images.labels[chosen[-1]] >= images.labels[spread[-1]]
            allowed = f"takes the first classes only, for images are sorted by class; skip = {skip} spreads them"
            require(bool(reaches), "max_examples", self.max_examples, allowed)
        return CertificationSet(images, images.usable(chosen), self.split, self.num_classes)
