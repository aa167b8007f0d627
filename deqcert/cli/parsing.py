"""Settings as they are written. The only module that uses private names of jsonargparse."""

from __future__ import annotations

import re
from argparse import SUPPRESS
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

from jsonargparse import Namespace, _typehints
from jsonargparse._actions import _ActionConfigLoad
from jsonargparse._util import import_object
from lightning.pytorch.cli import LightningArgumentParser

_adapt = _typehints.adapt_typehints


class SettingsParser(LightningArgumentParser):
    """A parser that refuses null where a setting may not be null; jsonargparse takes it for a setting not given.

    It refuses abbreviations too: whether an option is a configuration must be seen without knowing all others.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **settings)

    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """Check a configuration; a TypeError says what is wrong, which the parser puts in a line."""
        super().validate(namespace, *args, **kwargs)
        for action in self._actions:
            value = namespace.get(action.dest, SUPPRESS)
            if isinstance(action, _ActionConfigLoad):
                if value is not SUPPRESS and not isinstance(value, Namespace):
                    raise TypeError(f'Parser key "{action.dest}": must be a group of settings. Got value: {value}')
            elif value is None and action.default not in (None, SUPPRESS):
                self._check_value_key(action, None, action.dest, namespace)


@contextmanager
def settings_as_written() -> Iterator[None]:
    """Within it, a parser changes three of its ways.

    - A class that replaces another has its own defaults; jsonargparse keeps each setting that both have, defaults too.
    - A list replaces a list; otherwise a callback would take over settings of the one in its place before.
    - A whole number stays one where fractions are allowed too: to Lightning, 1 is one batch and 1.0 is all of them.
    """
    discard = _typehints.discard_init_args_on_class_path_change
    _typehints.discard_init_args_on_class_path_change = _forget_another_class
    _typehints.adapt_typehints = _adapt_as_written  # type: ignore[assignment]  # the signature is theirs
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = discard
        _typehints.adapt_typehints = _adapt


def _forget_another_class(_: Any, previous: Any, value: Any) -> None:
    """Empty the settings in ``previous`` unless ``value`` is of the same class, under whatever name."""
    if not previous or "init_args" not in previous or not previous["class_path"]:
        return
    if import_object(previous["class_path"]) is not import_object(value["class_path"]):
        previous["init_args"] = Namespace()  # type: ignore[no-untyped-call]


def _adapt_as_written(value: Any, typehint: Any, **settings: Any) -> Any:
    kinds = get_args(typehint)
    if int in kinds and float in kinds and re.fullmatch(r"-?\d+", str(value)):
        return int(value)
    if isinstance(value, list) and not settings.get("append"):
        settings["prev_val"] = None
    return _adapt(value, typehint, **settings)  # type: ignore[no-untyped-call]
