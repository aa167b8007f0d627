"""Configuration files that would hang or mislead the parser are refused before it reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from deqcert.cli.arguments import config_files
from deqcert.errors import SettingError

_MOST_BYTES, _MOST_NODES, _DEEPEST, _LONGEST = 2**18, 2000, 50, 1000


def demand_sound_configs(args: Sequence[str]) -> None:
    """Look at every file that ``--config`` names; what is no YAML at all is left to the parser.

    Raises:
        SettingError: A file is not UTF-8, too large or too deep, has anchors (which can stand for endlessly much) or a
            key twice (of which the parser would take the last one without a word).
    """
    for name in config_files(args):
        path = Path(name)
        if not path.is_file():
            continue
        complaint = _complaint(path)
        if complaint:
            raise SettingError("config", name, complaint)


def _complaint(path: Path) -> str:
    """Say what is wrong with a file; empty if nothing is."""
    if path.stat().st_size > _MOST_BYTES:
        return f"must be at most {_MOST_BYTES} bytes"
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return "must be UTF-8"
    try:
        return next(_complaints(text), "")
    except (yaml.YAMLError, RecursionError):
        return ""


def _complaints(text: str) -> Iterator[str]:
    """Follow the events of YAML, which expand nothing, with the keys of each open mapping."""
    open_nodes: list[_Node] = []
    nodes = 0
    for event in yaml.parse(text):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            yield f"line {line}: must not use anchors and aliases"
        if isinstance(event, yaml.CollectionEndEvent):
            open_nodes.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        nodes += 1
        if nodes > _MOST_NODES:
            yield f"line {line}: must have at most {_MOST_NODES} values"
        parent = open_nodes[-1] if open_nodes else None
        if parent is not None and parent.takes_key() and isinstance(event, yaml.ScalarEvent):
            if event.value in parent.keys:
                yield f"line {line}: has the key {event.value!r} twice"
            parent.keys.add(event.value)
        if isinstance(event, yaml.ScalarEvent):
            if len(event.value) > _LONGEST:
                yield f"line {line}: a value must have at most {_LONGEST} characters"
        else:
            open_nodes.append(_Node(isinstance(event, yaml.MappingStartEvent)))
            if len(open_nodes) > _DEEPEST:
                yield f"line {line}: must be nested at most {_DEEPEST} deep"


class _Node:
    """An open list or mapping, and the keys it has so far."""

    def __init__(self, mapping: bool) -> None:
        self.keys: set[str] = set()
        self._mapping = mapping
        self._children = 0

    def takes_key(self) -> bool:
        """Whether the child that begins now is a key."""
        self._children += 1
        return self._mapping and self._children % 2 == 1
