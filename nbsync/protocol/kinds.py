"""By value: the kinds of classes that are made in a way of their own.

They are enumerations, named tuples, typed dictionaries, type variables and new types.
"""

from __future__ import annotations

import collections
import enum
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

#: The kinds of type variables, and new types; not every Python has all of them.
VARIABLES: tuple[Any, ...] = tuple(
    getattr(typing, name) for name in ("TypeVar", "ParamSpec", "TypeVarTuple", "NewType") if hasattr(typing, name)
)
# The last two, of Python 3.14, hold the namespace of the class's own lines.
_OF_THE_CLASS = frozenset(["__dict__", "__weakref__", "_abc_impl", "__annotate_func__", "__annotations_cache__"])
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


class Recipe(NamedTuple):
    """How a class is made in another process.

    By `make(*args)`; then it gets its attributes, unless it can have none (None); then comes `finish(cls, state)`.
    """

    make: Callable[..., Any]
    args: tuple[Any, ...]
    attributes: dict[str, Any] | None = None
    finish: Callable[[Any, Any], None] | None = None
    state: Any = None


def recipe_of_kind(obj: Any) -> Recipe | None:
    """How a class or type variable is made, None if it is of no kind that is known here."""
    if isinstance(obj, enum.EnumMeta):
        return _of_enum(obj)
    if isinstance(obj, typing.NewType):
        return Recipe(_make_variable, (typing.NewType, obj.__name__, (obj.__supertype__,), {}))
    if isinstance(obj, VARIABLES):
        names = {"bound": "__bound__", "covariant": "__covariant__", "contravariant": "__contravariant__"}
        how = {name: getattr(obj, attribute) for name, attribute in names.items() if hasattr(obj, attribute)}
        return Recipe(_make_variable, (type(obj), obj.__name__, getattr(obj, "__constraints__", ()), how))
    if not isinstance(obj, type):
        return None
    if typing.is_typeddict(obj):
        return Recipe(_make_typeddict, (obj.__name__,), attributes_of(obj))
    if tuple in obj.__bases__ and {"_fields", "_field_defaults", "_make"} <= vars(obj).keys():
        return _of_namedtuple(obj)
    return None


def attributes_of(cls: type, without: Iterable[str] = ()) -> dict[str, Any]:
    """What is set of a class when it is made; not what Python makes with it."""
    left_out = _OF_THE_CLASS.union(without)
    attributes = {name: value for name, value in vars(cls).items() if name not in left_out and not _is_slot(cls, value)}
    return attributes | {"__qualname__": cls.__qualname__}


def _is_slot(cls: type, value: Any) -> bool:
    return type(value) is types.MemberDescriptorType and value.__objclass__ is cls


def set_attributes(cls: Any, attributes: Mapping[str, Any]) -> None:
    """Set them without calling code of the class's metaclass."""
    for name, value in attributes.items():
        type.__setattr__(cls, name, value)


def _of_enum(cls: Any) -> Recipe:
    members = {name: (_new_args(cls, member), member._value_) for name, member in cls.__members__.items()}
    boundary = getattr(cls, "_boundary_", None)
    how = {} if boundary is None else {"boundary": boundary}
    own = {m._name_: {name: value for name, value in vars(m).items() if name not in _OF_THE_MEMBER} for m in cls}
    attributes = attributes_of(cls, {*_MEMBERS, *cls.__members__})
    args = type(cls), cls.__name__, cls.__bases__, members, how, tuple(attributes)
    return Recipe(_make_enum, args, attributes, _fill_members, own)


def _new_args(cls: Any, member: Any) -> tuple[Any, ...]:
    """What the type of the members' data, such as int, makes a member of."""
    data = cls._member_type_
    if hasattr(data, "__getnewargs__"):
        return tuple(data.__getnewargs__(member))
    if data.__new__ is object.__new__:
        return ()
    how = data.__reduce_ex__(member, 4)
    if how[0] is type(member):  # a date's or a Decimal's: what it is called with
        return tuple(how[1])
    return member._value_ if isinstance(member._value_, tuple) else (member._value_,)


def _make_enum(
    meta: Any,
    name: str,
    bases: tuple[Any, ...],
    members: Mapping[str, Any],
    how: Mapping[str, Any],
    attributes: Sequence[str],
) -> Any:
    """The enumeration with its members; of other attributes it has only some of those named, if any."""
    namespace = meta.__prepare__(name, bases, **how)
    namespace["__new__"] = _new_member
    namespace["__init__"] = _keep_member  # not a base's own, which may expect something else
    for member, parts in members.items():
        namespace[member] = parts
    made = meta.__new__(meta, name, bases, namespace, **how)
    for each in vars(made).keys() - {*attributes, *made.__members__} - _MEMBERS - _OF_THE_CLASS:
        type.__delattr__(made, each)
    return made


def _new_member(cls: Any, *parts: Any) -> Any:
    args, value = parts[0] if len(parts) == 1 else parts  # a tuple's member is given them in one
    data = cls._member_type_
    member = data.__new__(cls, *args)
    member._value_ = value
    return member


def _keep_member(self: Any, *parts: Any) -> None:
    pass


def _fill_members(cls: Any, own: Mapping[str, dict[str, Any]]) -> None:
    for name, values in own.items():
        vars(cls._member_map_[name]).update(values)


def _of_namedtuple(cls: Any) -> Recipe:
    is_generic = typing.Generic in cls.__bases__
    plain = _make_namedtuple(cls.__name__, cls._fields, ())
    made = {name for name, value in vars(plain).items() if _same_code(vars(cls).get(name), value)}
    left_out = {"__new__", *cls._fields, *made}
    if is_generic:
        attributes = attributes_of(cls, {"__class_getitem__", *left_out})
        known = {"__module__": cls.__module__, **cls._field_defaults}
        return Recipe(_make_generic, (cls.__name__, cls._fields, known, cls.__orig_bases__), attributes)
    args = cls.__name__, cls._fields, tuple(cls._field_defaults.values())
    return Recipe(_make_namedtuple, args, attributes_of(cls, left_out))


def _same_code(one: Any, other: Any) -> bool:
    """Whether these are the same function, made twice."""
    codes = [getattr(getattr(function, "__func__", function), "__code__", None) for function in (one, other)]
    return codes[0] is not None and codes[0] == codes[1]


def _make_namedtuple(name: str, fields: Sequence[str], defaults: Sequence[Any]) -> Any:
    # A field without a name has one that only `rename` may give; it does not change those that are names.
    return collections.namedtuple(name, fields, defaults=defaults, rename=True)


def _make_generic(name: str, fields: Sequence[str], known: Mapping[str, Any], bases: tuple[Any, ...]) -> Any:
    annotations = dict.fromkeys(fields, object)
    return types.new_class(name, bases, {}, lambda namespace: namespace.update(known, __annotations__=annotations))


def _make_typeddict(name: str) -> Any:
    return typing.TypedDict(name, {})  # type: ignore[operator]


def _make_variable(kind: Callable[..., Any], name: str, args: tuple[Any, ...], how: Mapping[str, Any]) -> Any:
    variable = kind(name, *args, **how)
    variable.__module__ = "__main__"
    return variable
