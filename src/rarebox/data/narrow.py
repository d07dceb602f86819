"""Values that come from other people's files and may be of any type, narrowed before use."""

from collections.abc import Mapping
from typing import TypeGuard

Object = Mapping[str, object]
"""A JSON or YAML object whose values are not checked yet."""


def is_object(value: object) -> TypeGuard[dict[str, object]]:
    """Whether a value is a JSON or YAML object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[object]]:
    """Whether a value is a list, of anything."""
    return isinstance(value, list)


def as_object(value: object) -> dict[str, object]:
    """The value if it is an object, else an empty object."""
    return value if is_object(value) else {}


def as_list(value: object) -> list[object]:
    """The value if it is a list, else an empty list."""
    return value if is_list(value) else []


def as_float(value: object) -> float:
    """A number, or a text that holds one, as ``float``; it may be infinite or NaN.

    Raises ``TypeError`` for a truth value and other types, ``ValueError`` for another text, ``OverflowError`` for an
    integer that is too large.
    """
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"{value!r:.60} is not a number")
