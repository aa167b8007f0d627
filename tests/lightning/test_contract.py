"""Exactly which private names of Lightning the package uses: if an upgrade moves one, this fails by name."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import lightning.pytorch
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.connectors import data_connector
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

import deqcert

PACKAGE = Path(deqcert.__file__).parent
PRIVATE_IMPORTS = {
    ("lightning/loop.py", "lightning.pytorch.loops.loop", "_Loop"),
    ("lightning/loop.py", "lightning.pytorch.trainer.connectors.data_connector", "_DataLoaderSource"),
    ("lightning/signals.py", "lightning.pytorch.trainer.connectors.signal_connector", "_SignalConnector"),
}
OVERRIDDEN_METHODS = {"_parse_ckpt_path", "_prepare_subcommand_parser", "_run_subcommand"}


def _nodes(kind):
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kind):
                yield path.relative_to(PACKAGE).as_posix(), node


def test_private_imports_are_the_pinned_ones():
    found = set()
    for file, node in _nodes(ast.ImportFrom):
        if (node.module or "").split(".")[0] in ("lightning", "lightning_fabric", "lightning_utilities"):
            private_module = any(part.startswith("_") for part in node.module.split("."))
            found |= {(file, node.module, a.name) for a in node.names if private_module or a.name.startswith("_")}
    assert found == PRIVATE_IMPORTS


def test_private_attributes_of_the_trainer_are_not_used():
    owners = {"trainer", "Trainer", "lightning"}
    used = {
        (file, node.attr)
        for file, node in _nodes(ast.Attribute)
        if node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value).split(".")[-1] in owners
    }
    assert used == set()


def test_overridden_methods_of_the_command_line_exist():
    ours = [node for _, node in _nodes(ast.ClassDef) if node.name == "DeqCertCLI"]
    private = {n.name for cli in ours for n in cli.body if isinstance(n, ast.FunctionDef) and n.name.startswith("_")}
    assert private == OVERRIDDEN_METHODS
    assert all(callable(getattr(LightningCLI, name)) for name in OVERRIDDEN_METHODS)


@pytest.mark.parametrize(
    "name",
    ["run", "teardown", "inference_mode", "return_predictions", "max_batches", "_data_source", "_combined_loader",
     "_results"],
)  # fmt: skip
def test_the_certification_loop_has_what_the_trainer_knows_of_a_prediction_loop(name):
    from deqcert.lightning.loop import CertificationLoop
    from deqcert.lightning.methods import Smoothed
    from deqcert.smoothing import Smoothing, Standard
    from deqcert.statistics import CertificationRule

    trainer = lightning.pytorch.Trainer(accelerator="cpu", logger=False)
    method = Smoothed(Smoothing(), Standard(), 0, CertificationRule())
    loop = CertificationLoop(trainer, method, Path("."), 1.0)
    assert isinstance(loop, _Loop)
    assert hasattr(loop, name)
    assert hasattr(trainer.predict_loop, name)


def test_data_source_takes_an_instance_and_a_name():
    parameters = inspect.signature(data_connector._DataLoaderSource).parameters
    assert list(parameters) == ["instance", "name"]


def test_sigterm_is_noted_without_a_collective(monkeypatch):
    from deqcert.lightning import Trainer

    def fail(*args, **settings):
        raise AssertionError("a collective in a signal handler")

    assert isinstance(lightning.pytorch.Trainer(accelerator="cpu", logger=False)._signal_connector, _SignalConnector)
    trainer = Trainer(accelerator="cpu", logger=False)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.broadcast", fail)
    assert not trainer.received_sigterm
    trainer._signal_connector._sigterm_notifier_fn(15, None)
    assert trainer.received_sigterm
    trainer.state.fn = TrainerFn.FITTING  # whose loop would stop each rank where it is, without saving
    assert trainer.terminated
    assert not trainer.received_sigterm


def test_sigterm_exception_carries_an_exit_code():
    assert issubclass(SIGTERMException, SystemExit)
    assert SIGTERMException(143).code == 143


def test_predict_takes_what_certify_gives():
    parameters = inspect.signature(lightning.pytorch.Trainer.predict).parameters
    assert {"model", "datamodule", "return_predictions", "ckpt_path"} <= set(parameters)
    assert hasattr(lightning.pytorch.Trainer, "received_sigterm")


def test_the_search_for_last_checkpoints_exists():
    assert list(inspect.signature(ModelCheckpoint._find_last_checkpoints).parameters) == ["self", "trainer"]
