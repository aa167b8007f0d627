"""Every configuration in the tree runs, at reduced size, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_lines import CHECKPOINT, DIGITS, ROOT
from command_lines import QUIET as WITHOUT_LOGGER
from image_folders import write_images

from deqcert.checkpoints import load_network
from deqcert.cli import main
from deqcert.data import Digits
from deqcert.models import DEQ
from deqcert.reuse import FixedPointCache
from deqcert.runs import read_tsv
from deqcert.uncertainty import WeightPosterior, predictive, weight_samples

# Whole runs pass through much code that is not ours; our own warnings are errors in every other test.
pytestmark = pytest.mark.filterwarnings("ignore")

CONFIGS = ROOT / "configs"
QUIET = [argument for argument in WITHOUT_LOGGER if "logger" not in argument]
TESTED = {
    "digits/mdeq_tiny.yaml",
    "digits/certify.yaml",
    "digits/cheap.yaml",
    "digits/ibp.yaml",
    "digits/lben.yaml",
    "digits/mondeq.yaml",
    "certify/lipschitz.yaml",  # test_without_noise.py
    "certify/intervals.yaml",
    "cifar10/mdeq_small.yaml",
    "cifar10/mdeq_small_cpu.yaml",
    "cifar10/mdeq_small_standing.yaml",
    "cifar10/gpu.yaml",  # tests/benchmarks
    "cifar10/lben_conv.yaml",
    "cifar10/mondeq_conv.yaml",
    "cifar10/mdeq_large.yaml",
    "imagenet/mdeq_small.yaml",
    "imagenet/mdeq_small_cpu.yaml",
    "tiny_imagenet/mdeq_small.yaml",
    "tiny_imagenet/mdeq_small_cpu.yaml",
    "cifar10/resnet110.yaml",
    "cifar10/resnet20_cpu.yaml",
    "imagenet/resnet50.yaml",
    "certify/standard.yaml",
    "certify/srs_1n.yaml",
    "certify/srs_1a.yaml",
    "certify/srs_3a.yaml",
    "certify/incremental.yaml",  # test_incremental.py
    "certify/anchored_3a.yaml",  # test_anchor.py
    "train/gaussian.yaml",
    "train/smoothadv.yaml",
    "train/catrs.yaml",
    "train/consistency.yaml",
    "train/decay.yaml",
    "train/swag.yaml",
    "validate/convergence.yaml",
    "cluster/slurm.yaml",  # tests/cluster
}


@pytest.fixture(autouse=True)
def _away_from_the_repository(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a fast_dev_run leaves a checkpoint in the working directory."""
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))


def fit(config: Path, *arguments: str) -> int:
    return main(["fit", "--config", str(config), *arguments, "--trainer.fast_dev_run=1", *QUIET])


def certify(*arguments: str) -> int:
    return main(["certify", "--config", str(DIGITS), *arguments, "--trainer.logger=false", *QUIET])


def test_every_configuration_is_tested() -> None:
    assert {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")} == TESTED


def test_fit_digits() -> None:
    assert fit(DIGITS) == 0


@pytest.mark.parametrize("name", ["lben", "mondeq", "ibp"])
def test_fit_networks_that_are_certified_without_noise(name: str) -> None:
    assert fit(CONFIGS / "digits" / f"{name}.yaml") == 0


@pytest.mark.parametrize("name", ["gaussian", "smoothadv", "catrs", "consistency"])
def test_fit_digits_with_every_objective(name: str) -> None:
    overlays = [str(CONFIGS / "digits" / "cheap.yaml"), str(CONFIGS / "train" / f"{name}.yaml")]
    configs = [argument for path in overlays for argument in ("--config", path)]
    assert fit(DIGITS, *configs, "--model.pretraining_steps=0") == 0


@pytest.mark.parametrize(
    "overlay",
    [
        [],
        ["cifar10/mdeq_small_cpu.yaml"],
        ["cifar10/mdeq_small_standing.yaml"],
        ["cifar10/mdeq_small_standing.yaml", "train/decay.yaml"],
    ],
    ids=["small", "small_cpu", "standing", "decay"],
)
def test_fit_cifar10_small(tmp_path: Path, overlay: list[str]) -> None:
    write_images(tmp_path, ["airplane", "automobile", "bird"], 32, ("train", "test"))
    overlays = [argument for name in overlay for argument in ("--config", str(CONFIGS / name))]
    assert fit(CONFIGS / "cifar10" / "mdeq_small.yaml", *overlays, f"--data.root={tmp_path}") == 0


def test_fit_cifar10_large(tmp_path: Path) -> None:
    write_images(tmp_path, ["airplane", "automobile"], 32, ("train", "test"))
    arguments = [f"--data.root={tmp_path}", "--model.pretraining_gradient.steps=1"]
    assert fit(CONFIGS / "cifar10" / "mdeq_large.yaml", *arguments) == 0


@pytest.mark.parametrize("name", ["lben_conv", "mondeq_conv"])
def test_fit_convolutions_that_are_certified_without_noise(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, ["airplane", "automobile"], 32, ("train", "test"))
    assert fit(CONFIGS / "cifar10" / f"{name}.yaml", f"--data.root={tmp_path}") == 0


@pytest.mark.parametrize("name", ["imagenet", "tiny_imagenet"])
@pytest.mark.parametrize("overlay", ["", "_cpu"])
def test_fit_imagenet_small_at_reduced_size(name: str, overlay: str, tmp_path: Path) -> None:
    write_images(tmp_path, ["n0", "n1"], 48, ("train", "val"))
    arguments = [
        f"--config={CONFIGS / name / f'mdeq_small{overlay}.yaml'}",
        f"--data.root={tmp_path}",
        "--data.image_size=32",
        "--data.resize=36",
        "--data.num_classes=2",
        "--data.num_workers=0",
        "--data.validation_size=0",
        "--model.network.image_size=32",
        "--model.network.num_classes=2",
        "--model.pretraining_gradient.steps=1",
    ]
    assert fit(CONFIGS / name / "mdeq_small.yaml", *arguments) == 0


@pytest.mark.parametrize("overlays", [[], ["cifar10/resnet20_cpu.yaml"]])
def test_fit_resnets(tmp_path: Path, overlays: list[str]) -> None:
    write_images(tmp_path, ["airplane", "automobile"], 32, ("train", "test"))
    further = [f"--config={CONFIGS / overlay}" for overlay in overlays]
    arguments = [*further, f"--data.root={tmp_path}", "--model.network.depth=8"]
    assert fit(CONFIGS / "cifar10" / "resnet110.yaml", *arguments) == 0


@pytest.mark.parametrize(("config", "split"), [("cifar10/resnet110.yaml", "test"), ("imagenet/resnet50.yaml", "val")])
def test_certify_resnets(config: str, split: str, tmp_path: Path) -> None:
    write_images(tmp_path, ["airplane", "automobile"], 48 if split == "val" else 32, ("train", split))
    arguments = [f"--data.root={tmp_path}", "--data.max_examples=1", "--sampling.n=20", "--sampling.n0=5"]
    arguments += ["--ckpt_path=none"]
    if split == "val":
        arguments += ["--data.image_size=32", "--data.resize=36", "--data.num_classes=2", "--data.num_workers=0"]
        arguments += ["--model.network.image_size=32", "--model.network.num_classes=2"]
    standard = ["--config", str(CONFIGS / "certify" / "standard.yaml"), f"--ledger_dir={tmp_path / 'run'}"]
    quiet = ["--trainer.logger=false", *QUIET]
    assert main(["certify", "--config", str(CONFIGS / config), *standard, *arguments, *quiet]) == 0
    assert len(read_tsv(tmp_path / "run" / "certificates.tsv")) == 1


@pytest.mark.parametrize("name", ["standard", "srs_1n", "srs_1a", "srs_3a"])
def test_certify(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--sampling.n=60",
        "--sampling.n0=20",
        "--data.max_examples=3",
        f"--ckpt_path={CHECKPOINT}",
    ]
    config = ["--config", str(CONFIGS / "certify" / f"{name}.yaml")]
    assert certify(*config, *arguments, f"--ledger_dir={tmp_path}") == 0
    assert len(read_tsv(tmp_path / "certificates.tsv")) == 3
    report = json.loads((tmp_path / "certificates.json").read_text())
    assert len(report["settings"]["classifier"]["digest"]) == 64
    assert all(example["sound"] for example in report["examples"])
    assert any(example["audited"] for example in report["examples"]) == name.startswith("srs")
    assert (tmp_path / "certify.yaml").exists()
    assert "ACR" in capsys.readouterr().out


def test_certify_with_the_digits_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # its checkpoint is named relative to the repository
    arguments = ["--data.max_examples=2", "--sampling.n=60"]
    assert certify("--config", "configs/digits/certify.yaml", *arguments, f"--ledger_dir={tmp_path}") == 0


def test_validate_and_test_with_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("validate", "test"):
        arguments = [
            verb,
            "--config",
            str(DIGITS),
            f"--ckpt_path={CHECKPOINT}",
            "--trainer.logger=false",
            *QUIET,
        ]
        assert main(arguments) == 0
        assert "digits_mdeq_tiny" in Path("runs", f"{verb}.yaml").read_text()
        assert [path.name for path in Path().iterdir()] == ["runs"]
    assert "accuracy_under_noise" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["validate", "fit"])
def test_convergence_overlay(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = ["--config", str(CONFIGS / "validate" / "convergence.yaml")]
    # These settings reach the callback that was appended last.
    arguments = ["--trainer.callbacks.images=2", "--trainer.callbacks.noisy_samples=16", *QUIET]
    if verb == "validate":
        arguments += [f"--ckpt_path={CHECKPOINT}", "--trainer.limit_val_batches=1"]
    else:
        arguments += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    assert main([verb, "--config", str(DIGITS), *overlay, *arguments]) == 0
    assert [path.name for path in Path().iterdir()] == ["runs"]
    (table,) = Path("runs").rglob("convergence.tsv")
    assert len(table.read_text().splitlines()) == 1 + 30
    assert ("Relative residuals" in capsys.readouterr().out) == (verb == "validate")
    configuration = table.with_name(f"{verb}.yaml").read_text()
    assert "ModelCheckpoint" in configuration
    assert "noisy_samples: 16" in configuration


def test_swag_overlay() -> None:
    """Samples of all weights from trained ones: the example of docs/reuse.md, from its beginning."""
    arguments = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", *QUIET]
    overlay = ["--config", str(CONFIGS / "train" / "swag.yaml"), "--model.weights", str(CHECKPOINT)]
    assert main(["fit", "--config", str(DIGITS), *overlay, *arguments]) == 0
    posterior = WeightPosterior.load(Path("runs", "posterior.ckpt"))
    assert posterior.snapshots == 3

    network = load_network(CHECKPOINT).network
    assert isinstance(network, DEQ)
    images, labels, _ = Digits().load_split("train").__getitems__(list(range(128)))
    samples = weight_samples(network, posterior, 3, [images / 255])
    found = predictive(network, samples, images / 255, cache=FixedPointCache(across_weights=True))
    assert (found.probabilities.argmax(dim=1) == labels).double().mean() > 0.9
    assert found.steps[1:].double().mean() < found.steps[0].double().mean()
