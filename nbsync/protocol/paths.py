"""How a part of a value is reached: for messages that say which part is meant."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any


def path_to(part: Any, value: Any, path: str = "the value", depth: int = 0) -> str | None:
    """How `part` is reached from `value`, e.g. "the value['a'][1]"; None if it is not found."""
    if part is value:
        return path
    steps = parts_of(value) if depth < 8 else ()
    found = (path_to(part, inner, path + step, depth + 1) for step, inner in steps)
    return next((way for way in found if way is not None), None)


def parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a value, each with the step that leads to it."""
    kind = type(value)  # a proxy's `__class__` may raise
    if issubclass(kind, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif issubclass(kind, list | tuple | set | frozenset):
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif not issubclass(kind, type | types.FunctionType | types.ModuleType):
        yield from ((f".{key}", part) for key, part in getattr(value, "__dict__", {}).items())
