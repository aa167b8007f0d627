"""Command lines of short runs on digits."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "digits" / "mdeq_tiny.yaml"
CHECKPOINT = ROOT / "checkpoints" / "digits_mdeq_tiny" / "model.ckpt"

QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
FIT = """
trainer:
  max_epochs: 3
  limit_train_batches: 12
  limit_val_batches: 1
  num_sanity_val_steps: 0
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {save_last: true, save_top_k: 0, every_n_train_steps: 6, enable_version_counter: false}
model:
  pretraining_steps: 10
"""


def processes(count: int) -> list[str]:
    return [f"--trainer.devices={count}", *(["--trainer.strategy=ddp"] if count > 1 else [])]


def certify_command(ledger: Path, *more: str, images: int = 12, n: int = 100, config: str = "srs_1a") -> list[str]:
    return [
        "certify",
        f"--config={DIGITS}",
        f"--config={ROOT / 'configs' / 'certify' / f'{config}.yaml'}",
        f"--ckpt_path={CHECKPOINT}",
        f"--data.max_examples={images}",
        f"--sampling.n={n}",
        "--sampling.n0=10",
        f"--ledger_dir={ledger}",
        *QUIET,
        *more,
    ]


def fit_command(folder: Path, *more: str) -> list[str]:
    """A few dozen steps; the same command resumes."""
    folder.mkdir(parents=True, exist_ok=True)
    overlay = folder / "overlay.yaml"
    overlay.write_text(FIT)
    settings = [f"--config={DIGITS}", f"--config={overlay}", f"--trainer.default_root_dir={folder}"]
    return ["fit", *settings, "--ckpt_path=last_or_new", *QUIET, *more]
