"""The arguments of a verb before a parser sees them, and the configuration files that they name."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from deqcert.errors import SettingError

_CONFIG = ("--config", "-c")
_OPTION = re.compile("-[-a-zA-Z]")  # a negative number is a value
_MAX_CONFIG_BYTES = 2**18


def parse_with_settings(parser: argparse.ArgumentParser, args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return what the parser of a verb reads, and the options that it does not have, each with its one value.

    Those are settings of ``certify``. ``args`` are the arguments after the verb.
    """
    own: list[str] = []
    settings: list[str] = []
    remaining = list(args)
    while remaining:
        argument = remaining.pop(0)
        name, equals, _ = argument.partition("=")
        if not _OPTION.match(argument) or name in parser._option_string_actions:
            own.append(argument)
            continue
        settings.append(argument)
        if not equals and remaining and not _OPTION.match(remaining[0]):
            settings.append(remaining.pop(0))
    return parser.parse_args(own), settings


def config_files(args: Sequence[str]) -> Iterator[str]:
    """Yield what ``--config`` names."""
    for position, argument in enumerate(args):
        flag, equals, value = argument.partition("=")
        if flag in _CONFIG:
            following = args[position + 1] if position + 1 < len(args) else ""
            yield value if equals else following


def in_order_of_precedence(args: Sequence[str]) -> list[str]:
    """Return arguments so that a parser for which the last setting wins reads them as they are meant.

    Configurations go first: what stands on the command line wins wherever it stands. A whole group (a class or a file)
    goes before the settings within it, which it would replace. The verb is the first of ``args`` and of what is
    returned.
    """
    options: list[list[str]] = []
    for argument in args[1:]:
        if _OPTION.match(argument) or not options:
            options.append([])
        options[-1].append(argument)
    configs = [option for option in options if _name(option) in _CONFIG]
    others: list[list[str]] = []
    for option in options:
        if _name(option) not in _CONFIG:
            prefix = f"{_name(option)}."
            within = (place for place, other in enumerate(others) if _name(other).startswith(prefix))
            others.insert(next(within, len(others)), option)
    return [*args[:1], *(argument for option in [*configs, *others] for argument in option)]


def _name(option: Sequence[str]) -> str:
    return option[0].partition("=")[0]


def demand_sound_configs(args: Sequence[str]) -> None:
    """Look at every file that ``--config`` names; a file that is not YAML at all is left to the parser.

    Raises:
        SettingError: A file is too large, too deep to be read or not UTF-8, or has a key twice, of which the parser
            would silently take the last one.
    """
    for name in config_files(args):
        path = Path(name)
        if not path.is_file():
            continue
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise SettingError("config", name, f"must be at most {_MAX_CONFIG_BYTES} bytes")
        try:
            yaml.compose(path.read_text(encoding="utf-8"), _UniqueKeys)
        except (UnicodeDecodeError, RecursionError) as error:
            raise SettingError("config", name, f"cannot be read: {error}") from None
        except _DuplicateKeyError as error:
            raise SettingError("config", name, str(error)) from None
        except yaml.YAMLError:
            pass


class _DuplicateKeyError(Exception):
    pass


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if key.value in (earlier.value for earlier in keys[:place]):
                raise _DuplicateKeyError(f"line {key.start_mark.line + 1}: has the key {key.value!r} twice")
        return node
