"""Classes that only one side has go by value, and stay one class wherever they have been: by their idents.

A class is made first, and gets its methods when all of it is there: they may refer to it.
"""

from __future__ import annotations

import abc
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nbsync.protocol import idents
from nbsync.protocol.kinds import Recipe, attributes_of, recipe_of_kind, set_attributes

_ATOMS = (type(None), bool, int, float, str, bytes)
_FROM_THE_BEGINNING = frozenset(["__slots__", "__orig_bases__"])
_METHODS = (types.FunctionType, staticmethod, classmethod, property)


def reduce_class(obj: Any, anew: bool = False) -> tuple[Any, ...] | None:
    """How a class or type variable that only this process has goes by value; None where dill does it well.

    Args:
        anew: where it is known already, its methods and attributes become as they are here.
    """
    recipe = recipe_of_kind(obj)
    if recipe is None:
        if not isinstance(obj, type) or not (obj.__module__ == "__main__" or "<locals>" in obj.__qualname__):
            return None
        recipe = _recipe(obj)
    make, args, fill, state = recipe
    made = _make, (idents.ident_of(obj), make, *args)
    if fill is None:
        return made
    return *made, (fill, state), None, None, _fill_anew if anew and fill is _fill else _fill_new


def change_of(cls: type, before: dict[str, Any]) -> tuple[Any, ...]:
    """What follows in a pickle on a class that the other side has, so that its attributes become as they are here.

    Those that are no plain values go only if they were bound anew since the other side got the class: it has its own,
    and perhaps they cannot be sent.

    Args:
        before: its attributes when the other side got it. Those that have changed are taken out.
    """
    attributes = {}
    for name, value in attributes_of(cls).items():
        if type(value) in _ATOMS or name not in before or before[name] is not value:
            before.pop(name, None)  # from now on it always goes: it may be bound to the old value again
            attributes[name] = value
    return attributes, None, None, set_attributes


def _make(ident: str, make: Callable[..., Any], *args: Any) -> Any:
    """The class, yet without methods; or the one that is here already."""
    found = idents.find(ident)
    if found is not None:
        return found
    made = make(*args)
    idents.register(made, ident, is_whole=False)
    return made


def _fill_new(cls: Any, how: tuple[Callable[..., None], Any]) -> None:
    if not idents.is_whole(cls):  # else it is this process's own
        _fill_anew(cls, how)


def _fill_anew(cls: Any, how: tuple[Callable[..., None], Any]) -> None:
    fill, state = how
    fill(cls, state)
    idents.set_whole(cls)


def _recipe(cls: Any) -> Recipe:
    attributes = attributes_of(cls)
    known = {name: value for name, value in attributes.items() if type(value) in _ATOMS or name in _FROM_THE_BEGINNING}
    registered = _registered(cls) if isinstance(cls, abc.ABCMeta) else []
    methods = [name for name, value in attributes.items() if isinstance(value, _METHODS)]
    args = type(cls), cls.__name__, cls.__bases__, known, methods
    return Recipe(_make_class, args, _fill, (attributes, registered))


def _registered(cls: abc.ABCMeta) -> list[type]:
    """What was made a virtual subclass of this one."""
    found = [reference() for reference in abc._get_dump(cls)[0]]  # type: ignore[attr-defined]  # private
    return [each for each in found if each is not None]


def _make_class(meta: Any, name: str, bases: tuple[Any, ...], known: Mapping[str, Any], methods: Sequence[str]) -> Any:
    """A base's `__init_subclass__` or the metaclass may ask for plain attributes, and whether there is a method."""
    whole = {**dict.fromkeys(methods, _method_to_come), **known}
    return types.new_class(name, bases, {"metaclass": meta}, lambda namespace: namespace.update(whole))


def _method_to_come(*args: Any, **kwargs: Any) -> None:
    """Stands for a method until the class gets it."""


def _fill(cls: Any, state: tuple[dict[str, Any], Sequence[type]]) -> None:
    attributes, registered = state
    set_attributes(cls, attributes)
    for each in registered:
        abc.ABCMeta.register(cls, each)
