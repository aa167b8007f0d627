"""How settings are named in the identity of a run."""

from __future__ import annotations

import dataclasses
from typing import Any


def describe(value: Any) -> Any:
    """Turn nested configuration dataclasses into plain data that names their classes, ours without their module."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": stable_name(type(value)), **fields}
    return value


def stable_name(kind: Any) -> str:
    """Name a class or function: ours without its module, so that it may move to another file."""
    ours = kind.__module__.split(".")[0] == "deqcert"
    return str(kind.__qualname__) if ours else f"{kind.__module__}.{kind.__qualname__}"
