"""The arguments of a verb before a parser sees them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

_CONFIG = ("--config", "-c")
_OPTION = re.compile("-[-a-zA-Z]")  # a negative number is a value


def config_files(args: Sequence[str]) -> Iterator[str]:
    """Yield what ``--config`` names."""
    for position, argument in enumerate(args):
        flag, equals, value = argument.partition("=")
        if flag in _CONFIG:
            following = args[position + 1] if position + 1 < len(args) else ""
            yield value if equals else following


def in_order_of_precedence(args: Sequence[str], verbs: Collection[str]) -> list[str]:
    """Return a command line so that a parser for which the last setting wins reads it as it is meant.

    Configurations go first: what stands on the command line wins wherever it stands. A whole group (a class or a file)
    goes before the settings within it, which it would replace.

    Args:
        args: Arguments with a verb.
        verbs: The verbs; what comes before the first one stays there.
    """
    start = next((position + 1 for position, argument in enumerate(args) if argument in verbs), len(args))
    options: list[list[str]] = []
    for argument in args[start:]:
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
    return [*args[:start], *(argument for option in [*configs, *others] for argument in option)]


def _name(option: Sequence[str]) -> str:
    return option[0].partition("=")[0]
