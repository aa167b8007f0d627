"""Whatever stands in a configuration: a clear error, or the settings that it says."""

from __future__ import annotations

import contextlib
import io
import math
import re
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from command_lines import CHECKPOINT, DIGITS, QUIET, ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonargparse import ActionConfigFile, lazy_instance

import deqcert.cli.trainer_verbs  # noqa: F401  # importing takes longer than a test may
from deqcert.cli import main
from deqcert.cli.arguments import demand_sound_configs
from deqcert.cli.failures import refused_by_lightning
from deqcert.cli.parsing import SettingsParser
from deqcert.data import Digits, ImageDataModule
from deqcert.lightning import CertifiedRadius, Trainer
from deqcert.smoothing import Serialized
from deqcert.solvers import Solver
from deqcert.statistics import FixedAudit

# Jsonargparse and lightning warn of each other; our own warnings are errors in every other test.
pytestmark = pytest.mark.filterwarnings("ignore")

SERIALIZED = "sampling:\n  class_path: deqcert.smoothing.Serialized\n  init_args:\n    "
CERTIFY = sorted((ROOT / "configs" / "certify").glob("*.yaml"))


# The command line, whole or with a parser of nothing but what certification needs, which is faster.


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fail what computes longer, however busy the machine is."""

    def hung(*_: object) -> None:
        pytest.fail(f"takes more than {seconds} s")

    previous = signal.signal(signal.SIGPROF, hung)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def refused(arguments: list[str]) -> str:
    """Run the command line; return its error, empty if there is none."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            code = main(arguments)
    except SystemExit as ending:
        code = ending.code
    assert code in (0, 2)
    return stderr.getvalue().rsplit("error: ", 1)[1] if code else ""


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """Returns the error of ``certify`` with an overlay; what is not refused ends with data that hold no image."""
    monkeypatch.chdir(tmp_path)

    def whole(content: str | bytes) -> str:
        path = tmp_path / "hostile.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        overlays = [f"--config={each}" for each in (DIGITS, CERTIFY[0], path)]
        with time_limit(10):
            return refused(["certify", *overlays, f"--ckpt_path={CHECKPOINT}", "--data.start=5000", *QUIET])

    return whole


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Returns the error of a configuration of certify without a model, and what it builds."""
    parser = SettingsParser(prog="deqcert")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_method_arguments(Trainer, "certify", skip={"model", "datamodule"})
    parser.add_lightning_class_args(CertifiedRadius, "certificate")
    parser.add_subclass_arguments(ImageDataModule, "data", default=lazy_instance(Digits))
    path = tmp_path_factory.mktemp("configs") / "hostile.yaml"
    built: list[Any] = []

    def build(arguments: list[str]) -> None:
        demand_sound_configs(arguments)
        with refused_by_lightning("lightning."):
            built[:] = [parser.instantiate_classes(parser.parse_args(arguments[1:]))]

    def alone(content: str | bytes) -> tuple[str, Any]:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with time_limit(10), pytest.MonkeyPatch.context() as patch:
            patch.setattr("deqcert.cli.trainer_verbs.run_trainer_verb", build)
            error = refused(["certify", f"--config={path}"])
        return error, None if error else built[0]

    return alone


HOSTILE = {
    # No configuration.
    "empty": ("", "Unexpected config"),
    "a comment": ("# nothing\n", "Unexpected config"),
    "null": ("null\n", "Unexpected config"),
    "a list": ("- a\n- b\n", "Unexpected config"),
    "a number": ("3\n", "Unexpected config"),
    "zeros": (bytes(1000), "Problems parsing config"),
    "a tab": ("\tsmoothing: 3\n", "Problems parsing config"),
    "two documents": ("a: 1\n---\nb: 2\n", "Problems parsing config"),
    "a number as key": ("3: 4\n", "Key must be a string"),
    "a list as key": ("[1, 2]: 4\n", "unhashable key"),
    # Code.
    "a call": ("sampling: !!python/object/apply:pathlib.Path.touch ['victim']\n", "could not determine a constructor"),
    "a function": ("sampling: {class_path: os.system, init_args: {command: touch victim}}\n", "not .* subclass"),
    "another class": ("data: {class_path: subprocess.Popen, init_args: {args: [touch, victim]}}\n", "not .* subclass"),
    "an abstract class": ("sampling: {class_path: deqcert.smoothing.Sampling}\n", "is abstract"),
    "no class": ("sampling: Nonsense\n", "Expected a dot import path"),
    # Unknown keys.
    "unknown section": ("nonsense: 1\n", "nonsense"),
    "unknown setting of g": ("smoothing: {nonsense: 1}\n", "nonsense"),
    "unknown setting": (SERIALIZED + "nonsense: 1\n", "nonsense"),
    "unknown setting of a solver": (SERIALIZED + "proposal: {class_path: Anderson, init_args: {steps: 3}}\n", "steps"),
    # Types.
    "text for a number": (SERIALIZED + "n: many\n", 'key "n"'),
    "a fraction for a count": (SERIALIZED + "n: 10.5\n", 'key "n"'),
    "a whole float for a count": (SERIALIZED + "n: 1.0e+3\n", 'key "n"'),
    "a bool for a count": (SERIALIZED + "n: true\n", 'key "n"'),
    "a list for a count": (SERIALIZED + "n: [100]\n", 'key "n"'),
    "a date": (SERIALIZED + "n: 2020-01-01\n", 'key "n"'),
    # Values.
    "huge n": (SERIALIZED + f"n: {10**30}\n", "n = 10{30}:"),
    "negative n": (SERIALIZED + "n: -1\n", "n = -1"),
    "null n": (SERIALIZED + "n: null\n", 'key "n"'),
    "huge batch": (SERIALIZED + f"batch_size: {10**12}\n", "batch_size = 1000000000000"),
    "overflowing sigma": ("smoothing: {sigma: 1e400}\n", "sigma = inf"),
    "vanishing sigma": ("smoothing: {sigma: 1e-400}\n", "sigma = 0.0"),
    "NaN for sigma": ("smoothing: {sigma: .nan}\n", "sigma = nan"),
    "infinite sigma": ("smoothing: {sigma: .inf}\n", "sigma = inf"),
    "huge seed of the data": (f"data: {{init_args: {{seed: {10**30}}}}}\n", "seed = "),
    "NaN for alpha": ("certificate: {alpha: .nan}\n", "alpha = nan"),
    "infinite radius": ("certificate: {radii: [.inf]}\n", "radii = .inf."),
    "null for a class": ("sampling: null\n", 'key "sampling"'),
    "null for g": ("smoothing: null\n", 'key "smoothing"'),
    "a number for g": ("smoothing: 3\n", 'key "smoothing"'),
    "null for a group": ("certificate: null\n", 'key "certificate"'),
    "a number for a group": ("certificate: 3\n", 'key "certificate"'),
    "null for a text": (SERIALIZED + "start: null\n", 'key "start"'),
    "null for a solver": ("smoothing: {solver: null}\n", 'key "smoothing.solver"'),
    "null for a number": (SERIALIZED + "proposal: {class_path: Anderson, init_args: {max_steps: null}}\n", "max_steps"),
    "null sigma": ("smoothing: {sigma: null}\n", 'key "smoothing.sigma"'),
    "null alpha": ("certificate: {alpha: null}\n", 'key "certificate.alpha"'),
    # What would mislead the parser, or what it cannot read.
    "deep list": ("smoothing: " + "[" * 900 + "]" * 900, "config = .*recursion"),
    "a large file": ("#" * 2**18 + "\nsmoothing: 3\n", "config = .*262144"),
    "a key twice": (SERIALIZED + "n: 50\n    n: 70\n", "line 5: has the key 'n' twice"),
    "a section twice": ("data: Digits\ndata: CIFAR10\n", "line 2: has the key 'data' twice"),
    "latin-1": ("# gr\xfcn\n".encode("latin-1"), "config = .*utf-8"),
    "utf-16": ("smoothing: null\n".encode("utf-16"), "config = .*utf-8"),
}


def test_what_is_not_hostile(whole, alone):
    assert "no image of 500 is selected" in whole(SERIALIZED + "n: 50\n")
    error, settings = alone(SERIALIZED + "n: 50\n")
    assert error == ""
    assert settings.sampling == Serialized(n=50)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_configuration(alone, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[name]
    error, _ = alone(content)
    assert re.search(message, error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a list", "a call", "a function", "unknown section", "huge n", "a key twice"])
def test_hostile_overlay_of_the_whole_command_line(whole, tmp_path, name):
    content, message = HOSTILE[name]
    assert re.search(message, whole(content))
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.yaml"]


def test_every_configuration_in_the_tree_passes():
    for path in (ROOT / "configs").rglob("*.yaml"):
        demand_sound_configs(["certify", "--config", str(path), f"--config={path}"])


# Fuzzing: an independent reading of the settings, and an independent idea of which are valid.

COUNTS = st.sampled_from([1, 2, 3, 10, 400, 10_000, 10**9])
RATES = st.sampled_from([1e-9, 0.001, 0.05, 0.25, 0.5, 0.999])
NUMBERS = st.integers() | st.integers(-3, 10**6) | st.floats() | st.sampled_from([0, -1, 10**9 + 1, 10**30, 1e308])
SCALARS = NUMBERS | st.booleans() | st.text(max_size=5) | st.sampled_from(["3", "1e-3", "true", ".nan", "Anderson"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def solvers() -> st.SearchStrategy[Any]:
    fields = {"max_steps": COUNTS, "tolerance": RATES, "stop": st.sampled_from(["relative", "absolute"])}
    full = st.fixed_dictionaries({}, optional=fields)
    names = st.sampled_from(["Anderson", "Broyden", "Picard", "deqcert.solvers.Anderson"])
    return names | st.builds(lambda name, init: {"class_path": name, "init_args": init}, names, full)


SMOOTHING = {
    "sigma": RATES | COUNTS,
    "noise": st.sampled_from(["float32", "quantised"]),
    "solver": solvers(),
    "start": st.sampled_from(["zero", "anchor"]),
}
SAMPLING = {
    "n0": COUNTS,
    "n": COUNTS,
    "batch_size": COUNTS,
    "execution": st.fixed_dictionaries({}, optional={"rows": st.none() | COUNTS, "compile": st.booleans()}),
}
STOPPING = {
    "radius_gain": RATES,
    "radius_in_sigma": st.none() | RATES,
    "looks": st.none() | st.lists(COUNTS, max_size=3),
    "shares": st.none() | st.lists(RATES, max_size=3),
    "alpha": st.none() | RATES,
}
STANDARD_ONLY = {
    "stopping": st.sampled_from([None, "GroupSequential", "deqcert.statistics.GroupSequential"])
    | st.fixed_dictionaries({}, optional=STOPPING)
}
SERIALIZED_ONLY = {
    "start": st.sampled_from(["previous", "first", "clean"]),
    "warmup_steps": COUNTS,
    "proposal": solvers(),
    "precision": st.sampled_from([None, "bfloat16", "float16"]),
    "escalation": RATES,
    "audit": st.sampled_from(["AdaptiveAudit", "FixedAudit"])
    | st.builds(lambda k: {"class_path": "FixedAudit", "init_args": {"samples": k}}, COUNTS)
    | st.builds(lambda r: {"class_path": "deqcert.statistics.AdaptiveAudit", "init_args": {"radius_loss": r}}, RATES),
}
CERTIFICATE = {
    "alpha": RATES,
    "alpha_audit": st.none() | RATES,
    "audit": st.sampled_from(["joint", "exact", "binomial", "published"]),
    "sides": st.sampled_from(["one", "two"]),
    "alpha_b": st.none() | RATES,
    "radii": st.none() | st.lists(RATES, min_size=1, max_size=3),
}
DATA = dict.fromkeys(("batch_size", "eval_batch_size", "num_workers", "seed", "validation_size", "skip"), COUNTS)
DATA |= {"start": COUNTS, "split": st.sampled_from(["train", "test"]), "max_examples": st.none() | COUNTS}
CLASSES: dict[str, dict[str, dict[str, st.SearchStrategy[Any]]]] = {
    "sampling": {
        "deqcert.smoothing.Serialized": SAMPLING | SERIALIZED_ONLY,
        "deqcert.smoothing.Standard": SAMPLING | STANDARD_ONLY,
    },
    "data": {"deqcert.data.Digits": DATA, "deqcert.data.CIFAR10": {**DATA, "augment": st.booleans()}},
}


@st.composite
def structured(draw):
    """Valid settings, of which a few are replaced by anything or called otherwise."""
    config: dict[str, Any] = {}
    places = []
    for section, classes in CLASSES.items():
        name = draw(st.sampled_from(sorted(classes)))
        init = draw(st.fixed_dictionaries({}, optional=classes[name]))
        config[section] = {"class_path": name, "init_args": init}
        places += [config[section], init]
    for section, fields in (("smoothing", SMOOTHING), ("certificate", CERTIFICATE)):
        config[section] = draw(st.fixed_dictionaries({}, optional=fields))
        places.append(config[section])
    config["seed"] = draw(COUNTS)
    places.append(config)
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        place = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["replace", "replace", "add", "rename"]))
        if kind == "add" or not place:
            place[draw(st.text(max_size=5))] = draw(VALUES)
            continue
        key = draw(st.sampled_from(sorted(place)))
        if kind == "replace":
            place[key] = draw(SCALARS | VALUES)
        else:
            place[key + draw(st.sampled_from(["s", "_", ".", ""]))] = place.pop(key)
    return yaml.safe_dump(config)


@st.composite
def edited(draw):
    """A configuration of the tree with some characters or lines changed."""
    text = draw(st.sampled_from([path.read_text() for path in CERTIFY]))
    text = text[re.search(r"^(smoothing|sampling|certification):", text, re.MULTILINE).start() :]
    for _ in range(draw(st.integers(1, 3))):
        lines = text.splitlines(keepends=True) or [""]
        row = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["drop", "double", "indent", "value", "value", "characters"]))
        line = lines[row]
        if kind == "drop":
            lines[row] = ""
        elif kind == "double":
            lines[row] = line + line
        elif kind == "indent":
            lines[row] = draw(st.sampled_from(["  ", "    ", "\t"])) + line
        elif kind == "value":
            lines[row] = (
                line.split(":")[0] + ": " + yaml.safe_dump(draw(VALUES), default_flow_style=True).split("\n...")[0]
            )
        else:
            at = draw(st.integers(0, len(line)))
            new = draw(st.text("0123456789.-+e:,[]{}'\"#|> \nantx_", max_size=3))
            lines[row] = line[:at] + new + line[at + draw(st.integers(0, 3)) :]
        text = "".join(lines)
    return text


def known_gap(said: Any, key: object = None) -> bool:
    """An unknown key that holds an empty mapping: jsonargparse passes over it (docs/reliability.md)."""
    return isinstance(said, dict) and ((not said and key is not None) or any(known_gap(v, k) for k, v in said.items()))


def agrees(said: Any, held: Any) -> bool:
    """Whether an object holds the settings that a configuration says."""
    if isinstance(said, dict):
        named = {key: value for key, value in said.items() if key not in ("class_path", "init_args")}
        named |= said.get("init_args", {})
        right_class = type(held).__name__ == said.get("class_path", type(held).__name__).rpartition(".")[2]
        return right_class and all(agrees(value, getattr(held, key)) for key, value in named.items())
    if isinstance(said, list):
        return len(said) == len(held) and all(map(agrees, said, held))
    if said is None or isinstance(said, bool):
        return held is said
    if isinstance(said, str) and not isinstance(held, str):
        if not isinstance(held, bool | int | float):
            return type(held).__name__ == said.rpartition(".")[2]
        # Jsonargparse takes a number in quotes, and 1e-3 without the point that YAML 1.1 asks for, for numbers.
        return held is (said == "true") if isinstance(held, bool) else held == float(said.replace("_", ""))
    return not isinstance(held, bool) and held == said


def demand_valid(smoothing: Any, sampling: Any, rule: Any, data: Any) -> None:
    assert 0 < smoothing.sigma < (14.1 if smoothing.noise == "quantised" else math.inf)
    assert smoothing.start in ("zero", "anchor")
    counts = [sampling.n0, sampling.n, sampling.batch_size, data.batch_size, data.eval_batch_size]
    assert all(type(count) is int and count >= 1 for count in counts)
    assert max(counts[:3]) <= 10**9
    assert all(type(number) is int and number >= 0 for number in (data.seed, data.start, data.num_workers))
    for count in (sampling.execution.rows, data.skip, data.max_examples):
        assert count is None or (type(count) is int and count >= 1)
    for solver in (smoothing.solver, getattr(sampling, "proposal", smoothing.solver)):
        assert isinstance(solver, Solver)
        assert solver.max_steps >= 1
        assert solver.tolerance >= 0
    if isinstance(getattr(sampling, "audit", None), FixedAudit):
        assert 1 <= sampling.audit.samples <= sampling.n
    assert getattr(sampling, "stopping", None) is None or sampling.n >= sampling.n0
    assert 0 < rule.alpha < 1
    assert rule.alpha_audit is None or 0 < rule.alpha_audit < rule.alpha
    assert data.split in ("train", "test")


def fuzz(alone: Any, examples: int) -> None:
    """Each configuration is refused in clear words, or what is built is valid and as it says."""
    outcomes: Counter[str] = Counter()

    @settings(max_examples=examples, database=None, derandomize=True)
    @given(structured() | edited())
    def check(text: str) -> None:
        try:
            said = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            said = None
        assume(isinstance(said, dict) and not known_gap(said))
        error, built = alone(text)
        outcomes["refused" if error else "built"] += 1
        assert "Traceback" not in error
        if error:
            return
        certificate = said.pop("certificate", {})
        assert all(agrees(held, getattr(built, section)) for section, held in said.items())
        if "radii" in certificate:
            assert agrees(certificate.pop("radii"), built.certificate.radii)
        assert agrees(certificate, built.certificate.rule)
        demand_valid(built.smoothing, built.sampling, built.certificate.rule, built.data)

    check()
    assert min(outcomes["refused"], outcomes["built"]) > examples // 20


def test_fuzzed_configurations(alone):
    fuzz(alone, 50)


@pytest.mark.slow
def test_many_fuzzed_configurations(alone, record_fault):
    fuzz(alone, 3000)
    record_fault("configuration, fuzzed", 3000, "refused in a line, or as it says")
