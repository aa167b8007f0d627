"""One table of deterministic and smoothed certificates, on the same images.

    python benchmarks/comparison.py digits --runs runs/comparison
    python benchmarks/comparison.py cifar10 --runs runs/comparison --data cifar10_jpeg.npz

Trains what is neither shipped nor trained yet, certifies what is not certified yet (both by ``deqcert``, so a run that
was stopped goes on) and prints a Markdown table. ``--checkpoints`` names a folder with ROW.ckpt for the rows that take
longer to train; a row without checkpoint is left out and named.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deqcert.checkpoints import read_checkpoint
from deqcert.cli import main
from deqcert.report import DETERMINISTIC, read_runs
from deqcert.runs import read_run

ROOT = Path(__file__).parents[1]
LIPSCHITZ, BOXES = ["certify/lipschitz.yaml"], ["certify/intervals.yaml"]
SRS = ["certify/srs_3a.yaml"]
CROSS_ENTROPY = [
    "--model.objective=deqcert.training.Gaussian",
    "--trainer.max_epochs=30",
    "--model.optimizer.init_args.lr=1e-2",
]
SMOOTHED = ["--smoothing.sigma=0.5", "--sampling.n={n}"]


@dataclass(frozen=True)
class Row:
    """A network and how it is certified.

    Attributes:
        name: For the table and, with _ for what is no letter or digit, for files.
        model: Configuration of network and training, below ``configs``.
        how: Configurations of the certificate.
        checkpoint: Shipped checkpoint; None where the row is trained here or in ``--checkpoints``.
        fit: Further options of ``deqcert fit``; None where training takes too long for this script.
        network: Further options of ``fit`` and ``certify``.
        options: Further options of ``deqcert certify``.
        anchored: Whether the checkpoint first gets its mean fixed point as a start.
    """

    name: str
    model: str
    how: Sequence[str]
    checkpoint: str | None = None
    fit: Sequence[str] | None = None
    network: Sequence[str] = ()
    options: Sequence[str] = ()
    anchored: bool = False

    @property
    def slug(self) -> str:
        """Name for files."""
        return "".join(letter if letter.isalnum() else "_" for letter in self.name.lower())


def digits() -> list[Row]:
    """Return the rows for the digits: everything trains in minutes."""
    gammas = ("0.5", "1", "5", ".inf")
    lben = [
        Row(
            f"LBEN, γ = {gamma.replace('.inf', '∞')}, cross-entropy",
            "digits/lben.yaml",
            LIPSCHITZ,
            fit=CROSS_ENTROPY,
            network=[f"--model.network.init_args.gamma={gamma}"],
        )
        for gamma in gammas
    ]
    tiny = "checkpoints/digits_mdeq_tiny/model.ckpt"
    return [
        Row("LBEN, shipped", "digits/lben.yaml", LIPSCHITZ, "checkpoints/digits_lben/model.ckpt"),
        *lben,
        Row("monDEQ, shipped", "digits/mondeq.yaml", LIPSCHITZ, "checkpoints/digits_mondeq/model.ckpt"),
        Row("IBP-MonDEQ, boxes", "digits/ibp.yaml", BOXES, "checkpoints/digits_ibp/model.ckpt"),
        Row("IBP-MonDEQ, Lipschitz", "digits/ibp.yaml", LIPSCHITZ, "checkpoints/digits_ibp/model.ckpt"),
        Row("MDEQ, standard-30A", "digits/mdeq_tiny.yaml", ["certify/standard.yaml"], tiny, options=SMOOTHED),
        Row("MDEQ, SRS-3A", "digits/mdeq_tiny.yaml", SRS, tiny, options=SMOOTHED),
        Row(
            "MDEQ, anchored-3A",
            "digits/mdeq_tiny.yaml",
            ["certify/anchored_3a.yaml"],
            tiny,
            options=SMOOTHED,
            anchored=True,
        ),
    ]


def cifar10() -> list[Row]:
    """Return the rows for CIFAR-10; that without a checkpoint takes hours to train on a CPU."""
    mdeq = "checkpoints/cifar10_mdeq_small_cpu_consistency/model.ckpt"
    learned = "checkpoints/cifar10_mdeq_small_cpu_learned_start/model.ckpt"
    anchored = ["certify/anchored_3a.yaml"]
    return [
        Row("monDEQ, convolutional", "cifar10/mondeq_conv.yaml", LIPSCHITZ),
        Row("LBEN, convolutional", "cifar10/lben_conv.yaml", LIPSCHITZ, "checkpoints/cifar10_lben_conv/model.ckpt"),
        Row("MDEQ, standard-30A", "cifar10/mdeq_small.yaml", ["certify/standard.yaml"], mdeq, options=SMOOTHED),
        Row("MDEQ, SRS-3A", "cifar10/mdeq_small.yaml", SRS, mdeq, options=SMOOTHED),
        Row("MDEQ, anchored-3A", "cifar10/mdeq_small.yaml", anchored, learned, options=SMOOTHED),
        Row(
            "ResNet-20, standard",
            "cifar10/resnet110.yaml",
            ["cifar10/resnet20_cpu.yaml", "certify/standard.yaml"],
            "checkpoints/cifar10_resnet20_cpu/model.ckpt",
            options=SMOOTHED,
        ),
    ]


SETS = {"digits": digits, "cifar10": cifar10}


def checkpoint_of(row: Row, options: argparse.Namespace) -> tuple[Path | None, float | None]:
    """Return the checkpoint of a row, trained if need be, and the seconds that training took here, if it did."""
    folder = options.runs / options.set / row.slug
    seconds = None
    path = ROOT / row.checkpoint if row.checkpoint else folder / "model.ckpt"
    if row.fit is None and row.checkpoint is None:
        path = (options.checkpoints or Path()) / f"{row.slug}.ckpt"
        return (path, None) if path.exists() else (None, None)
    clock = folder / "seconds"
    if row.fit is not None and not path.exists():
        began = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        saving = "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
        saving += f"init_args: {{dirpath: {folder}, filename: model}}}}]"
        quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", saving]
        demand(main(["fit", "--config", config(row.model), *row.network, *row.fit, *quiet, *data(options)]), row)
        clock.write_text(f"{time.perf_counter() - began:.0f}")
    if row.anchored:
        anchored = folder / "anchored.ckpt"
        folder.mkdir(parents=True, exist_ok=True)
        if not anchored.exists():
            command = ["anchor", str(path), "--to", str(anchored), "--start", "mean", "--config", config(row.model)]
            demand(main([*command, *data(options)]), row)
        path = anchored
    if clock.exists():
        seconds = float(clock.read_text())
    return path, seconds


def certified(row: Row, path: Path, options: argparse.Namespace) -> Path:
    """Certify the images of a row that are not certified yet; return the directory of the run."""
    directory = options.runs / options.set / row.slug / "run"
    if not (directory / "certificates.json").exists():
        chosen = [f"--data.max_examples={options.images}", f"--data.skip={options.skip}", "--trainer.logger=false"]
        configs = [part for name in (row.model, *row.how) for part in ("--config", config(name))]
        further = [each.format(n=options.n) for each in row.options]
        place = ["--ckpt_path", str(path), "--ledger_dir", str(directory)]
        demand(main(["certify", *configs, *row.network, *place, *chosen, *further, *data(options)]), row)
    return directory


def config(name: str) -> str:
    """Return the path of a configuration."""
    return str(ROOT / "configs" / name)


def data(options: argparse.Namespace) -> list[str]:
    """Return the options that say where the images are."""
    return [f"--data.root={options.data}"] if options.data else []


def demand(code: int | None, row: Row) -> None:
    """End where a verb has failed: it has said why."""
    if code:
        raise SystemExit(f"{row.name}: ended with code {code}")


def cells(row: Row, path: Path, directory: Path, radii: Sequence[float], trained: float | None) -> list[str]:
    """Return what the table says of a run."""
    (run,) = read_runs(directory, row.name)
    found, summary = read_run(directory), run.summary(radii)
    samples = sum(vote.cost.samples for vote in found.votes) / len(found.votes)
    parameters = sum(weight.numel() for weight in read_checkpoint(path)["state_dict"].values())
    accuracies = [f"{100 * fraction:.1f}" for fraction in (summary.clean_accuracy, *summary.certified_accuracy)]
    chance = DETERMINISTIC if run.sigma is None else f"{run.alpha:g}"
    evaluations = f"{(summary.nfe_total or 0) * samples:.0f}"
    cost = [
        evaluations,
        f"{summary.seconds_per_image:#.3g}",
        str(parameters),
        "" if trained is None else f"{trained:.0f}",
    ]
    return [row.name, *accuracies, f"{summary.average_certified_radius:.3f}", chance, *cost]


def main_table(options: argparse.Namespace) -> str:
    """Train, certify and return the table."""
    radii = tuple(options.radii)
    heads = ["network and certificate", "% at 0", *(f"{radius:g}" for radius in radii), "ACR", "failure probability"]
    heads += ["evaluations/image", "s/image", "weights", "training, s"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in SETS[options.set]():
        if options.only and row.name not in options.only:
            continue
        path, trained = checkpoint_of(row, options)
        if path is None:
            print(f"{row.name}: no checkpoint, left out", file=sys.stderr)
            continue
        lines.append(cells(row, path, certified(row, path, options), radii, trained))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=[*SETS])
    parser.add_argument("--runs", type=Path, default=Path("runs/comparison"), help="where everything is kept")
    parser.add_argument("--checkpoints", type=Path, help="folder with checkpoints of rows that take long to train")
    parser.add_argument("--data", help="where the images are, as --data.root")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--skip", type=int, default=1, help="every skip-th image")
    parser.add_argument("--n", type=int, default=1000, help="noisy samples of the smoothed rows")
    parser.add_argument("--only", nargs="+", help="names of the rows to show; all others are left out")
    parser.add_argument("--radii", type=float, nargs="+", default=[0.1, 0.25, 0.5, 0.75, 1.0])
    print(main_table(parser.parse_args()))
