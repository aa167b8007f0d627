"""User errors end before any work, with one message that names the field, and lose nothing."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_lines import CHECKPOINT, DIGITS, ROOT, certify_command
from ranks import Ranks

from deqcert.cli import main
from deqcert.errors import DataError, SettingError
from deqcert.runs import read_tsv

# Whole runs pass through much code that is not ours; our own warnings are errors in every other test.
pytestmark = pytest.mark.filterwarnings("ignore")

CIFAR = ROOT / "configs" / "cifar10" / "mdeq_small.yaml"


def arguments(ledger: Path, *more: str) -> list[str]:
    audit = ["--sampling.audit=FixedAudit", "--sampling.audit.samples=40"]
    return certify_command(ledger, *audit, *more, images=2, n=50)


def assert_refused(arguments: list[str], field: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line ends with code 2 and a message that names the field."""
    try:
        code = main(arguments)
    except SystemExit as exit_:  # the parser's own way out
        code = exit_.code
    assert code == 2
    error = capsys.readouterr().err
    assert field in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ("--smoothing.sigma=0", "sigma"),
        ("--smoothing.sigma=-1", "sigma"),
        ("--sampling.n=0", "n"),
        ("--sampling.n0=0", "n0"),
        ("--certificate.alpha=0", "alpha"),
        ("--certificate.alpha=1", "alpha"),
        ("--certificate.alpha_audit=0.001", "alpha_audit"),
        ("--sampling.audit.samples=51", "audit.samples"),
        ("--data.skip=0", "skip"),
        ("--data.max_examples=0", "max_examples"),
        ("--smoothing.start=middle", "start"),
        ("--smoothing.start=anchor", "start = 'anchor'"),
        ("--sampling.start=middle", "start"),
        ("--seed=-1", "seed = -1"),
        ("--smoothing.solver=Newton", "solver"),
        ("--smoothing.nonsense=1", "nonsense"),
        ("--ckpt_path=missing.ckpt", "ckpt_path"),
        ("--data.start=5000", "no image"),
        ("--model.network.num_classes=11", "model.network.num_classes"),
        ("--model.network.image_size=16", "model.network.image_size"),
        ("--trainer.precision=bf16-true", "trainer.precision = 'bf16-true'"),
        ("--trainer.precision=16-true", "trainer.precision = '16-true'"),
        ("--trainer.fast_dev_run=true", "trainer.fast_dev_run = True"),
        ("--trainer.limit_predict_batches=1", "trainer.limit_predict_batches = 1"),
        ("--trainer.limit_predict_batches=0.5", "trainer.limit_predict_batches = 0.5"),
    ],
)
def test_bad_setting(bad: str, field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = tmp_path / "ledger"
    assert_refused(arguments(ledger, bad), field, capsys)
    assert not list(ledger.glob("votes*")) or bad.startswith("--data.start")


@pytest.mark.parametrize("verb", ["certify", "validate", "anchor"])
def test_a_network_for_color_is_refused_on_grey_images(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By broadcasting it would classify them."""
    monkeypatch.chdir(tmp_path)
    color = [f"--model.network.{field}" for field in ("image_channels=3", "mean=[.3,.3,.3]", "std=[.4,.4,.4]")]
    command = arguments(tmp_path / "ledger", *color)
    if verb == "validate":
        command = ["validate", f"--config={DIGITS}", "--trainer.logger=false", "--trainer.accelerator=cpu", *color]
        command.append("--ckpt_path=none")
    if verb == "anchor":
        target = tmp_path / "anchored.ckpt"
        command = ["anchor", str(CHECKPOINT), f"--to={target}", "--start=mean", f"--config={DIGITS}", *color]
    assert_refused(command, "model.network.image_channels = 3", capsys)


@pytest.mark.parametrize(
    ("objective", "bad", "field"),
    [
        ("smoothadv", "--model.objective.attack.epsilon=-1", "attack.epsilon"),
        ("smoothadv", "--model.objective.attack.steps=-1", "attack.steps"),
        ("smoothadv", "--model.objective.noisy_samples=0", "objective.noisy_samples"),
        ("smoothadv", "--model.objective.warmup_epochs=-1", "objective.warmup_epochs"),
        ("catrs", "--model.objective.epsilon=-1", "objective.epsilon"),
        ("catrs", "--model.objective.noisy_samples=0", "objective.noisy_samples"),
        ("consistency", "--model.objective.noisy_samples=1", "objective.noisy_samples"),
        ("consistency", "--model.objective.weight=-1", "objective.weight"),
        ("gaussian", "--model.max_skipped_steps=0", "max_skipped_steps"),
        ("gaussian", "--model.weights=missing.ckpt", "model.weights"),
        ("gaussian", "--model.objective=Newton", "objective"),
        ("gaussian", "--trainer.precision=16-true", "trainer.precision = '16-true'"),
        ("gaussian", "--trainer.overfit_batches=2", "trainer.overfit_batches = 2"),
    ],
)
def test_bad_training_setting(
    objective: str, bad: str, field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = ROOT / "configs" / "train" / f"{objective}.yaml"
    quiet = ["--trainer.accelerator=cpu", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    assert_refused(["fit", f"--config={DIGITS}", f"--config={overlay}", bad, *quiet], field, capsys)


def test_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(CHECKPOINT.read_bytes()[:5000])
    assert main(arguments(tmp_path / "ledger", f"--ckpt_path={damaged}")) == 2
    assert "ckpt_path" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["certify", "validate", "test"])
def test_weights_that_nobody_has_named(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("ckpt_path: null\n")
    for more in ([], [f"--config={overlay}"]):
        arguments = [verb, f"--config={DIGITS}", *more, f"--trainer.default_root_dir={tmp_path}"]
        assert_refused(arguments, "ckpt_path = None", capsys)
    assert not list(tmp_path.glob("*/"))


def test_weights_that_the_model_is_built_with(tmp_path: Path) -> None:
    assert main(arguments(tmp_path, "--ckpt_path=none")) == 0
    settings = json.loads((tmp_path / "certificates.json").read_text())["settings"]
    assert settings["checkpoint"] is None
    assert main(["attack", str(tmp_path), "--data.max_examples=1", "--steps=1", "--samples=2", "--n=2"]) == 0


def test_checkpoint_of_another_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(
        arguments(tmp_path / "ledger", "--model.network.channels=[16,16]"), "network.init_args.channels", capsys
    )


@pytest.mark.parametrize("content", [None, "empty"])
def test_data_folder_missing_or_empty(content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    if content == "empty":
        root.mkdir()
    arguments = ["validate", f"--config={CIFAR}", "--ckpt_path=none", f"--data.root={root}", "--trainer.logger=false"]
    assert main(arguments) == 2
    assert "root" in capsys.readouterr().err


def test_ledger_of_another_run_is_refused_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path)) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(arguments(tmp_path, "--sampling.n=51")) == 2
    error = capsys.readouterr().err
    assert "sampling.n = 50 there, 51 here" in error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_output_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    assert main(arguments(blocked)) == 2
    assert "ledger_dir" in capsys.readouterr().err
    assert blocked.read_text() == "mine"


def test_checkpoint_does_not_overrule_the_command_line(tmp_path: Path) -> None:
    """Lightning lays saved hyperparameters over the command line; the model's sigma must stay the user's."""
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    assert checkpoint["hyper_parameters"] == {"sigma": 0.5}
    assert main(arguments(tmp_path, "--model.sigma=0.25")) == 0
    assert "sigma: 0.25" in (tmp_path / "certify.yaml").read_text()


def lost_worker():
    """What torch raises when a process that loads data has been killed; it has no type of its own."""
    torch_module = {"__name__": "torch.utils.data._utils.signal_handling"}
    exec("def fail(): raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.')", torch_module)
    torch_module["fail"]()


def raising(error):
    def fail():
        raise error

    return fail


def bug_while_a_setting_is_refused():
    try:
        raise SettingError("n", 0, "must be >= 1")
    except SettingError:
        return {}["n"]


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (raising(OSError(errno.ENOSPC, "No space left on device", "a.tsv")), "a.tsv: No space left on device"),
        (raising(MemoryError()), "not enough memory"),
        (raising(torch.OutOfMemoryError("CUDA out of memory")), "sampling.batch_size"),
        (raising(torch.distributed.DistNetworkError("timed out")), "another process of this run has stopped"),
        (raising(torch.distributed.DistBackendError("NCCL error")), "another process of this run has stopped"),
        (raising(DataError("bad image")), "deqcert: error: bad image\n"),
        (lost_worker, "a process that loads data was killed"),
    ],
)
def test_what_a_user_can_fix_is_said_in_a_line(fail, message, monkeypatch, capsys):
    monkeypatch.setattr("deqcert.cli.trainer_verbs.run_trainer_verb", lambda args: fail())
    assert main(["fit"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fail", "kind"),
    [
        (
            raising(RuntimeError("gloo ran out of memory: DataLoader worker 3 can't allocate memory")),
            None,
        ),
        (raising(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")), None),
        (raising(OSError(errno.ENOENT, "No such file")), OSError),
        (bug_while_a_setting_is_refused, KeyError),
    ],
)
def test_a_bug_shows_its_traceback_whatever_its_text_says(fail, kind, monkeypatch):
    monkeypatch.setattr("deqcert.cli.trainer_verbs.run_trainer_verb", lambda args: fail())
    with pytest.raises(kind or RuntimeError):
        main(["fit"])


def test_a_bug_in_a_constructor_is_not_hidden_by_the_parser(monkeypatch, tmp_path):
    """The parser wraps what the constructor of a data module raises."""

    def buggy(*args, **kwargs):
        return {}["absent"]

    monkeypatch.setattr("deqcert.data.Digits.__init__", buggy)
    with pytest.raises(KeyError, match="absent"):
        main(["validate", f"--config={DIGITS}", "--ckpt_path=none", f"--trainer.default_root_dir={tmp_path}"])


FIT = ["fit", f"--config={DIGITS}", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("--trainer.accelerator=gpu", "No supported gpu backend found!"),
        ("--trainer.accelerator=abacus", "invalid accelerator name: `accelerator='abacus'`"),
        ("--trainer.logger=false", "Cannot use `LearningRateMonitor` callback with `Trainer` that has no logger."),
        ("--trainer.logger=WandbLogger", "Requirement 'wandb"),
        ("--trainer.strategy=abacus", "invalid strategy name: `strategy='abacus'`"),
        ("--trainer.limit_train_batches=-1", "invalid value -1 for limit_train_batches"),
        ("--trainer.val_check_interval=1000", "val_check_interval"),
        (f"--seed_everything={10**30}", "is not in bounds"),
        ("--trainer.precision=transformer-engine", "'transformer_engine>=0.11.0' not met"),
    ],
)
def test_what_lightning_refuses_is_said_in_a_line(
    bad: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "wandb" in message.lower() and importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is here")
    elsewhere = [f"--trainer.logger.save_dir={tmp_path}", "--trainer.accelerator=cpu", bad]
    assert main([*FIT, *(each for each in elsewhere if "logger=" not in bad or "save_dir" not in each)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("deqcert: error: ")
    assert message in error


def test_a_job_of_several_tasks_outside_of_srun(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "job")
    assert main([*FIT, f"--trainer.logger.save_dir={tmp_path}", "--trainer.accelerator=cpu"]) == 2
    assert "deqcert: error: You set `--ntasks=2`" in capsys.readouterr().err


def test_tensorboard_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    assert main([*FIT, f"--trainer.logger.save_dir={tmp_path}", "--trainer.accelerator=cpu"]) == 2
    assert "deqcert: error: Neither `tensorboard` nor `tensorboardX` is available" in capsys.readouterr().err


@pytest.mark.parametrize("lightning", [True, False])
@pytest.mark.parametrize(
    ("verb", "advice"), [("certify", "run the same command again"), ("fit", "--ckpt_path last"), ("report", None)]
)
def test_ctrl_c(verb, advice, lightning, monkeypatch, capsys):
    def interrupt(args):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if not lightning:
                raise
            sys.exit(1)  # as Lightning does

    monkeypatch.setattr("deqcert.cli.trainer_verbs.run_trainer_verb", interrupt)
    monkeypatch.setattr("deqcert.cli.report.run_report", interrupt)
    assert main([verb, f"--config={DIGITS}"]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("deqcert: interrupted")
    assert advice is None or advice in line


def test_ctrl_c_in_a_run(tmp_path):
    def certify() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        return main(arguments(tmp_path / "run", "--data.max_examples=400"))

    ranks = Ranks(1, certify, tmp_path / "log")
    ledger = tmp_path / "run" / "votes.rank0.jsonl"
    while not (ledger.exists() and ledger.read_bytes().count(b"\n") >= 3):
        assert not ranks.run_for(0.01), (tmp_path / "log").read_text()
    ranks.kill(signal.SIGINT)
    assert ranks.wait() == [130]
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1] == (
        "deqcert: interrupted; what was saved before is safe, run the same command again to resume"
    )


def test_a_closed_pipe_loses_no_training(tmp_path):
    """As ``deqcert fit | true``: the progress bar goes to the standard output."""
    command = [*FIT, f"--trainer.logger.save_dir={tmp_path}", "--trainer.logger.version=0", "--trainer.accelerator=cpu"]
    reader, writer = os.pipe()
    os.close(reader)

    def fit_unread() -> int:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        return main(command)

    ranks = Ranks(1, fit_unread, tmp_path / "log")
    os.close(writer)
    assert ranks.wait() == [141]
    assert len(list(tmp_path.rglob("last.ckpt"))) == 1


def test_kill_and_resume(tmp_path: Path) -> None:
    """SIGKILL in the middle, then the same command: every column but the time equals an uninterrupted run."""
    more = ["--data.max_examples=12", "--sampling.n=400", "--sampling.audit.samples=200"]
    assert main(arguments(tmp_path / "whole", *more)) == 0
    command = [sys.executable, "-m", "deqcert", *arguments(tmp_path / "killed", *more)]
    ledger = tmp_path / "killed" / "votes.rank0.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 240
        while not (ledger.exists() and ledger.read_bytes().count(b"\n") >= 4):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert ledger.read_bytes().count(b"\n") < 13
    assert main(arguments(tmp_path / "killed", *more)) == 0
    resumed, whole = (read_tsv(tmp_path / name / "certificates.tsv") for name in ("killed", "whole"))
    assert [row._replace(seconds=0) for row in resumed] == [row._replace(seconds=0) for row in whole]
