"""Walks over data nested in lists, tuples, named tuples and dicts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any


def map_leaves(function: Callable[[Any], Any], data: Any) -> Any:
    """The same structure as `data` with `function(leaf)` in the place of every leaf."""
    if isinstance(data, Mapping):
        return with_values(data, {key: map_leaves(function, value) for key, value in data.items()})
    if isinstance(data, list | tuple):
        values = [map_leaves(function, value) for value in data]
        return type(data)(*values) if hasattr(data, "_fields") else type(data)(values)
    return function(data)


def leaves(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its path, e.g. `["batch"][0]`, in the order in which `map_leaves` comes to them."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from leaves(value, f"{path}[{key!r}]")
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            yield from leaves(value, f"{path}[{index}]")
    else:
        yield path, data


def with_values(mapping: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    """A mapping of the same type with these values for its keys; `mapping` itself is left alone."""
    if not isinstance(mapping, MutableMapping):
        return values
    # A copy and not type(mapping)(values): a defaultdict's first argument is not its content.
    result = copy.copy(mapping)
    for key, value in values.items():
        result[key] = value
    return result
