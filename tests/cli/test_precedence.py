"""Which setting holds where several are given."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import yaml
from command_lines import CHECKPOINT, DIGITS, QUIET, ROOT, certify_command
from jsonargparse import ActionConfigFile
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn

from deqcert.cli import main
from deqcert.cli.arguments import in_order_of_precedence
from deqcert.cli.instantiation import instantiate
from deqcert.cli.parsing import settings_as_written
from deqcert.data import CIFAR10, Digits, ImageDataModule, ImageFolder
from deqcert.implicit import GradientEstimator, ImplicitAdjoint, OneStep, Phantom, Unrolled
from deqcert.models import MDEQ, CifarResNet, ResNet50
from deqcert.smoothing import Sampling, Serialized, Smoothing, Standard
from deqcert.solvers import Anderson, Broyden, Picard, Solver
from deqcert.statistics import AdaptiveAudit, AuditSize, FixedAudit, GroupSequential
from deqcert.training import CATRS, Consistency, Gaussian, Objective, SmoothAdv

pytestmark = pytest.mark.filterwarnings("ignore")  # jsonargparse and lightning warn of each other

CERTIFY = ROOT / "configs" / "certify"

GROUPS: dict[type, list[type]] = {
    Sampling: [Serialized, Standard],
    Solver: [Anderson, Broyden, Picard],
    AuditSize: [AdaptiveAudit, FixedAudit],
    Objective: [Gaussian, SmoothAdv, CATRS, Consistency],
    GradientEstimator: [ImplicitAdjoint, OneStep, Phantom, Unrolled],
    ImageDataModule: [Digits, CIFAR10, ImageFolder],
    nn.Module: [MDEQ, CifarResNet, ResNet50],
    torch.optim.Optimizer: [torch.optim.Adam, torch.optim.SGD],
}
PAIRS = [(base, *pair) for base, classes in GROUPS.items() for pair in itertools.permutations(classes, 2)]


def settings_of(kind: type) -> dict[str, tuple[Any, Any]]:
    """The type and the default value of each setting of a class."""
    constructors = [each.__init__ for each in (kind, ImageDataModule) if issubclass(kind, each)]
    hinted = [kind] if dataclasses.is_dataclass(kind) else constructors
    hints = {name: hint for each in hinted for name, hint in typing.get_type_hints(each).items()}
    parameters = {name: each for init in constructors for name, each in inspect.signature(init).parameters.items()}
    return {
        name: (hints.get(name), each.default)
        for name, each in parameters.items()
        if name not in ("self", "params") and each.kind is not inspect.Parameter.VAR_KEYWORD
    }


def unusual(hint: Any, default: Any) -> Any:
    """Another value than the default one; None where the setting is nothing simple."""
    if get_origin(hint) is Literal:
        return next(value for value in get_args(hint) if value != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1 if isinstance(default, int) else default / 2 + 0.125
    return {Solver: {"class_path": "Broyden", "init_args": {"max_steps": 7}}, str: "other", int: 9, float: 0.9}.get(
        hint
    )


class Parser:
    """A parser of one group, as the command line has it."""

    def __init__(self, base: type) -> None:
        self._parser = LightningArgumentParser(prog="deqcert", exit_on_error=False)
        self._parser.add_argument("--config", action=ActionConfigFile)
        if base is torch.optim.Optimizer:
            self._parser.add_argument("--group", type=typing.Callable[[typing.Iterable], base])
        else:
            self._parser.add_subclass_arguments(base, "group", required=False)

    def __call__(self, *arguments: str) -> Any:
        with settings_as_written():
            return self._parser.parse_args(arguments).group


@pytest.fixture(scope="module")
def parsers() -> dict[type, Parser]:
    return {base: Parser(base) for base in GROUPS}


def config(folder: Path, kind: type, settings: dict[str, Any]) -> str:
    path = folder / f"{kind.__name__}.yaml"
    path.write_text(yaml.safe_dump({"group": {"class_path": name_of(kind), "init_args": settings}}))
    return f"--config={path}"


def name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@pytest.mark.parametrize(("base", "first", "second"), PAIRS, ids=lambda kind: kind.__name__)
def test_a_class_that_replaces_another_has_its_own_defaults(parsers, tmp_path, base, first, second):
    odd = {name: unusual(*each) for name, each in settings_of(first).items()}
    before = config(tmp_path, first, {name: value for name, value in odd.items() if value is not None})
    own = settings_of(second)
    needed = {
        name: unusual(hint, default) or ([8, 16] if "Sequence" in str(hint) else 8)
        for name, (hint, default) in own.items()
        if default is inspect.Parameter.empty
    }
    expected = {name: default for name, (_, default) in own.items()} | needed
    named = [f"--group={name_of(second)}", *(f"--group.{name}={value}" for name, value in needed.items())]
    for change in ([config(tmp_path, second, needed)], named):
        found = parsers[base](before, *change)
        assert found.class_path.endswith(second.__name__)
        for name, value in found.init_args.items(branches=True, nested=False):
            if isinstance(expected[name], bool | int | float | str):
                assert value == expected[name], name
        if base in (Sampling, Solver, AuditSize, Objective, GradientEstimator):
            parser = parsers[base]._parser
            built = parser.instantiate_classes(parser.parse_object({"group": found.as_dict()})).group
            assert built == second(**needed)


def test_the_same_class_by_another_name_keeps_its_settings(parsers):
    found = parsers[Solver]("--group=deqcert.solvers.Anderson", "--group.memory=4", f"--group={name_of(Anderson)}")
    assert found.init_args.memory == 4


def test_a_list_that_replaces_another_takes_none_of_its_settings(tmp_path):
    parser = LightningArgumentParser(prog="deqcert")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_argument("--callbacks", type=list[Callback])
    kinds = "{class_path: LearningRateMonitor}, {class_path: ModelCheckpoint, init_args: "
    for name, settings in (("a", "{save_top_k: 0, monitor: loss}"), ("b", "{filename: mine}")):
        (tmp_path / f"{name}.yaml").write_text(f"callbacks: [{kinds}{settings}}}]\n")
    with settings_as_written():
        configs = [f"--config={tmp_path / name}.yaml" for name in "ab"]
        found = parser.parse_args(
            [*configs, "--callbacks.mode=max", "--callbacks+=Timer", "--callbacks.interval=epoch"]
        )
    *_, saver, timer = (each.init_args for each in found.callbacks)
    assert (saver.filename, saver.save_top_k, saver.monitor, saver.mode) == ("mine", 1, None, "max")
    assert timer.interval == "epoch"


def test_a_whole_number_is_no_fraction(tmp_path):
    (tmp_path / "a.yaml").write_text("trainer: {limit_val_batches: 1, limit_test_batches: 1.0}\n")
    given = [
        "--trainer.limit_train_batches=1",
        "--trainer.limit_predict_batches=1.0",
        "--trainer.gradient_clip_val=0.5",
    ]
    trainer = instantiate(["fit", f"--config={DIGITS}", f"--config={tmp_path / 'a.yaml'}", *given, *QUIET]).trainer
    limits = [getattr(trainer, f"limit_{name}_batches") for name in ("train", "val", "test", "predict")]
    assert limits == [1, 1, 1.0, 1.0]
    assert [type(limit) for limit in limits] == [int, int, float, float]
    assert trainer.gradient_clip_val == 0.5


SRS = f"--config={CERTIFY / 'srs_3a.yaml'}"


@pytest.mark.parametrize("order", [1, -1], ids=["options first", "configurations first"])
def test_the_command_line_wins_over_every_configuration(order, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "trainer: {max_epochs: 7}\ndata: {init_args: {skip: 3}}\nckpt_path: nowhere\nledger_dir: nowhere\n"
    )
    configs = [f"--config={DIGITS}", "--config", "deqcert:certify/standard", f"-c{overlay}"]
    options = [
        "--sampling.n=1000",
        "--smoothing.sigma",
        "0.25",
        "--smoothing.solver.max_steps=12",
        "--certificate.alpha=0.01",
        "--data.skip=5",
        "--data.batch_size=32",
        "--model.sigma=0.125",
        "--model.jacobian.weight=0.25",
        "--model.optimizer.lr=0.5",
        "--model.network.solver.max_steps=3",
        "--trainer.max_epochs=2",
        f"--ckpt_path={CHECKPOINT}",
        f"--ledger_dir={tmp_path}",
        "--seed=11",
        "--patience=5",
    ]
    built = instantiate(["certify", *itertools.chain(*[options, configs][::order])])
    chosen = built.config_init["certify"]
    assert chosen["smoothing"] == Smoothing(sigma=0.25, solver=Anderson(max_steps=12, tolerance=1e-3))
    assert chosen["sampling"] == Standard(n=1000)
    assert chosen["certificate"].rule.alpha == 0.01
    assert (built.datamodule.skip, built.datamodule.batch_size) == (5, 32)
    assert (built.model.sigma, built.model.jacobian.weight) == (0.125, 0.25)
    assert built.model.optimizer_callable([nn.Parameter(torch.zeros(1))]).defaults["lr"] == 0.5
    assert built.model.network.solver == Broyden(max_steps=3, tolerance=1e-3)
    assert built.trainer.max_epochs == 2
    assert [chosen[name] for name in ("ckpt_path", "ledger_dir", "seed", "patience")] == [
        str(CHECKPOINT),
        str(tmp_path),
        11,
        5.0,
    ]


def test_another_strategy_on_the_command_line_is_the_documented_one(tmp_path, capsys):
    more = ["--sampling=deqcert.smoothing.Standard", "--sampling.n0=10", "--sampling.n=50"]
    assert main(certify_command(tmp_path, *more, images=1, config="srs_3a")) == 0
    assert "standard-30A " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("fit --b 2 --config=y --c=-3 -c z", "fit --config=y -c z --b 2 --c=-3"),
        ("certify --n -1e-3 --flag --config x", "certify --config x --n -1e-3 --flag"),
        ("certify --s.n=5 --t=1 --s=Standard --sx=2", "certify --s=Standard --s.n=5 --t=1 --sx=2"),
        ("certify --s.o.m=5 --s.o=Picard --s.n=1 --s=Standard", "certify --s=Standard --s.o=Picard --s.o.m=5 --s.n=1"),
        ("certify --s=A --s.n=1 --s=B --s.n=2", "certify --s=A --s=B --s.n=1 --s.n=2"),
        ("fit --l+=A --l.x=1 --l+=B --l.x=2", "fit --l+=A --l.x=1 --l+=B --l.x=2"),
        ("fit --b 2 -cy -c=z --print_config", "fit -c y -c=z --b 2 --print_config"),
        ("fit", "fit"),
    ],
)
def test_order_of_precedence(given, read):
    assert in_order_of_precedence(given.split()) == read.split()


def test_options_before_a_configuration_are_in_what_is_printed(capsys):
    """Of what the parser itself does with the order, nothing is left, nor with an abbreviation of --config."""
    options = ["--sampling.n=50", "--print_config", "--config", str(CERTIFY / "standard.yaml"), f"-c{DIGITS}"]
    with pytest.raises(SystemExit) as ending:
        main(["certify", *options])
    assert ending.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["sampling"]["init_args"]["n"] == 50
    assert printed["sampling"]["class_path"].endswith("Standard")
    with pytest.raises(SystemExit) as ending:
        main(["certify", "--sampling.n=50", f"--config={DIGITS}", f"--conf={CERTIFY / 'standard.yaml'}"])
    assert ending.value.code == 2
    assert "--conf=" in capsys.readouterr().err


STOPPING = {
    "a class": ["--sampling.stopping=GroupSequential"],
    "a class and settings": ["--sampling.stopping.radius_gain=0.2", "--sampling.stopping=GroupSequential"],
    "settings only": ["--sampling.stopping.radius_gain=0.2", "--sampling.stopping.radius_in_sigma=0.5"],
    "looks": ["--sampling.stopping.looks=[100, 10000]", "--sampling.stopping.shares=[0.25, 0.75]"],
    "null": ["--sampling.stopping=null"],
}
STOPPING_RULES = {
    "a class": GroupSequential(),
    "a class and settings": GroupSequential(0.2),
    "settings only": GroupSequential(0.2, 0.5),
    "looks": GroupSequential(looks=(100, 10_000), shares=(0.25, 0.75)),
    "null": None,
}


@pytest.mark.parametrize("given", STOPPING)
def test_settings_within_a_class_that_is_named_later_are_kept(given):
    arguments = [*STOPPING[given], "--sampling=Standard", f"--config={DIGITS}", SRS]
    sampling = instantiate(["certify", *arguments, *QUIET]).config_init["certify"]["sampling"]
    assert sampling == Standard(stopping=STOPPING_RULES[given])


@pytest.mark.parametrize(
    "stopping",
    [
        "{radius_gain: 0.2, looks: [100, 10000]}",
        "{class_path: GroupSequential, init_args: {radius_gain: 0.2, looks: [100, 10000]}}",
        "{class_path: deqcert.statistics.GroupSequential, init_args: {radius_gain: 0.2, looks: [100, 10000]}}",
    ],
)
def test_a_file_states_a_stopping_rule_by_its_settings_or_its_class(tmp_path, stopping):
    path = tmp_path / "stopping.yaml"
    path.write_text(f"sampling:\n  class_path: Standard\n  init_args:\n    stopping: {stopping}\n")
    sampling = instantiate(["certify", f"--config={DIGITS}", f"--config={path}", *QUIET]).config_init["certify"][
        "sampling"
    ]
    assert sampling == Standard(stopping=GroupSequential(0.2, looks=(100, 10_000)))
