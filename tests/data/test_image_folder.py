import pytest
import torch
from PIL import Image

from deqcert.data import ImageFolder
from deqcert.errors import DataError, SettingError


@pytest.fixture
def make(image_folder):
    def make(**settings):
        return ImageFolder(**{"root": str(image_folder), "image_size": 16, "resize": 20, "num_classes": 2, **settings})

    return make


def collect(loader):
    """Images of one epoch by original index."""
    return {int(index): image for images, _, indices in loader for image, index in zip(images, indices, strict=True)}


def test_original_index_is_the_position_in_the_sorted_list(make):
    images = make().load_split("test")
    assert images.classes == ("ant", "bee")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.names[:3] == ["ant/0.jpeg", "ant/1.png", "ant/2.jpeg"]
    chosen = images.subset([4, 1])
    assert [chosen[0][1:], chosen[1][1:]] == [(1, 4), (0, 1)]
    assert torch.equal(chosen[0][0], images[4][0])


def test_evaluation_resizes_and_crops_the_center(make, image_folder):
    file = image_folder / "val" / "ant" / "0.jpeg"
    Image.new("RGB", (40, 20), (255, 0, 0)).save(file)
    image, label, index = make().certification_set()[0]
    assert image.shape == (3, 16, 16)
    assert (label, index) == (0, 0)
    assert image[0].min() > 0.98
    assert image[1:].max() < 0.02


def test_gray_images_become_color(make, image_folder):
    Image.new("L", (40, 20), 128).save(image_folder / "val" / "ant" / "0.jpeg")
    assert make().load_split("test")[0][0].shape == (3, 16, 16)


@pytest.mark.parametrize("workers", [0, 1])
def test_augmentation_depends_on_seed_epoch_and_index_only(make, workers):
    epochs = {}
    for epoch in (0, 1):
        loader = make(batch_size=4).train_dataloader()
        loader.sampler.set_epoch(epoch)
        epochs[epoch] = collect(loader)
    other = make(batch_size=3, num_workers=workers).train_dataloader()
    for epoch in (1, 0):
        other.sampler.set_epoch(epoch)
        repeated = collect(other)
        assert repeated.keys() == set(range(12))
        assert all(torch.equal(repeated[index], epochs[epoch][index]) for index in range(12))
    assert not any(torch.equal(epochs[0][index], epochs[1][index]) for index in range(12))


def test_augmentation_leaves_the_global_random_state_alone(make):
    images = make().training_images
    before = torch.get_rng_state()
    images[0]
    assert torch.equal(before, torch.get_rng_state())


def test_held_out_and_certified_training_images_are_not_augmented(make):
    module = make(validation_size=5, split="train")
    plain = module.load_split("train")
    for image, _, index in module.validation_images:
        assert torch.equal(image, plain[index][0])
    examples = module.certification_set()
    assert len(examples) == 12
    assert torch.equal(torch.round(examples[3][0] * 255).to(torch.uint8), plain[3][0])


def test_batches_of_files_are_scaled_on_the_device(make):
    module = make(batch_size=4)
    images, labels, indices = module.on_after_batch_transfer(next(iter(module.val_dataloader())), 0)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert labels.dtype == indices.dtype == torch.int64


def test_identity_follows_files_and_preprocessing_but_not_the_subset(make, image_folder):
    def identity(**settings):
        return make(**settings).certification_set().identity()

    before = identity()
    assert before == identity(skip=2)
    assert before != identity(resize=24)
    moved = image_folder.rename(image_folder.with_name("moved"))
    assert identity(root=str(moved)) == before
    (moved / "val" / "ant" / "0.jpeg").rename(moved / "val" / "ant" / "00.jpeg")
    assert identity(root=str(moved)) != before


def test_subset_has_its_own_identity(make):
    images = make().load_split("test")
    assert images.identity() != images.subset([0, 1]).identity()


@pytest.mark.parametrize("name", ["0.jpeg", "1.png"])
@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_image_is_refused_by_name(make, image_folder, name, workers):
    file = image_folder / "val" / "bee" / name
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match=name):
        list(make(num_workers=workers).test_dataloader())


@pytest.mark.parametrize(
    ("settings", "skip"),
    [({"max_examples": 2}, 3), ({"max_examples": 3}, 2), ({"max_examples": 2, "start": 1}, 3)],
)
def test_a_number_of_images_that_leaves_out_classes_is_refused(make, settings, skip):
    """Files are sorted by class: the first three are ants."""
    with pytest.raises(SettingError, match=rf"max_examples = \d: takes the first classes only.*skip = {skip} spreads"):
        make(**settings).certification_set()
    spread = make(**settings, skip=skip).certification_set()
    assert 1 < len(spread) <= settings["max_examples"]
    assert {label for _, label, _ in spread} == {0, 1}


@pytest.mark.parametrize("settings", [{}, {"max_examples": 4}, {"max_examples": 1}, {"skip": 3, "max_examples": 9}])
def test_a_number_of_images_that_reaches_all_classes_or_cannot_is_taken(make, settings):
    assert len(make(**settings).certification_set()) > 0


@pytest.mark.parametrize("split", ["train", "test"])
def test_both_splits_must_number_the_same_classes(make, image_folder, split):
    make().load_split(split)
    # In val "ant" is class 1 now, and in train class 0.
    (image_folder / "val" / "bee").rename(image_folder / "val" / "0_bee")
    with pytest.raises(DataError, match="only one has the class folder '0_bee'"):
        make().load_split(split)
    (image_folder / {"train": "val", "test": "train"}[split]).rename(image_folder / "elsewhere")
    make().load_split(split)  # there is nothing to compare with


@pytest.mark.parametrize("name", ["3.jfif", "3.JPE", "3.gif", "3.GIF", "3.pbm"])
def test_images_of_every_format_that_is_decoded_are_listed(make, image_folder, name):
    form = {".gif": "GIF", ".pbm": "PPM"}.get(name[1:].lower(), "JPEG")
    Image.new("1" if form == "PPM" else "L", (40, 20)).save(image_folder / "val" / "ant" / name, form)
    images = make().load_split("test")
    assert images.names[:4] == ["ant/0.jpeg", "ant/1.png", "ant/2.jpeg", f"ant/{name}"]
    assert images.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert images[3][0].shape == (3, 16, 16)


def test_files_that_are_left_out_are_named(make, image_folder):
    for name in ("3.heic", "notes.txt", ".DS_Store"):
        (image_folder / "val" / "bee" / name).touch()
    with pytest.warns(UserWarning, match=r"val: left out 2 files, e\.g\. .*bee/3\.heic; names of images end in \.jpg "):
        assert len(make().load_split("test")) == 6
    (image_folder / "val" / "bee" / "3.heic").unlink()
    (image_folder / "val" / "bee" / "notes.txt").unlink()
    assert len(make().load_split("test")) == 6  # warnings are errors in these tests


@pytest.mark.parametrize(("empty", "message"), [(True, r"\.ipynb_checkpoints"), (False, "3 class folders")])
def test_a_hidden_class_folder_is_refused(make, image_folder, empty, message):
    hidden = image_folder / "val" / ".ipynb_checkpoints"
    hidden.mkdir()
    if not empty:
        Image.new("L", (40, 20)).save(hidden / "0.png")
    with pytest.raises(DataError, match=message):
        make().load_split("test")


def test_an_orientation_in_the_exif_data_is_not_applied(make, image_folder):
    image = Image.new("RGB", (20, 20))
    image.paste((255, 255, 255), (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(image_folder / "val" / "ant" / "1.png", exif=exif)
    with Image.open(image_folder / "val" / "ant" / "1.png") as stored:
        assert stored.getexif()[0x0112] == 3
    pixels = make().load_split("test")[1][0]
    assert pixels[:, :4].min() > 250
    assert pixels[:, -4:].max() < 5


def test_number_of_classes_must_match(make):
    with pytest.raises(DataError, match="2 class folders, but num_classes = 1000"):
        make(num_classes=1000).load_split("test")


def test_root_without_splits_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"root = .*\{train,val\}/<class>"):
        ImageFolder(root=str(tmp_path)).prepare_data()


def test_missing_split_and_empty_class_are_refused(make, image_folder):
    module = make()
    module.prepare_data()
    (image_folder / "train" / "cow").mkdir()
    with pytest.raises(DataError, match="cow"):
        module.load_split("train")
    (image_folder / "val").rename(image_folder / "validation")
    with pytest.raises(DataError, match="val"):
        module.load_split("test")


@pytest.mark.parametrize(("field", "value"), [("image_size", 0), ("resize", 15), ("num_classes", 0), ("batch_size", 0)])
def test_bad_settings_are_refused_by_name(make, field, value):
    with pytest.raises(SettingError, match=f"{field} = {value}"):
        make(**{field: value})
