"""What all measurements on disk demand of their fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from deqcert.errors import DataError

_LARGEST = 2**53  # what every reader of JSON, and float64, holds exactly


def fields_of(kind: type, record: Mapping[str, object], name: str) -> dict[str, Any]:
    """Return the fields of a named tuple from JSON: lists stand for tuples, a residual of None for nan.

    Args:
        kind: The named tuple.
        record: What was read.
        name: What it is, for the error.

    Raises:
        DataError: A field is missing or unknown.
    """
    fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    if missing := [field for field in fields if field not in record]:
        raise DataError(f"{name} lack {', '.join(missing)}")
    if unknown := [str(field) for field in record if field not in fields]:
        raise DataError(f"{name} have no field {', '.join(unknown)}")
    values: dict[str, Any] = {
        field: tuple(value) if isinstance(value, list) else value for field, value in record.items()
    }
    if "residual" in fields and values["residual"] is None:
        values["residual"] = math.nan
    return values


def expect(record: Any, field: str, condition: bool, expected: str) -> None:
    """Raise :class:`DataError` naming image, field and value unless ``condition`` holds."""
    if not condition:
        value = getattr(record, field)
        raise DataError(f"votes of image {record.index!r}: {field} = {value!r}: expected {expected}")


def is_count(value: object) -> bool:
    """Whether ``value`` is an integer from 0 to 2^53; a bool or a whole float is none."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def is_number(value: object) -> bool:
    """Whether ``value`` is a number that float64 holds; a bool is none."""
    return isinstance(value, float) or (type(value) is int and abs(value) <= _LARGEST)
