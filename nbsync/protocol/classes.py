"""Classes that only one side has go by value, and stay one class wherever they have been: by their idents.

A class is made first, since its methods may refer to it. It gets them before its other attributes are unpickled, which
may hold its instances: these are rebuilt by its methods.
"""

from __future__ import annotations

import abc
import copyreg
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nbsync.protocol import idents
from nbsync.protocol.kinds import Recipe, attributes_of, recipe_of_kind, set_attributes

_ATOMS = (type(None), bool, int, float, str, bytes)
_FROM_THE_BEGINNING = frozenset(["__slots__", "__orig_bases__"])
_METHODS = (types.FunctionType, staticmethod, classmethod, property)
# What unpickling an instance calls of its class, or makes of it; the class gets these first of all.
_REBUILDING = (
    "__getattribute__",
    "__getattr__",
    "__setattr__",
    "__hash__",
    "__eq__",
    "__new__",
    "__init__",
    "__setstate__",
    "__setitem__",
    "append",
    "extend",
)
# What makes other classes. Those that it was called for come with what it did to them.
_MAKING_CLASSES = frozenset(["__init_subclass__"])
_MAKING_INSTANCES = frozenset(["__new__", "__init__", "__call__", "__prepare__"])  # which are classes, of a metaclass


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
    made = _make, (idents.ident_of(obj), recipe.make, *recipe.args)
    if recipe.attributes is None:
        return made
    waves = [_Wave(obj, wave, anew) for wave in _waves(obj, recipe.attributes)]
    last = {name: value for name, value in recipe.attributes.items() if all(name not in w.attributes for w in waves)}
    return *made, (waves, last, recipe.finish, recipe.state), None, None, _fill_anew if anew else _fill_new


def own_constants(cls: Any) -> list[Any]:
    """Instances of a class that are its attributes and are made by a `__new__` of the user's, which may look for them.

    A class whose only instance is kept by its `__new__` has one.
    """
    if not isinstance(cls, type) or issubclass(cls, type):  # a type variable, a metaclass
        return []
    found = [value for value in attributes_of(cls).values() if cls in type(value).__mro__]
    return [value for value in found if _is_plainly_reduced(type(value))]


def _is_plainly_reduced(cls: Any) -> bool:
    how = (cls.__reduce_ex__, cls.__reduce__, *(getattr(cls, f"__getnewargs{ex}__", None) for ex in ("", "_ex")))
    return isinstance(cls.__new__, types.FunctionType) and not any(isinstance(each, types.FunctionType) for each in how)


def reduce_constant(value: Any) -> Any:
    """How one of them goes by value: with what it holds. It is not made by the user's `__new__` with a new class."""
    make, args, *rest = value.__reduce_ex__(5)
    return (_new_bare, args, *rest) if make is copyreg.__newobj__ else (make, args, *rest)  # type: ignore[attr-defined]


def _new_bare(cls: Any, *args: Any) -> Any:
    if idents.is_whole(cls):
        return cls.__new__(cls, *args)
    makers = (vars(base).get("__new__") for base in cls.__mro__)
    return next(make for make in makers if isinstance(make, types.BuiltinFunctionType))(cls, *args)


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


class _Wave:
    """Attributes that a class has before what follows in the pickle is unpickled.

    Args:
        anew: it gets them also if it is known already.
    """

    def __init__(self, cls: type, attributes: dict[str, Any], anew: bool) -> None:
        self.cls, self.attributes, self.anew = cls, attributes, anew

    def __reduce__(self) -> tuple[Any, ...]:
        return _set_wave, (self.cls, self.attributes, self.anew)


def _set_wave(cls: Any, attributes: Mapping[str, Any], anew: bool) -> None:
    if anew or not idents.is_whole(cls):
        set_attributes(cls, attributes)


def _waves(cls: type, attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the class gets early, in order: each may be needed to rebuild an instance that comes after it.

    The rest may hold instances, or make classes.
    """
    left = {name: value for name, value in attributes.items() if not _makes_classes(cls, name)}
    waves = [{name: left.pop(name) for name, value in attributes.items() if name in left and _is_plain(value)}]
    waves += [{name: left.pop(name)} for name in _REBUILDING if name in left]
    methods = {name: left.pop(name) for name, value in attributes.items() if name in left and _is_descriptor(value)}
    of_libraries = {name: value for name, value in left.items() if name.startswith("__") and name.endswith("__")}
    return [wave for wave in (*waves, methods, of_libraries) if wave]


def _makes_classes(cls: type, name: str) -> bool:
    return name in _MAKING_CLASSES or (issubclass(cls, type) and name in _MAKING_INSTANCES)


def _is_plain(value: Any) -> bool:
    return type(value) in _ATOMS or (type(value) is tuple and all(map(_is_plain, value)))


def _is_descriptor(value: Any) -> bool:
    """Whether the class's instances do more with this than find it."""
    return any("__get__" in vars(cls) or "__set__" in vars(cls) for cls in type(value).__mro__)


def _make(ident: str, make: Callable[..., Any], *args: Any) -> Any:
    """The class, yet without methods; or the one that is here already."""
    found = idents.find(ident)
    return idents.claim(make(*args), ident) if found is None else found


def _fill_new(cls: Any, how: tuple[Any, ...]) -> None:
    if not idents.is_whole(cls):  # else it is this process's own
        _fill_anew(cls, how)


def _fill_anew(cls: Any, how: tuple[Any, ...]) -> None:
    _, attributes, finish, state = how  # the waves before them were set as they were unpickled
    set_attributes(cls, attributes)
    if finish is not None:
        finish(cls, state)
    idents.set_whole(cls)


def asks_half_made(thing: Any) -> bool:
    """Whether this is a class, or an instance of one, that has not got its attributes yet."""
    return not idents.is_whole(thing if issubclass(type(thing), type) else type(thing))


def _recipe(cls: Any) -> Recipe:
    attributes = attributes_of(cls)
    known = {name: value for name, value in attributes.items() if type(value) in _ATOMS or name in _FROM_THE_BEGINNING}
    methods = [name for name, value in attributes.items() if name not in known and _stands_empty(cls, name, value)]
    args = type(cls), cls.__name__, cls.__bases__, known, methods
    if isinstance(cls, abc.ABCMeta):
        return Recipe(_make_class, args, attributes, _register, _registered(cls))
    return Recipe(_make_class, args, attributes)


def _stands_empty(cls: type, name: str, value: Any) -> bool:
    is_method = name in _REBUILDING or issubclass(type(value), _METHODS)  # `__class__` may be the user's code
    return is_method and not _makes_classes(cls, name)


def _registered(cls: abc.ABCMeta) -> list[type]:
    """What was made a virtual subclass of this one."""
    found = [reference() for reference in abc._get_dump(cls)[0]]  # type: ignore[attr-defined]  # private
    return [each for each in found if each is not None]


def _register(cls: Any, registered: Sequence[type]) -> None:
    for each in registered:
        abc.ABCMeta.register(cls, each)


def _make_class(meta: Any, name: str, bases: tuple[Any, ...], known: Mapping[str, Any], methods: Sequence[str]) -> Any:
    """A base's `__init_subclass__` or the metaclass may ask for plain attributes, and whether there is a method."""
    whole = {**{method: _method_to_come(f"{name}.{method}") for method in methods}, **known}
    return types.new_class(name, bases, {"metaclass": meta}, lambda namespace: namespace.update(whole))


def _method_to_come(name: str) -> Callable[..., Any]:
    """Stands for a method until the class gets it."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        # To return anything would lose what an instance is rebuilt from.
        raise RuntimeError(f"{name} is called while its class is still being rebuilt")

    return fail
