"""What all data modules share, tried on random images and on Lightning's own training loop."""

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from deqcert.data import CIFAR10, Digits, ImageDataModule, ImageFolder
from deqcert.data.augmentation import CropAndFlip
from deqcert.data.images import TensorImages
from deqcert.errors import DataError, SettingError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*:FutureWarning",  # lightning 2.6 with torch >= 2.9
    "ignore:.*does not have many workers",
)


class RandomImages(ImageDataModule):
    """40 random images to train on and 12 to test on; cropped and flipped."""

    num_classes = 10
    image_size = 8
    channels = 3

    def __init__(self, **settings):
        super().__init__(**settings)
        self.loaded = []
        self.crop_and_flip = CropAndFlip(self.seed, count=40)

    def load_split(self, split):
        self.loaded.append(split)
        count = 40 if split == "train" else 12
        pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return TensorImages(pixels, torch.arange(count) % 10, tuple("abcdefghij"), "random")

    def augment_batch(self, images, indices, epoch):
        return self.crop_and_flip(images, indices, epoch)


class Recorder(LightningModule):
    """Notes every batch it is given."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3 * 64, 10)
        self.seen = []
        self.evaluated = []

    def training_step(self, batch, batch_idx):
        images, labels, indices = batch
        self.seen.append((self.current_epoch, batch_idx, indices.tolist(), images.double().sum().item()))
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        return torch.nn.functional.cross_entropy(self.linear(images.flatten(1)), labels)

    def validation_step(self, batch, batch_idx):
        self.evaluated.append(batch)

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def make_trainer(**settings):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("eval_batch_size", 0),
        ("num_workers", -1),
        ("seed", -1),
        ("seed", 2**32),
        ("validation_size", -1),
        ("split", "val"),
        ("skip", 0),
        ("start", -1),
        ("max_examples", 0),
    ],
)
def test_bad_settings_are_refused_by_name(field, value):
    with pytest.raises(SettingError, match=f"{field} = {value!r}"):
        Digits(**{field: value})


@pytest.mark.parametrize(
    ("use", "settings", "loaded"),
    [
        ("train_dataloader", {}, ["train"]),
        ("val_dataloader", {}, ["test"]),
        ("val_dataloader", {"validation_size": 5}, ["train"]),
        ("test_dataloader", {}, ["test"]),
        ("certification_set", {}, ["test"]),
        ("certification_set", {"split": "train", "validation_size": 5}, ["train"]),
    ],
)
def test_a_split_is_read_once_and_when_it_is_needed(use, settings, loaded):
    module = RandomImages(**settings)
    for _ in range(2):
        getattr(module, use)()
    assert module.loaded == loaded


def test_validation_images_are_held_out_by_seed():
    module = RandomImages(validation_size=15, seed=3)
    training, validation = (
        set(module.training_images.indices.tolist()),
        set(module.validation_images.indices.tolist()),
    )
    assert len(validation) == 15
    assert training | validation == set(range(40))
    assert not training & validation
    assert torch.equal(
        RandomImages(validation_size=15, seed=3).validation_images.indices, module.validation_images.indices
    )
    assert set(RandomImages(validation_size=15, seed=4).validation_images.indices.tolist()) != validation


def test_validation_must_leave_images_to_train_on():
    with pytest.raises(SettingError, match=r"validation_size = 40: .*40 images"):
        RandomImages(validation_size=40).train_dataloader()


@pytest.mark.parametrize(
    ("settings", "indices"),
    [
        ({}, list(range(12))),
        ({"skip": 5}, [0, 5, 10]),
        ({"skip": 5, "start": 1}, [1, 6, 11]),
        ({"start": 10}, [10, 11]),
        ({"max_examples": 3}, [0, 1, 2]),
        ({"skip": 2, "start": 3, "max_examples": 2}, [3, 5]),
        ({"max_examples": 1000, "skip": 11}, [0, 11]),
        ({"split": "train", "validation_size": 5, "skip": 20}, [0, 20]),
    ],
)
def test_certification_subset(settings, indices):
    assert RandomImages(**settings).certification_set().indices == indices


def test_certification_identity_does_not_depend_on_the_subset():
    assert (
        RandomImages(skip=3, max_examples=2).certification_set().identity()
        == RandomImages().certification_set().identity()
    )


def test_empty_certification_subset_is_refused():
    with pytest.raises(DataError, match="no image of 12 is selected"):
        RandomImages(start=12).certification_set()


@pytest.mark.parametrize(("batch_size", "sizes"), [(16, [16, 16]), (40, [40]), (64, [40])])
def test_incomplete_training_batch_is_dropped_unless_it_is_the_only_one(batch_size, sizes):
    loader = RandomImages(batch_size=batch_size).train_dataloader()
    assert [len(labels) for _, labels, _ in loader] == sizes


def test_evaluation_refuses_fewer_images_than_processes(monkeypatch):
    monkeypatch.setattr(RandomImages, "_processes", (13, 0))
    with pytest.raises(DataError, match=r"12 images are too few .* 13 processes"):
        RandomImages().test_dataloader()


def test_float_batches_pass_unchanged():
    batch = torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64), torch.arange(2)
    images, _, _ = RandomImages().on_after_batch_transfer(batch, 0)
    assert images is batch[0]


def test_training_augments_and_evaluation_does_not():
    model, module = Recorder(), RandomImages(batch_size=10, validation_size=8, eval_batch_size=8)
    trainer = make_trainer(max_epochs=2, num_sanity_val_steps=1)
    trainer.fit(model, module)
    trainer.test(model, module)

    whole = module.load_split("train").images
    for epoch, _, indices, total in model.seen:
        chosen = torch.tensor(indices)
        expected = module.crop_and_flip(whole[chosen], chosen, epoch).to(torch.float32) / 255
        assert total == expected.double().sum().item()
    assert {epoch for epoch, *_ in model.seen} == {0, 1}

    assert len(model.evaluated) == 1 + 2 + 2
    for images, _, indices in model.evaluated[:3]:
        assert torch.equal(images, whole[indices].to(torch.float32) / 255)
    assert [indices.tolist() for *_, indices in model.evaluated[3:]] == [list(range(8)), [8, 9, 10, 11]]


class SaveAt(Callback):
    """Saves a checkpoint after one batch of one epoch, and leaves the training going."""

    def __init__(self, path, epoch, batch):
        self.path, self.moment = path, (epoch, batch)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.moment:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("epoch", "batch"), [(1, 1), (1, 3), (0, 0)])
def test_resumed_training_sees_the_same_pixels(tmp_path, workers, epoch, batch):
    path = tmp_path / "saved.ckpt"
    settings = {"max_epochs": 3, "limit_val_batches": 0}
    whole = Recorder()
    trainer = make_trainer(callbacks=[SaveAt(path, epoch, batch)], **settings)
    trainer.fit(whole, RandomImages(batch_size=10))

    resumed = Recorder()
    make_trainer(**settings).fit(resumed, RandomImages(batch_size=10, num_workers=workers), ckpt_path=path)
    assert resumed.seen == whole.seen[4 * epoch + batch + 1 :]


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (Digits, []),
        (CIFAR10, ["--data.augment=false"]),
        (ImageFolder, ["--data.root=x", "--data.num_classes=10"]),
    ],
)
def test_command_line_knows_every_setting(data, settings):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    given = [f"--data={data.__module__}.{data.__name__}", "--data.skip=7", "--data.split=train", *settings]
    options = parser.parse_args(given).data.init_args
    assert (options.skip, options.split, options.max_examples) == (7, "train", None)
    module = data(**vars(options))
    assert module.skip == 7
    assert module.num_classes == 10
    assert module.image_size in (8, 32, 224)
    assert module.channels in (1, 3)
