"""The arguments of a verb before a parser sees them, and the files that they name."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from deqcert.checkpoints import read_checkpoint
from deqcert.checkpoints.architecture import ARCHITECTURE, network_of
from deqcert.errors import SettingError, require
from deqcert.names import checkpoint_path, config_path

CONFIG = ("--config", "-c")
_OPTION = re.compile("-[-a-zA-Z]")  # a negative number is a value
_ATTACHED = re.compile("(-c)([^=].*)")  # argparse reads -cFILE too
_MAX_CONFIG_BYTES = 2**18


def parse_with_settings(parser: argparse.ArgumentParser, args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return what the parser of a verb reads, and the options that it does not have, each with its one value.

    Those are settings of ``certify``. The verb is not among ``args``.
    """
    own: list[str] = []
    settings: list[str] = []
    for option in _options(args):
        foreign = _OPTION.match(option[0]) and _name(option) not in parser._option_string_actions
        values = (1 if "=" in option[0] else 2) if foreign else 0
        settings += option[:values]
        own += option[values:]
    return parser.parse_args(own), settings


def values_of(args: Sequence[str], *names: str) -> list[str]:
    """Return the value of each use of an option, by whichever of its names; empty where it has none."""
    found = [option for option in _options(args) if _name(option) in names]
    return [option[0].partition("=")[2] or "".join(option[1:2]) for option in found]


def in_order_of_precedence(args: Sequence[str]) -> list[str]:
    """Return arguments so that a parser for which the last setting wins reads them as they are meant.

    Configurations go first: what stands on the command line wins wherever it stands. A whole group (a class or a file)
    goes before the settings within it, which it would replace. A configuration ``deqcert:NAME`` becomes its file. The
    verb is the first of ``args`` and of what is returned.
    """
    configs: list[list[str]] = []
    others: list[list[str]] = []
    for option in _options(args[1:]):
        if _name(option) in CONFIG:
            configs.append(_with_file(option))
        else:
            prefix = f"{_name(option)}."
            within = (place for place, other in enumerate(others) if _name(other).startswith(prefix))
            others.insert(next(within, len(others)), option)
    return [*args[:1], *(argument for option in [*configs, *others] for argument in option)]


def _with_file(option: Sequence[str]) -> list[str]:
    first, *values = option
    name, equals, value = first.partition("=")
    return [f"{name}{equals}{config_path(value)}", *map(config_path, values)]


def _options(args: Sequence[str]) -> list[list[str]]:
    """Split arguments into options, each with the values that follow it."""
    options: list[list[str]] = []
    for argument in args:
        if _OPTION.match(argument) or not options:
            options.append([])
        attached = _ATTACHED.match(argument)
        options[-1] += attached.groups() if attached else [argument]
    return options


def _name(option: Sequence[str]) -> str:
    return option[0].partition("=")[0]


def with_checkpoint_network(args: Sequence[str]) -> list[str]:
    """Put the network of ``--ckpt_path`` before the configurations of a command line, which overrule it.

    Nothing is put there for ``fit``, or for a checkpoint that states no network of ours. The verb is the first of
    ``args``. A checkpoint that cannot be used is a CheckpointError.
    """
    verb, *rest = args
    path = (values_of(rest, "--ckpt_path") or [""])[-1]
    found = None
    if verb != "fit" and os.path.isfile(checkpoint_path(path)):
        found = network_of(read_checkpoint(path).get(ARCHITECTURE))
    if found is None:
        return list(args)
    kind, settings = found
    network = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": settings}
    text = yaml.safe_dump({"model": {"network": network}}, default_flow_style=True, width=math.inf)  # JSON has no inf
    return [verb, "--config", text.strip(), *rest]


def demand_free(target: Path, source: Path, overwrite: bool) -> None:
    """Raise :class:`SettingError` unless ``--to`` may be written: it is not a directory, not ``source``, and new."""
    require(not target.is_dir(), "to", str(target), "is a directory")
    folder = next((parent for parent in target.parents if parent.exists()), Path())
    require(folder.is_dir(), "to", str(target), f"cannot be written: {folder} is not a directory")
    if target.exists():
        require(overwrite, "to", str(target), "exists; --overwrite replaces it")
        require(not source.exists() or not target.samefile(source), "to", str(target), "is SOURCE itself")


def demand_sound_configs(args: Sequence[str]) -> None:
    """Look at every file that ``--config`` names; a file that is not YAML at all is left to the parser.

    Raises:
        SettingError: A file is too large, too deep to be read or not UTF-8, or has a key twice, of which the parser
            would silently take the last one.
    """
    for name in values_of(args, *CONFIG):
        path = Path(name)
        if not path.is_file():
            continue
        size = f"must be at most {_MAX_CONFIG_BYTES} bytes"
        require(path.stat().st_size <= _MAX_CONFIG_BYTES, "config", name, size)
        try:
            with open(name, encoding="utf-8") as stream:
                yaml.compose(stream, _UniqueKeys)
        except (UnicodeDecodeError, RecursionError) as error:
            raise SettingError("config", name, f"cannot be read: {error}") from None
        except yaml.YAMLError:
            pass


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            place = key.start_mark
            twice = f"line {place.line + 1}: has the key {key.value!r} twice"
            require(key.value not in seen, "config", place.name, twice)
            seen.add(key.value)
        return node
