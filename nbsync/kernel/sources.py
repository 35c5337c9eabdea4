"""The source lines of notebook functions that are sent to workers started before their cell ran."""

from __future__ import annotations

import linecache
from collections.abc import Iterable, Iterator
from typing import Any

from nbsync.protocol.cells import code_name
from nbsync.protocol.messages import Source


def sources_of(values: Iterable[Any]) -> tuple[Source, ...]:
    """The cells that the functions and classes among `values` were defined in, for tracebacks on the ranks."""
    return tuple({name: _source(name) for value in values for name in _files(value) if _is_cell(name)}.values())


def _files(value: Any) -> Iterator[str]:
    """The files of a function, of what a partial or method calls, or of a class's methods."""
    for part in vars(value).values() if isinstance(value, type) else (value,):
        for inner in (part, *(getattr(part, name, None) for name in ("func", "__func__", "__wrapped__", "fget"))):
            code = getattr(inner, "__code__", None)
            if code is not None:
                yield code.co_filename


def _is_cell(name: str) -> bool:
    """Whether these are lines that no file has: only such entries of the cache have no time of modification."""
    entry = linecache.cache.get(name)
    return entry is not None and len(entry) == 4 and entry[1] is None


def _source(name: str) -> Source:
    return Source(name, _number(name), "".join(linecache.getlines(name)))


def _number(name: str) -> int | None:
    """The N of `In [N]`."""
    found = code_name(name)
    digits = "".join(filter(str.isdigit, found[1])) if found else ""
    return int(digits) if digits else None
