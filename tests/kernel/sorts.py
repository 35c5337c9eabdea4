"""Classes of all sorts as a notebook has them: they cannot be imported, and go by value."""

from __future__ import annotations

import abc
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import typing
from typing import Any

import torch

T = typing.TypeVar("T")


class Plain:
    """Methods of all sorts."""

    def method(self) -> int:
        return 1

    @property
    def prop(self) -> int:
        return 2

    @staticmethod
    def static() -> int:
        return 3

    @classmethod
    def itself(cls) -> type:
        return cls

    @functools.cached_property
    def cached(self) -> int:
        return 4


class Derived(Plain):
    """Refers to itself by `super`."""

    class Inner:
        """A class inside of one."""

    def method(self) -> int:
        return super().method() + 1


class Ring:
    """Refers to itself by an instance."""

    me: Any


Ring.me = Ring()


@dataclasses.dataclass
class Point:
    x: int = 1
    rest: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, order=True)
class Slotted:
    __slots__ = ("x",)
    x: int


class Hidden:
    """Slots, one of which has a private name."""

    __slots__ = ("__dict__", "__value")

    def __init__(self) -> None:
        self.__value = 5

    def value(self) -> int:
        return self.__value


class OwnError(ValueError):
    """An exception with an `__init__`."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class Abstract(abc.ABC):
    @abc.abstractmethod
    def method(self) -> int: ...


Abstract.register(Plain)


class Box(typing.Generic[T]):
    """A generic class."""

    def __init__(self, value: T) -> None:
        self.value = value


class IntBox(Box[int]):
    """A parametrised one."""


@typing.runtime_checkable
class HasMethod(typing.Protocol):
    def method(self) -> int: ...


class Pair(typing.NamedTuple):
    a: int
    b: int = 2

    def total(self) -> int:
        return self.a + self.b


class DoublePair(Pair):
    """A subclass of a named tuple."""

    def total(self) -> int:
        return super().total() * 2


# Not by a class statement: Python 3.10 has no generic ones.
GenericPair: Any = None
if hasattr(typing, "Self"):

    class GenericPair(typing.NamedTuple, typing.Generic[T]):  # type: ignore[no-redef]
        a: T
        b: int = 2

        def total(self) -> Any:
            return self.a


Renamed = collections.namedtuple("Renamed", "a def a", rename=True)


class Day(datetime.date, enum.Enum):
    FIRST = 2020, 1, 1
    LAST = 2020, 12, 31


class Moment(datetime.datetime, enum.Enum):
    NOON = 2020, 1, 1, 12


class Price(decimal.Decimal, enum.Enum):
    LOW = "1.5"


class Registering:
    """Keeps its subclasses by an attribute that each has."""

    known: typing.ClassVar[dict[str, type]] = {}
    name = "base"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not callable(getattr(cls, "method", None)):
            raise TypeError("there must be a method")
        Registering.known[cls.name] = cls


class Registered(Registering):
    name = "one"

    def method(self) -> int:
        return 1


class Equal(type):
    """A metaclass whose classes are all equal, and have no hash."""

    def __eq__(cls, other: object) -> bool:
        return True


class Odd(metaclass=Equal):
    def method(self) -> int:
        return 1


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 2


def make_local(number: int) -> type:
    class Local:
        def method(self) -> Any:
            return number, Local

    return Local


One, Two = make_local(1), make_local(2)
