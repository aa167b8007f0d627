"""Classes and lists that replace others take none of their settings. Uses private names of jsonargparse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import Namespace, _typehints
from jsonargparse._util import import_object

_adapt = _typehints.adapt_typehints


@contextmanager
def replacements_start_afresh() -> Iterator[None]:
    """Within it, a class or list that replaces another has the settings that it is given, and its own defaults.

    On its own, jsonargparse keeps every setting that the new class has too, default values included: ``Standard`` in
    place of ``Serialized`` would be solved by the three steps that ``Serialized`` has by default. It merges lists of
    the same length entry by entry, so that a callback would take over settings of the one in its place before.
    """
    discard = _typehints.discard_init_args_on_class_path_change
    _typehints.discard_init_args_on_class_path_change = _forget_another_class
    _typehints.adapt_typehints = _adapt_whole_lists
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
        previous["init_args"] = Namespace()


def _adapt_whole_lists(value: Any, typehint: Any, **settings: Any) -> Any:
    """Adapt a value to a type; a list that is not appended without a look at the previous one."""
    if isinstance(value, list) and not settings.get("append"):
        settings["prev_val"] = None
    return _adapt(value, typehint, **settings)
