"""Stage certify: the published table beside ours, as many images as there is time for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import yaml
from stage import REPOSITORY, Part, Result, Setting, Stage, folder_of, hand_in
from training import CONFIGS, LARGE, RESNET, SMALL, SMOKE_EXPLICIT

from deqcert.cli.trainer_verbs import run_trainer_verb
from deqcert.errors import LedgerError
from deqcert.report import ReportedRun, read_runs, summary_table

IMAGES = 500
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
TITLE = "certified accuracy, %"
_OVERHEAD = 10.0
"""Seconds that a run takes besides its images, at most: reading data and weights."""
PUBLISHED = {
    "published, MDEQ-SMALL-30A": (62, 50, 38, 30, 22, 13, 9),
    "published, MDEQ-LARGE-30A": (67, 55, 45, 33, 23, 16, 12),
    "published, SRS-MDEQ-LARGE-3A": (66, 54, 45, 33, 23, 16, 11),
    "published, ResNet-110": (65, 54, 41, 32, 23, 15, 9),
}
"""Gao et al., NeurIPS 2024; SRS there by an estimator that is not sound."""


class Certified(NamedTuple):
    """One run: a model and how it is certified."""

    name: str
    config: str
    checkpoints: tuple[str, ...]  # the first that there is
    strategy: str
    steps: int | None = None  # Anderson steps of the base classifier; None for those of the strategy's configuration


SMALLS = "cifar10_mdeq_small_gpu", "cifar10_mdeq_small_cpu_consistency"
RUNS = (
    Certified("SMALL-standard", SMALL, SMALLS, "standard"),
    Certified("SMALL-SRS-3A", SMALL, SMALLS, "srs_3a"),
    Certified("SMALL-standard-3A", SMALL, SMALLS, "standard", 3),
    Certified("LARGE-standard", LARGE, ("cifar10_mdeq_large_gpu",), "standard"),
    Certified("LARGE-SRS-3A", LARGE, ("cifar10_mdeq_large_gpu",), "srs_3a"),
    Certified("LARGE-standard-3A", LARGE, ("cifar10_mdeq_large_gpu",), "standard", 3),
    Certified("ResNet-110-standard", RESNET, ("cifar10_resnet110_gpu",), "standard"),
)


def certify_all(setting: Setting, result: Result) -> bool:
    """Certify one image by each run, and then as many of the same images by all of them as there is time for."""
    runs = [(run, checkpoint) for run in RUNS if (checkpoint := _checkpoint(setting, run)) is not None]
    for run, _ in runs:
        _bring_back(setting, run.name)
    target = IMAGES if not setting.smoke else 2
    for run, checkpoint in runs[:1] if setting.smoke else runs:
        _extend(setting, run, checkpoint, max(_images(setting, run.name), 1))
    if not setting.smoke:
        seconds = sum(_seconds(setting, run.name) for run, _ in runs)
        extra = int((0.9 * setting.left() - _OVERHEAD * len(runs)) / seconds)
        target = min(target, min(_images(setting, run.name) for run, _ in runs) + max(extra, 0))
    for run, checkpoint in runs:
        _extend(setting, run, checkpoint, target)
        hand_in(setting, _ledger(setting, run.name), f"{run.name}.jsonl")
        _tabulate(setting, result, [each.name for each, _ in runs if _images(setting, each.name)])
    return len(runs) == len(RUNS) and target >= (IMAGES if not setting.smoke else 2)


def _checkpoint(setting: Setting, run: Certified) -> Path | None:
    for name in run.checkpoints:
        for root in (setting.root, REPOSITORY):
            path = root / "checkpoints" / name / "model.ckpt"
            if path.is_file() and not (setting.smoke and root == REPOSITORY):
                return path
    return None


def _directory(setting: Setting, name: str) -> Path:
    return setting.work / "runs" / name


def _ledger(setting: Setting, name: str) -> Path:
    return _directory(setting, name) / "votes.rank0.jsonl"


def _bring_back(setting: Setting, name: str) -> None:
    filed = folder_of(setting.root, "certify") / f"{name}.jsonl"
    if filed.is_file():
        _directory(setting, name).mkdir(parents=True)
        shutil.copy(filed, _ledger(setting, name))


def _extend(setting: Setting, run: Certified, checkpoint: Path, images: int) -> None:
    directory = _directory(setting, run.name)
    arguments = _arguments(setting, run, checkpoint, images)
    try:
        run_trainer_verb(arguments)
    except LedgerError as error:
        # Of an earlier version of the code, or of other weights: those votes cannot be mixed with new ones.
        print(f"certify: {run.name} begins again: {error}", flush=True)
        shutil.rmtree(directory)
        run_trainer_verb(arguments)


def _arguments(setting: Setting, run: Certified, checkpoint: Path, images: int) -> list[str]:
    configs = [CONFIGS / run.config]
    extra = [f"--data.root={setting.data}", "--data.skip=20"]
    if setting.smoke:
        overlay = setting.work / f"{run.name}.yaml"
        explicit = {"model": SMOKE_EXPLICIT, "data": {"class_path": "deqcert.data.Digits"}}
        overlay.write_text(yaml.safe_dump(explicit))
        configs = [overlay if run.config == RESNET else CONFIGS / "digits" / "mdeq_tiny.yaml"]
        extra = ["--sampling.n=20", "--sampling.n0=10"]
    configs.append(CONFIGS / "certify" / f"{run.strategy}.yaml")
    if run.steps is not None:
        extra += [f"--smoothing.solver.max_steps={run.steps}", "--smoothing.solver.tolerance=0"]
    return [
        "certify",
        *(argument for path in configs for argument in ("--config", str(path))),
        *extra,
        f"--data.max_examples={images}",
        f"--ckpt_path={checkpoint}",
        f"--ledger_dir={_directory(setting, run.name)}",
        f"--trainer.accelerator={'gpu' if setting.device == 'cuda' else 'cpu'}",
        "--trainer.devices=1",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
    ]


def _run(setting: Setting, name: str) -> ReportedRun:
    (run,) = read_runs(_directory(setting, name), name)
    return run


def _images(setting: Setting, name: str) -> int:
    return len(_run(setting, name).examples) if _ledger(setting, name).is_file() else 0


def _seconds(setting: Setting, name: str) -> float:
    seconds = _run(setting, name).seconds
    return sum(seconds.values()) / len(seconds)


def _tabulate(setting: Setting, result: Result, names: list[str]) -> None:
    radii = RADII if not setting.smoke else (0.0, 0.25)
    runs = [_run(setting, name) for name in names]
    table = summary_table({run.name: run.summary(radii) for run in runs})
    result.table(TITLE, ["run", "images", *table.headings])
    for row, run in zip(table.rows, runs, strict=True):
        result.row(TITLE, row.name, len(run.examples), *row.cells)
    for name, accuracies in PUBLISHED.items():
        cells = [f"{value}.0" for value in accuracies[: len(radii)]]
        result.row(TITLE, name, 500, *cells, *[""] * (len(table.headings) - len(radii)))


CERTIFY = Stage(
    "certify",
    (Part("certify", 120, certify_all),),
    "Every 20th test image of CIFAR-10, n = 10 000, α = 0.001, σ = 0.5, sound audits; published rows beside them.",
)
