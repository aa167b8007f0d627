"""Every snippet of every page is run, parsed by what would run it, or marked as output.

``python`` fences are doctests, which pytest collects by itself. ``bash`` fences are run by a shell in which a command
only writes down its arguments, which the parser of ``deqcert`` must accept. ``yaml`` fences are configurations, and
``text`` is output. There is no other kind.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_lines import CHECKPOINT, DIGITS, ROOT

from deqcert.cli.arguments import in_order_of_precedence, parse_with_settings, values_of, with_checkpoint_network
from deqcert.cli.entry import VERBS
from deqcert.cli.parsing import settings_as_written
from deqcert.cli.trainer_verbs import DeqCertCLI, build

pytestmark = pytest.mark.filterwarnings("ignore")  # parsing passes through much code that is not ours

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "checkpoints").rglob("*.md")),
]
TRAINER_VERBS = ("fit", "validate", "test", "certify")
WITH_SETTINGS = ("predict", "attack", "anchor", "convert")  # of model and data, as certify has them
SHELL = r"""
exec 3> "$1"; shift; PATH=; set -u
record() { printf '%s\0' "$block" "$@" $'\n' >&3; }
for command in deqcert python python3 pip pytest ruff mypy mkdocs pre-commit tensorboard torchrun sbatch \
    cat cp git mkdir; do
  eval "$command() { record $command \"\$@\"; }"
done
function . { :; }  # a virtual environment
nohup() { "$@"; }
nice() { shift 2; "$@"; }
block=0
for text in "$@"; do ( eval "$text"; wait ); block=$((block + 1)); done
"""


class Snippet(NamedTuple):
    """What is fenced on a page, and where it ends; an indented block is of no kind."""

    place: str
    kind: str
    text: str


def snippets_of(page: Path) -> list[Snippet]:
    found: list[Snippet] = []
    kind: str | None = None
    block: list[str] = []
    after_blank = True
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        place = f"{page.relative_to(ROOT)}:{number}"
        if line.startswith("```") and kind is None:
            kind, block = line[3:].strip(), []
        elif line.startswith("```"):
            found.append(Snippet(place, str(kind), "\n".join(block)))
            kind = None
        elif kind is not None:
            block.append(line)
        elif after_blank and line.startswith("    "):
            found.append(Snippet(place, "", line))
        after_blank = not line.strip()
    assert kind is None, f"{page}: a fence is not closed"
    return found


SNIPPETS = [snippet for page in PAGES for snippet in snippets_of(page)]


def of_kind(kind: str) -> list[Snippet]:
    return [snippet for snippet in SNIPPETS if snippet.kind == kind]


@pytest.fixture(autouse=True)
def _where_the_pages_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def parser() -> Any:
    """The parser of the verbs of the trainer, which takes longer to build than to use."""
    parsers: list[Any] = []

    def keep(self: DeqCertCLI, parser: Any, args: Sequence[str]) -> None:
        parsers.append(parser)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeqCertCLI, "parse_arguments", keep)
        with pytest.raises(InterruptedError):
            build(["certify"])
    return parsers[0]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The arguments of every command of every ``bash`` fence, the number of the fence before them."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "runs").mkdir()
    shell = ["bash", "-c", SHELL, "bash", "commands", *(snippet.text for snippet in of_kind("bash"))]
    ran = subprocess.run(shell, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.stderr == "", "SHELL does not know a command, or the shell refuses one"
    return [record.split("\0") for record in (folder / "commands").read_text().split("\0\n\0")[:-1]]


def demand_parsed(parser: Any, verb: str, arguments: Sequence[str]) -> None:
    """Parse what stands after ``deqcert`` as the verb would; an error ends in SystemExit."""
    assert verb in VERBS, f"deqcert has no verb {verb}"
    if verb not in TRAINER_VERBS:
        own = importlib.import_module(f"deqcert.cli.{verb}")._parser()
        if verb not in WITH_SETTINGS:
            own.parse_args(list(arguments))
            return
        _, arguments = parse_with_settings(own, arguments)
        if not arguments:
            return
        verb = "certify"
    with settings_as_written():
        parser.parse_args(in_order_of_precedence([verb, *stated_network(verb, arguments), *arguments]))


def stated_network(verb: str, arguments: Sequence[str]) -> list[str]:
    """The network that a checkpoint states; one of the reader, which is not here, states that of the digits."""
    paths = [path for path in values_of(arguments, "--ckpt_path") if path != "none"]
    there = [f"--ckpt_path={path if os.path.isfile(path) else CHECKPOINT}" for path in paths]
    return with_checkpoint_network([verb, *there])[1 : -len(there) or None]


def demand_right(parser: Any, command: str, arguments: list[str]) -> None:
    """Check a command as far as its arguments can tell without running it."""
    for argument in arguments:
        if argument.startswith(("configs/", "checkpoints/", "benchmarks/")):
            assert Path(argument).exists(), argument
    if command == "deqcert":
        demand_parsed(parser, arguments[0], arguments[1:])
    elif command == "torchrun":
        place = arguments.index("deqcert")
        demand_parsed(parser, arguments[place + 1], arguments[place + 2 :])
    elif command == "sbatch":
        (place,) = (place for place, argument in enumerate(arguments) if argument.endswith(".sbatch"))
        config = "--config=configs/cifar10/mdeq_small.yaml"
        demand_parsed(parser, Path(arguments[place]).stem, [config, *arguments[place + 1 :]])
    elif command == "python" and arguments[0].startswith("benchmarks/"):
        script = Path(arguments[0]).read_text(encoding="utf-8")
        unknown = [argument for argument in arguments if argument.startswith("--") and argument not in script]
        assert not unknown, f"{arguments[0]} has no option {unknown}"
    elif command == "pip":
        project = Path("pyproject.toml").read_text(encoding="utf-8")
        for extra in re.findall(r"\.\[(\w+)\]", " ".join(arguments)):
            assert f"\n{extra} = [\n" in project, f"pyproject.toml has no extra {extra}"


def test_every_snippet_is_of_a_kind_that_is_tested() -> None:
    unknown = [place for place, kind, text in SNIPPETS if kind not in ("python", "bash", "yaml", "text")]
    assert not unknown, "must be fenced as python (a doctest), bash, yaml or text (output)"
    assert [place for place, kind, text in SNIPPETS if kind == "python" and ">>> " not in text] == []


@pytest.mark.parametrize("block", range(len(of_kind("bash"))), ids=[snippet.place for snippet in of_kind("bash")])
def test_commands_are_what_they_name_accepts(block: int, commands: list[list[str]], parser: Any) -> None:
    of_block = [(command, arguments) for number, command, *arguments in commands if int(number) == block]
    assert of_block
    for command, arguments in of_block:
        demand_right(parser, command, arguments)


@pytest.mark.parametrize("snippet", of_kind("yaml"), ids=lambda snippet: snippet.place)
def test_configurations_are_accepted(snippet: Snippet, parser: Any, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(snippet.text)
    demand_parsed(parser, "certify", [f"--config={DIGITS}", f"--config={tmp_path / 'config.yaml'}"])


def test_paths_that_pages_name_are_there() -> None:
    """The site checks links; these are the names in backticks."""
    folders = "benchmarks|checkpoints|configs|deqcert|docs|examples|tests"
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    ]
    assert not missing, "\n".join(missing)
