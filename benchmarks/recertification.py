"""What it takes to certify a changed network: anew, by SRS, and with the predictions of a run before the change.

    python benchmarks/recertification.py digits --runs runs/recertification --images 20
    python benchmarks/recertification.py cifar10 --images 50 --skip 200 --n 10000 --data cifar10_jpeg.npz

Certifies what is not certified yet (by ``deqcert``, so a run that was stopped goes on) and prints a Markdown table:
estimation samples of an image that the base classifier of the new network solves, evaluations of the cell per image
(selection included), average certified radius and its share of that of certifying anew. The rows "p_A less
disagreement" are the published formula for incremental certification (Ugare et al., ICLR 2024): a lower bound on the
old p_A less an upper bound on the probability that the networks disagree, of as many noisy samples as the row above
asks about; each bound has half of alpha.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pages import table

from deqcert.cli import main
from deqcert.runs import Run, read_run
from deqcert.statistics import Votes, certified_radius, clopper_pearson_lower, clopper_pearson_upper

ROOT = Path(__file__).parents[1]
STORED = ["--sampling.store_predictions=true"]


@dataclass(frozen=True)
class Pair:
    """A network and what becomes of it.

    Attributes:
        name: For the table; for files, with _ for what is no letter or digit.
        model: Configuration of network and data, below ``configs``.
        old: Its checkpoint before the change.
        new: After it; None where it is trained here.
        options: Further options of ``deqcert certify`` after the change.
        fit: Options of ``deqcert fit`` that change it.
    """

    name: str
    model: str
    old: str
    new: str | None
    options: Sequence[str] = ()
    fit: Sequence[str] = ()


DIGITS = "checkpoints/digits_mdeq_tiny/model.ckpt"
GAUSSIAN = "checkpoints/cifar10_mdeq_small_cpu/model.ckpt"
CONSISTENCY = "checkpoints/cifar10_mdeq_small_cpu_consistency/model.ckpt"
BF16 = ["--trainer.precision=bf16-mixed"]
TUNED = [
    f"--model.weights={ROOT / DIGITS}",
    "--model.pretraining_steps=0",
    "--model.optimizer.init_args.lr=3e-4",
    "--trainer.max_epochs=1",
    "--trainer.limit_val_batches=0",
]
SETS = {
    "digits": [
        Pair("float32 to bfloat16", "digits/mdeq_tiny.yaml", DIGITS, DIGITS, BF16),
        Pair("one epoch of fine-tuning", "digits/mdeq_tiny.yaml", DIGITS, None, fit=TUNED),
    ],
    "cifar10": [
        Pair("float32 to bfloat16", "cifar10/mdeq_small.yaml", CONSISTENCY, CONSISTENCY, BF16),
        Pair("Gaussian to consistency", "cifar10/mdeq_small.yaml", GAUSSIAN, CONSISTENCY),
    ],
}


class Runs:
    """The runs of a pair, made when they are asked for."""

    def __init__(self, pair: Pair, options: argparse.Namespace) -> None:
        self.pair, self.options = pair, options
        slug = "".join(letter if letter.isalnum() else "_" for letter in pair.name.lower())
        self.folder: Path = options.runs / options.set / slug

    def run(self, name: str, how: str, checkpoint: Path, *more: str) -> Run:
        """Certify as a configuration says, unless that is done, and read the run."""
        directory, options = self.folder / name, self.options
        if not (directory / "certificates.json").exists():
            chosen = [f"--data.max_examples={options.images}", f"--data.skip={options.skip}"]
            chosen += [f"--sampling.n={options.n}", f"--sampling.batch_size={options.batch_size}"]
            place = [f"--ckpt_path={checkpoint}", f"--ledger_dir={directory}", "--trainer.logger=false"]
            self.demand(main(["certify", *self.configs(how), *place, *chosen, *more, *self.data]))
        return read_run(directory)

    def configs(self, *further: str) -> list[str]:
        """Return the options that name configurations."""
        return [f"--config={ROOT / 'configs' / name}" for name in (self.pair.model, *further)]

    @property
    def data(self) -> list[str]:
        """The options that say where the images are."""
        return [f"--data.root={self.options.data}"] if self.options.data else []

    @property
    def changed(self) -> Path:
        """The checkpoint after the change."""
        if self.pair.new is not None:
            return ROOT / self.pair.new
        path = self.folder / "model.ckpt"
        if not path.exists():
            saving = "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
            saving += f"init_args: {{dirpath: {self.folder}, filename: model}}}}]"
            quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", saving]
            self.demand(main(["fit", *self.configs(), *self.pair.fit, *quiet, *self.data]))
        return path

    def demand(self, code: int | None) -> None:
        """End where a verb has failed: it has said why."""
        if code:
            raise SystemExit(f"{self.pair.name}: ended with code {code}")


def asked(votes: Votes) -> int:
    """Return of how many estimation samples it is known what the base classifier says."""
    return votes.n if votes.audited is None else votes.escalations + votes.examined


def formula(old: Run, anew: Run, samples: Sequence[int]) -> float:
    """Return the average certified radius by the published formula with so many samples of each image."""
    alpha, radii = anew.rule.alpha / 2, []
    for before, after, count in zip(old.votes, anew.votes, samples, strict=True):
        differ = before.sample_predictions()[:count] != after.sample_predictions()[:count]
        kept = float(clopper_pearson_lower(before.estimation[after.selected], before.n, alpha))
        lost = float(clopper_pearson_upper(np.count_nonzero(differ), count, alpha)) if count else 1.0
        radius = float(certified_radius(max(0.0, kept - lost), after.sigma))
        radii.append(radius if after.selected == after.label else 0.0)
    return float(np.mean(radii))


def rows(pair: Pair, options: argparse.Namespace) -> list[list[str]]:
    """Certify a pair and return its rows of the table."""
    runs = Runs(pair, options)
    old = runs.run("old", "certify/standard.yaml", ROOT / pair.old, *STORED)
    changed = runs.changed
    anew = runs.run("anew", "certify/standard.yaml", changed, *STORED, *pair.options)
    further = {"SRS-3A": runs.run("srs_3a", "certify/srs_3a.yaml", changed, *pair.options)}
    for escalation in (0, 1):
        settings = [f"--sampling.previous={old.directory}", f"--sampling.escalation={escalation}", *pair.options]
        name = f"incremental, escalation {escalation}"
        further[name] = runs.run(f"incremental_{escalation}", "certify/incremental.yaml", changed, *settings)
    agree = np.mean([
        np.mean(before.sample_predictions() == after.sample_predictions())
        for before, after in zip(old.votes, anew.votes, strict=True)
    ])  # fmt: skip
    whole = acr(anew)
    title = f"{pair.name}: {100 * agree:.1f} % of predictions agree"
    lines = [[f"{title}; anew, standard", *cost(anew), f"{whole:.4f}", ""]]
    for name, run in further.items():
        lines.append([name, *cost(run), *share(acr(run), whole)])
        if name.startswith("incremental"):
            counts = [asked(votes) for votes in run.votes if isinstance(votes, Votes)]
            lines.append(["p_A less disagreement", *cost(run), *share(formula(old, anew, counts), whole)])
    return lines


def cost(run: Run) -> list[str]:
    """Return what an image takes: estimation samples that f solves, and evaluations of the cell for everything."""
    return [
        f"{np.mean([asked(votes) for votes in run.votes]):.0f}",
        f"{np.mean([votes.nfe_fast + votes.nfe_audit for votes in run.votes]):.0f}",
    ]


def acr(run: Run) -> float:
    """Return the average certified radius."""
    return float(np.mean([each.radius if each.correct else 0.0 for each in run.certificates]))


def share(radius: float, whole: float) -> list[str]:
    """Return a radius and its share of that of certifying anew."""
    return [f"{radius:.4f}", f"{100 * radius / whole:.1f} %" if whole else ""]


def main_table(options: argparse.Namespace) -> str:
    """Certify all pairs and return the table."""
    pairs = {pair.name: pair for pair in SETS[options.set]}
    if unknown := set(options.only or ()) - set(pairs):
        raise SystemExit(f"--only: {', '.join(sorted(unknown))} must be among {', '.join(pairs)}")
    chosen = [pairs[name] for name in options.only or pairs]
    heads = ["change, and how it is certified", "solved/image", "evaluations/image", "ACR", "of anew"]
    return table(heads, [row for pair in chosen for row in rows(pair, options)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=[*SETS])
    parser.add_argument("--runs", type=Path, default=Path("runs/recertification"), help="where everything is kept")
    parser.add_argument("--data", help="where the images are, as --data.root")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--skip", type=int, default=1, help="every skip-th image")
    parser.add_argument("--n", type=int, default=1000, help="noisy samples of each image")
    parser.add_argument("--batch_size", type=int, default=200)
    parser.add_argument("--only", nargs="+", help="names of the pairs to show")
    print(main_table(parser.parse_args()))
