"""The table of verbs, and what the command line does before a verb begins."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from deqcert.cli import main
from deqcert.cli.arguments import parse_with_settings
from deqcert.cli.entry import VERBS
from deqcert.version import __version__


def test_help_lists_every_verb_in_a_line(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(f"  {name:10}{summary}" in lines for name, summary in VERBS.items())
    assert max(map(len, lines)) <= 100


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"deqcert {__version__}\n"


@pytest.mark.parametrize("given", [["certfy"], ["nonsense"], ["--config=x", "fit"], []])
def test_an_unknown_verb_names_the_right_ones(given, capsys):
    assert main(given) == 2
    error = capsys.readouterr().err
    assert ", ".join(VERBS) in error
    assert ("did you mean certify?" in error) == (given == ["certfy"])


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["verify", "--help"], ["report", "--help"]])
def test_verbs_import_what_they_need(args):
    code = (
        "import sys, contextlib\nfrom deqcert.cli import main\n"
        f"with contextlib.suppress(SystemExit): main({args})\n"
        "print(sorted({'torch', 'lightning', 'jsonargparse'} & sys.modules.keys()), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n"


@pytest.mark.parametrize(
    ("given", "images", "settings"),
    [
        ("run --images 3 --data.root dir", 3, "--data.root dir"),
        ("--data.root dir run --images=3", 3, "--data.root dir"),
        ("-c a.yaml --config b.yaml run", 1, "-c a.yaml --config b.yaml"),
        ("run --data.start -1 --data.root=dir --flag --images 2", 2, "--data.start -1 --data.root=dir --flag"),
    ],
)
def test_settings_of_certify_are_written_like_all_others(given, images, settings):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("run")
    parser.add_argument("--images", type=int, default=1)
    parsed, rest = parse_with_settings(parser, given.split())
    assert (parsed.run, parsed.images, rest) == ("run", images, settings.split())
