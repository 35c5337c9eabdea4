"""Which class is which: a class that goes by value has a name for all processes, its ident.

Who receives it again, or has sent it, finds its own by the ident. Nothing here keeps a class alive. There is no lock: a
fork could take one along that nobody releases.
"""

from __future__ import annotations

import enum
import types
import uuid
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_ATOMS = (type(None), bool, int, float, complex, str, bytes)
_MOST_TOLD = 10_000  # parts of a class's attributes that are looked at


@dataclass
class _Entry:
    """What is known of one class. `is_whole` is not yet true of one that was made, and waits for its methods."""

    reference: weakref.ref[Any]
    ident: str
    is_whole: bool


# By id, not by the class: that may have a metaclass whose classes are equal, or have no hash.
_entries: dict[int, _Entry] = {}
_by_ident: dict[str, _Entry] = {}


def ident_of(thing: Any) -> str:
    """The ident of a class or type variable; one that has none gets one."""
    entry = _entries.get(id(thing))
    return register(thing, uuid.uuid4().hex) if entry is None else entry.ident


def register(thing: Any, ident: str) -> str:
    """Give `thing` an ident, unless it has one. Returns its ident."""
    entry = _entries.setdefault(id(thing), _entry(thing, ident, is_whole=True))
    _by_ident[entry.ident] = entry
    return entry.ident


def claim(thing: Any, ident: str) -> Any:
    """Register `thing`, which is not whole, unless another thread has been faster. Returns the one of this ident."""
    entry = _entries[id(thing)] = _entry(thing, ident, is_whole=False)
    while True:
        first = _by_ident.setdefault(ident, entry)  # at once, without a lock
        found = first.reference()
        if found is thing:
            return thing
        if found is not None:
            _entries.pop(id(thing), None)
            return found
        _forget(_by_ident, ident, first)


def _entry(thing: Any, ident: str, is_whole: bool) -> _Entry:
    key, entries, by_ident = id(thing), _entries, _by_ident  # at the interpreter's end the names may be gone

    def forget(_: weakref.ref[Any]) -> None:
        _forget(entries, key, made)
        _forget(by_ident, ident, made)

    made = _Entry(weakref.ref(thing, forget), ident, is_whole)
    return made


def _forget(entries: dict[Any, _Entry], key: Any, gone: _Entry) -> None:
    if entries.get(key) is gone:
        entries.pop(key, None)


def find(ident: str) -> Any:
    """The class or type variable of this ident, None if this process has none."""
    entry = _by_ident.get(ident)
    return None if entry is None else entry.reference()


def is_whole(thing: Any) -> bool:
    """Whether it has got its methods; a class without an ident was not sent here, and has them."""
    entry = _entries.get(id(thing))
    return entry is None or entry.is_whole


def set_whole(thing: Any) -> None:
    """It has got its methods."""
    _entries[id(thing)].is_whole = True


def identify(namespace: Mapping[str, Any]) -> None:
    """Before a fork: the notebook's classes, so that the copy knows them by the same idents.

    They are those in `namespace`, those of its values, and the classes inside of them.
    """
    for value in list(namespace.values()):  # a copy: the user's threads go on
        cls = value if _is_a(value, type) else type(value)
        if cls.__module__ == "__main__":
            for each in _defined(cls):
                ident_of(each)


def identify_alike(namespace: Mapping[str, Any], run: str) -> None:
    """After a cell on the ranks: a class that it has defined gets the same ident on each of them.

    Each rank has a class of its own by then. To the notebook they are one, if they look the same; one that differs by
    rank, in a default for instance, stays another on each.

    Args:
        run: names the cell, and is the same on all ranks that run it.
    """
    for name, value in list(namespace.items()):
        if _is_a(value, type) and id(value) not in _entries:
            try:
                _identify_alike(name, value, run)
            except (
                Exception
            ):  # the user's metaclass may raise anything; the class gets an ident of its own when it is sent
                continue


def _identify_alike(name: str, value: Any, run: str) -> None:
    if (value.__module__, value.__qualname__) == ("__main__", name):
        for cls in _defined(value):
            register(cls, uuid.uuid5(uuid.NAMESPACE_OID, f"{run}/{cls.__qualname__}/{_look(cls)}").hex)


def _is_a(value: Any, kind: Any) -> bool:
    """As isinstance, but no code of the user's is run: an instance's `__class__` may be that."""
    return issubclass(type(value), kind)


def _defined(cls: type) -> Iterator[type]:
    """`cls` and the classes inside of it."""
    yield cls
    for name, value in list(vars(cls).items()):
        if _is_a(value, type) and value.__qualname__ == f"{cls.__qualname__}.{name}":
            yield from _defined(value)


def _look(cls: type) -> str:
    """What can be told of a class, the same in all processes that have run the same lines."""
    told: list[str] = []
    todo: list[Any] = [cls.__bases__, sorted(vars(cls).items())]
    while todo and len(told) < _MOST_TOLD:
        value = todo.pop()
        if _is_a(value, property):
            value = value.fget
        elif _is_a(value, staticmethod | classmethod):
            value = value.__func__
        parts = _parts(value)
        todo += parts
        told.append(_tell(value, len(parts)))
    return "\n".join(told)


def _tell(value: Any, size: int) -> str:
    if _is_a(value, types.FunctionType):
        return f"line {value.__code__.co_firstlineno}"
    if _is_a(value, type):
        return str(value.__qualname__)
    return repr(value) if type(value) in _ATOMS else f"{size} in a {type(value).__qualname__}"


def _parts(value: Any) -> list[Any]:
    if _is_a(value, enum.Enum):
        return [value._name_, value._value_]
    if type(value) is dict:
        return list(value.items())
    return list(value) if type(value) in (list, tuple) else []  # others may run code of the user's
