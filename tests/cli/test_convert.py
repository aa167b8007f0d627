import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from command_lines import CHECKPOINT, DIGITS, ROOT, certify_command
from image_folders import write_images
from safetensors import safe_open
from torchvision.models import resnet50

from deqcert.checkpoints import load_network
from deqcert.cli import main
from deqcert.interchange.mdeq_names import public_name
from deqcert.models import MDEQ, CifarResNet, ResNet50
from deqcert.runs import read_tsv

# Whole runs pass through much code that is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

DIGITS_NETWORK = {
    "channels": (8, 16),
    "head_channels": (4, 8),
    "final_channels": 64,
    "expansion": 3,
    "image_channels": 1,
    "image_size": 8,
    "mean": (0.305,),
    "std": (0.376,),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def public(tmp_path) -> Path:
    """The shipped digits MDEQ under the public names, as DataParallel would save it."""
    weights = torch.load(CHECKPOINT, weights_only=True)["state_dict"]
    network = MDEQ(**DIGITS_NETWORK)
    renamed = {
        f"module.{public_name(name.removeprefix('network.'), network)}": tensor for name, tensor in weights.items()
    }
    assert "module.fullstage.fuse_layers.1.0.net.0.conv.weight" in renamed
    torch.save({"state_dict": renamed, "epoch": 60, "optimizer": {}}, tmp_path / "public.pth.tar")
    return tmp_path / "public.pth.tar"


def convert(*arguments):
    return main(["convert", *map(str, arguments)])


def weights_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_public_checkpoint_becomes_one_of_ours_that_certifies_the_same(public, tmp_path, capsys):
    target = tmp_path / "ours.ckpt"
    assert convert(public, "--to", target, "--config", DIGITS) == 0
    printed = capsys.readouterr().out
    assert "public MDEQ; " in printed
    assert "left out epoch, optimizer: no weights" in printed
    trusted = "mean = [0.305], std = [0.376], image_size = 8, downsample_times = 0, num_groups = 8"
    assert f"taken on trust, since the file does not show it: {trusted}; to set it: --model.network.init_" in printed
    assert f"next, with a smoothing: deqcert certify --config {DIGITS} --ckpt_path {target}" in printed
    for name, path in (("source", public), ("target", target)):
        assert f"sha256 of {name} {hashlib.sha256(path.read_bytes()).hexdigest()}" in printed
    original, found = weights_of(CHECKPOINT), weights_of(target)
    assert original.keys() == found.keys()
    assert all(torch.equal(original[name], found[name]) for name in original)

    for name, checkpoint in (("shipped", CHECKPOINT), ("converted", target)):
        command = certify_command(tmp_path / name, images=2, n=60)
        assert main([f"--ckpt_path={checkpoint}" if "--ckpt_path" in part else part for part in command]) == 0
    rows = [[row[:5] for row in read_tsv(tmp_path / name / "certificates.tsv")] for name in ("shipped", "converted")]
    assert rows[0] == rows[1]


def test_ours_becomes_safetensors_and_comes_back_bit_for_bit(tmp_path, capsys):
    assert convert(CHECKPOINT, "--to", "w.safetensors") == 0
    assert "our own names; 94 tensors" in capsys.readouterr().out
    with safe_open("w.safetensors", framework="pt") as file:
        digest = hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
        metadata = file.metadata()
        assert json.loads(metadata.pop("architecture"))["network"] == "MDEQ"
        assert metadata == {"format": "pt", "sigma": "0.5", "source_sha256": digest}
        assert "mdeq_head.classifier.bias" in file.keys()  # noqa: SIM118  # it is no dictionary
    assert convert("w.safetensors", "--to", "w.ckpt", "--config", DIGITS, "--model.sigma", "0.25") == 0
    assert "warning: the file says sigma = 0.5, the configuration 0.25" in capsys.readouterr().out
    original, found = weights_of(CHECKPOINT), weights_of("w.ckpt")
    assert all(torch.equal(original[name], found[name]) for name in original)


def test_a_resnet_is_converted_validated_and_certified_but_not_trained(tmp_path, capsys, monkeypatch):
    overlay = tmp_path / "resnet.yaml"
    overlay.write_text(
        "model:\n  network:\n    class_path: deqcert.models.CifarResNet\n    init_args: {depth: 8, image_channels: 1, "
        "image_size: 8, mean: [0.3], std: [0.4]}\n"
        "data: {class_path: deqcert.data.Digits}\n"
    )
    network = CifarResNet(depth=8, image_channels=1, image_size=8, mean=(0.3,), std=(0.4,))
    torch.save({f"1.{name}": tensor for name, tensor in network.state_dict().items()}, "cohen.pth")
    assert convert("cohen.pth", "--to", "r.ckpt", "--config", overlay) == 0
    common = ["--config", str(overlay), "--trainer.accelerator=cpu", "--trainer.logger=false"]
    assert main(["validate", *common, "--ckpt_path=r.ckpt", "--trainer.limit_val_batches=1"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy_under_noise" in printed
    assert not any(name in printed for name in ("forward_steps", "forward_residual", "spectral_radius"))
    standard = ["--config", str(ROOT / "configs" / "certify" / "standard.yaml"), "--sampling.n=40", "--sampling.n0=5"]
    run = [*common, *standard, "--data.max_examples=2", "--ckpt_path=r.ckpt", "--ledger_dir=run"]
    assert main(["certify", *run]) == 0
    assert len(read_tsv("run/certificates.tsv")) == 2


@pytest.mark.parametrize(
    ("before", "size", "classes"),
    [
        ("1.module.", 32, 2),
        pytest.param("module.", 32, 2, marks=pytest.mark.slow),
        pytest.param("1.module.", 224, 1000, marks=pytest.mark.slow),
    ],
)
def test_a_published_resnet_50_becomes_certificates(tmp_path, capsys, before, size, classes):
    """Saved as Cohen et al. save it, behind a normalization of their own, which has no weights."""
    torch.manual_seed(0)
    plain = resnet50(weights=None, num_classes=classes).eval()
    weights = {f"{before}{name}": tensor for name, tensor in plain.state_dict().items()}
    torch.save({"epoch": 90, "arch": "resnet50", "state_dict": weights, "optimizer": {"state": {}}}, "noise.pth.tar")
    names = [f"n{number:08d}" for number in range(classes)]
    write_images(tmp_path / "images", names[:1], size + 32, ("val",))
    for name in names[1:]:
        (tmp_path / "images" / "val" / name).mkdir()
        os.link(tmp_path / "images" / "val" / names[0] / "00000.jpg", tmp_path / "images" / "val" / name / "0.jpg")
    common = ["--config", str(ROOT / "configs" / "imagenet" / "resnet50.yaml"), "--data.root=images"]
    if classes < 1000:
        common += [f"--{part}.image_size={size}" for part in ("data", "model.network.init_args")]
        common += [f"--{part}.num_classes={classes}" for part in ("data", "model.network.init_args")]
        common += [f"--data.resize={size + 4}"]
    assert main(["convert", "noise.pth.tar", "--to", "ours.ckpt", *common]) == 0
    assert f"{len(weights)} tensors written" in capsys.readouterr().out
    network = ResNet50(num_classes=classes, image_size=size).eval()
    load_network("ours.ckpt", network)
    x = torch.rand(2, 3, size, size)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain((x - mean) / std))

    run = [
        *common,
        "--data.max_examples=2",
        f"--data.skip={classes // 2}",
        "--data.num_workers=0",
        "--trainer.accelerator=cpu",
    ]
    run += ["--trainer.logger=false", "--sampling.n=100", "--sampling.n0=5", "--ckpt_path=ours.ckpt"]
    standard, srs = (str(ROOT / "configs" / "certify" / f"{name}.yaml") for name in ("standard", "srs_3a"))
    assert main(["certify", "--config", standard, *run, "--ledger_dir=run"]) == 0
    rows = read_tsv("run/certificates.tsv")
    assert len(rows) == 2
    capsys.readouterr()
    assert main(["certify", "--config", srs, *run, "--ledger_dir=other"]) == 2
    assert "sampling = 'Serialized': needs a DEQ; certify a ResNet50 by Standard" in capsys.readouterr().err


def test_what_was_taken_on_trust_is_recorded_and_another_value_is_refused(public, tmp_path, capsys):
    """Another normalization is another function of the same weights."""
    grey = ["--model.network.init_args.mean=[0]", "--model.network.init_args.std=[1]"]
    assert convert(public, "--to", "ours.ckpt", "--config", DIGITS, *grey) == 0
    stated = torch.load("ours.ckpt", weights_only=True)["architecture"]
    assert stated["network"] == "MDEQ"
    assert (stated["settings"]["mean"], stated["settings"]["std"]) == ([0], [1])
    command = [
        "--ckpt_path=ours.ckpt" if "--ckpt_path" in part else part
        for part in certify_command(tmp_path / "run", images=1, n=60)
    ]
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "model.network.init_args.mean = [0.305], must be [0.0]; " in error
    assert "model.network.init_args.std = [0.376], must be [1.0]" in error
    assert main([*command, *grey]) == 0

    assert convert("ours.ckpt", "--to", "ours.safetensors") == 0
    capsys.readouterr()
    assert convert("ours.safetensors", "--to", "other.ckpt", "--config", DIGITS) == 0
    printed = capsys.readouterr().out
    assert "warning: the file says otherwise, what is configured was written: model.network.init_args.mean" in printed
    assert "taken on trust" not in printed
    assert torch.load("other.ckpt", weights_only=True)["architecture"]["settings"]["mean"] == [0.305]


def test_an_existing_target_is_kept(public, tmp_path, capsys):
    (tmp_path / "old.ckpt").write_text("precious")
    assert convert(public, "--to", "old.ckpt", "--config", DIGITS) == 2
    assert (tmp_path / "old.ckpt").read_text() == "precious"
    assert "--overwrite" in capsys.readouterr().err
    assert convert(public, "--to", "old.ckpt", "--config", DIGITS, "--overwrite") == 0


def test_what_does_not_fit_leaves_nothing_behind(public, tmp_path, capsys):
    assert convert(public, "--to", "t.ckpt", "--config", DIGITS, "--model.network.init_args.final_channels=32") == 2
    error = capsys.readouterr().err
    assert "public.pth.tar: the checkpoint is of another architecture" in error
    assert "classifier.weight has shape (10, 64), the model needs (10, 32)" in error
    assert not (tmp_path / "t.ckpt").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["missing.pth", "--to", "t.ckpt", "--config", str(DIGITS)],
            "missing.pth: must be an existing checkpoint file",
        ),
        (["public.pth.tar", "--to", "t.ckpt"], "config = None: must name the configuration"),
        (["public.pth.tar", "--to", "t.safetensors"], "is not a weight of a network of ours"),
        (["public.pth.tar", "--to", "t.safetensors", "--config", str(DIGITS)], "are not needed to write safetensors"),
    ],
)
def test_bad_commands_are_refused(public, capsys, arguments, complaint):
    assert convert(*arguments) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("folder", "is a directory"),
        ("file/t.ckpt", "cannot be written: file is not a directory"),
        ("public.pth.tar", "is SOURCE itself"),
        ("link.ckpt", "is SOURCE itself"),
    ],
)
def test_targets_that_cannot_be_are_refused(public, capsys, target, complaint):
    Path("folder").mkdir()
    Path("file").write_text("a file")
    os.link(public, "link.ckpt")
    before = public.read_bytes()
    assert convert(public, "--to", target, "--config", DIGITS, "--overwrite") == 2
    assert f"to = '{target}': {complaint}" in capsys.readouterr().err
    assert public.read_bytes() == before
    assert {path.name for path in Path().rglob("*")} == {"public.pth.tar", "folder", "file", "link.ckpt"}


def test_the_machine_of_the_configuration_does_not_matter(tmp_path):
    cluster = "trainer: {accelerator: gpu, devices: 8, num_nodes: 4, strategy: ddp, precision: 16-mixed}\n"
    (tmp_path / "cluster.yaml").write_text(cluster)
    assert convert(CHECKPOINT, "--to", "t.ckpt", "--config", DIGITS, "--config", "cluster.yaml") == 0


def test_what_is_not_in_a_file_is_named(tmp_path, capsys):
    weights = {name: t for name, t in weights_of(CHECKPOINT).items() if not name.endswith("num_batches_tracked")}
    torch.save(weights, "w.pth")
    assert convert("w.pth", "--to", "t.ckpt", "--config", DIGITS) == 0
    printed = capsys.readouterr().out
    assert "put in mdeq_head.bottlenecks.0.body.1.num_batches_tracked, " in printed
    assert "more: zero: a counter of batches, of use in training only" in printed


def test_weights_that_are_not_finite_do_not_become_safetensors(tmp_path, capsys):
    content = torch.load(CHECKPOINT, weights_only=True)
    content["state_dict"]["network.mdeq_head.classifier.bias"][0] = torch.nan
    torch.save(content, "nan.ckpt")
    assert convert("nan.ckpt", "--to", "w.safetensors") == 2
    assert "nan.ckpt: weights must be finite" in capsys.readouterr().err
    assert not Path("w.safetensors").exists()
