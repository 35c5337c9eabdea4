"""By value: the kinds of classes that dill sends by their name, or without a part of them.

They are enumerations, named tuples, typed dictionaries, type variables and new types.
"""

from __future__ import annotations

import collections
import enum
import typing
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

#: The kinds of type variables, and new types; not every Python has all of them.
VARIABLES: tuple[Any, ...] = tuple(
    getattr(typing, name) for name in ("TypeVar", "ParamSpec", "TypeVarTuple", "NewType") if hasattr(typing, name)
)
_OF_THE_CLASS = frozenset(["__dict__", "__weakref__", "_abc_impl"])
_OF_THE_MEMBER = frozenset(["_value_", "_name_", "__objclass__", "_sort_order_"])
_MEMBERS = frozenset(
    [
        "_member_map_",
        "_member_names_",
        "_value2member_map_",
        "_hashable_values_",
        "_unhashable_values_",
        "_unhashable_values_map_",
    ]
)

# An enumeration that arrives twice is one class, so that its members stay the same: each has a name for all processes.
_idents: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
_enums: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_unfinished: weakref.WeakSet[Any] = weakref.WeakSet()  # made, but yet without methods


def reduce_class(obj: Any) -> tuple[Any, ...] | None:
    """How a class or type variable that only this process has goes by value; None where dill does it well."""
    if isinstance(obj, enum.EnumMeta):
        return _reduce_enum(obj)
    if isinstance(obj, typing.NewType):
        return _make_variable, (typing.NewType, obj.__name__, (obj.__supertype__,), {})
    if isinstance(obj, VARIABLES):
        names = {"bound": "__bound__", "covariant": "__covariant__", "contravariant": "__contravariant__"}
        how = {name: getattr(obj, attribute) for name, attribute in names.items() if hasattr(obj, attribute)}
        return _make_variable, (type(obj), obj.__name__, getattr(obj, "__constraints__", ()), how)
    if not isinstance(obj, type):
        return None
    if typing.is_typeddict(obj):
        return _make_typeddict, (obj.__name__,), _attributes(obj, ()), None, None, _complete
    if obj.__bases__ == (tuple,) and hasattr(obj, "_fields") and hasattr(obj, "_field_defaults"):
        return _reduce_namedtuple(obj)
    return None


def _reduce_enum(cls: Any) -> tuple[Any, ...]:
    ident = _idents.setdefault(cls, uuid.uuid4().hex)
    _enums[ident] = cls
    members = {name: (_new_args(cls, member), member._value_) for name, member in cls.__members__.items()}
    boundary = getattr(cls, "_boundary_", None)
    how = {} if boundary is None else {"boundary": boundary}
    own = [{name: value for name, value in vars(m).items() if name not in _OF_THE_MEMBER} for m in cls]
    state = _attributes(cls, {*_MEMBERS, *cls.__members__}), own
    return _make_enum, (ident, type(cls), cls.__name__, cls.__bases__, members, how), state, None, None, _complete_enum


def _new_args(cls: Any, member: Any) -> tuple[Any, ...]:
    """What the type of the members' data, such as int, makes a member of."""
    data = cls._member_type_
    if hasattr(data, "__getnewargs__"):
        return tuple(data.__getnewargs__(member))
    if data.__new__ is object.__new__:
        return ()
    return member._value_ if isinstance(member._value_, tuple) else (member._value_,)


def _make_enum(
    ident: str, meta: Any, name: str, bases: tuple[Any, ...], members: Mapping[str, Any], how: Mapping[str, Any]
) -> Any:
    """The enumeration with its members; methods may refer to it, and come later. Or the one that is here already."""
    known = _enums.get(ident)
    if known is not None:
        return known
    namespace = meta.__prepare__(name, bases, **how)
    namespace["__new__"] = _new_member
    namespace["__init__"] = _keep_member  # not a base's own, which may expect something else
    for member, parts in members.items():
        namespace[member] = parts
    made = meta.__new__(meta, name, bases, namespace, **how)
    _idents[made] = ident
    _enums[ident] = made
    _unfinished.add(made)
    return made


def _new_member(cls: Any, *parts: Any) -> Any:
    args, value = parts[0] if len(parts) == 1 else parts  # a tuple's member is given them in one
    data = cls._member_type_
    member = data.__new__(cls, *args)
    member._value_ = value
    return member


def _keep_member(self: Any, *parts: Any) -> None:
    pass


def _complete_enum(cls: Any, state: tuple[dict[str, Any], Sequence[dict[str, Any]]]) -> None:
    if cls not in _unfinished:  # this process's own
        return
    attributes, own = state
    for name in vars(cls).keys() - attributes.keys() - _MEMBERS - _OF_THE_CLASS - cls.__members__.keys():
        type.__delattr__(cls, name)
    _complete(cls, attributes)
    for member, values in zip(cls, own, strict=True):
        vars(member).update(values)
    _unfinished.discard(cls)


def _reduce_namedtuple(cls: Any) -> tuple[Any, ...]:
    plain = _make_namedtuple(cls.__name__, cls._fields, ())
    made = {name for name, value in vars(plain).items() if _same_code(vars(cls).get(name), value)}
    args = cls.__name__, cls._fields, tuple(cls._field_defaults.values())
    return _make_namedtuple, args, _attributes(cls, {"__new__", *cls._fields, *made}), None, None, _complete


def _same_code(one: Any, other: Any) -> bool:
    """Whether these are the same function, made twice."""
    codes = [getattr(getattr(function, "__func__", function), "__code__", None) for function in (one, other)]
    return codes[0] is not None and codes[0] == codes[1]


def _make_namedtuple(name: str, fields: Sequence[str], defaults: Sequence[Any]) -> Any:
    return collections.namedtuple(name, fields, defaults=defaults)


def _make_typeddict(name: str) -> Any:
    return typing.TypedDict(name, {})  # type: ignore[operator]


def _make_variable(kind: Callable[..., Any], name: str, args: tuple[Any, ...], how: Mapping[str, Any]) -> Any:
    variable = kind(name, *args, **how)
    variable.__module__ = "__main__"
    return variable


def _attributes(cls: type, without: Iterable[str]) -> dict[str, Any]:
    left_out = _OF_THE_CLASS.union(without)
    attributes = {name: value for name, value in vars(cls).items() if name not in left_out}
    return attributes | {"__qualname__": cls.__qualname__}


def _complete(cls: Any, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        type.__setattr__(cls, name, value)
