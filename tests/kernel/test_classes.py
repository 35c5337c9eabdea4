"""Classes that go by value: of every kind, and one class wherever they have been."""

from __future__ import annotations

import dataclasses
import gc
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nbsync.errors import TransferError
from nbsync.kernel.trial import unpack_safely
from nbsync.protocol import idents
from nbsync.protocol.familiar import FamiliarUnpickler
from nbsync.protocol.serial import Common, Unfamiliar, pack, pack_variables, unpack

SORTS = Path(__file__).with_name("sorts.py").read_text()


class Side:
    """A process, as far as classes are concerned: it knows those that it has made or received."""

    def __init__(self) -> None:
        self._own: Any = {}, {}

    @contextmanager
    def here(self) -> Iterator[None]:
        before = idents._entries, idents._by_ident
        idents._entries, idents._by_ident = self._own
        try:
            yield
        finally:
            idents._entries, idents._by_ident = before

    def pack(self, value: Any) -> Any:
        with self.here(), warnings.catch_warnings():
            warnings.simplefilter("error")
            return pack(value)

    def pack_variables(self, **variables: Any) -> Any:
        with self.here():
            return pack_variables(variables, Common())

    def unpack(self, payload: Any) -> Any:
        with self.here():
            return unpack(payload)

    def cell(self, code: str, run: str = "", **given: Any) -> dict[str, Any]:
        """What a cell defines; with `run`, on a rank."""
        names: dict[str, Any] = {"__name__": "__main__", **given}
        exec(code, names)
        with self.here():
            idents.identify_alike(names, run) if run else idents.identify(names)
        return names

    @property
    def size(self) -> int:
        return len(self._own[0]) + len(self._own[1])


@pytest.fixture
def sides() -> tuple[Side, Side]:
    """Two processes."""
    return Side(), Side()


@pytest.fixture
def sorts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`sorts.py`, run as a cell is: none of its classes can be imported."""
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(compile(SORTS, "<cell>", "exec"), vars(module))
    return module


def _names() -> list[str]:
    module = ModuleType("__main__")
    exec(SORTS, vars(module))
    return [name for name, value in vars(module).items() if getattr(value, "__module__", None) == "__main__"]


# ---- of every kind ----


@pytest.mark.parametrize("name", [name for name in _names() if name != "make_local"])
def test_every_sort_is_one_class(sorts: ModuleType, sides: tuple[Side, Side], name: str) -> None:
    """It is another object on the other side, once; and here it is itself again."""
    here, there = sides
    thing = getattr(sorts, name)
    arrived = there.unpack(here.pack(thing))
    assert arrived is not thing
    assert there.unpack(here.pack([thing]))[0] is arrived
    assert here.unpack(there.pack(arrived)) is thing


def _check_methods(new: Any) -> None:
    derived = new.Derived()
    assert (derived.method(), derived.prop, derived.static(), derived.cached) == (2, 2, 3, 4)
    assert derived.itself() is new.Derived
    assert new.Derived.Inner.__qualname__ == "Derived.Inner"
    assert type(new.Ring.me) is new.Ring
    assert (new.One().method(), new.Two().method()) == ((1, new.One), (2, new.Two))
    assert new.Hidden().value() == 5


def _check_dataclasses(new: Any) -> None:
    assert [field.name for field in dataclasses.fields(new.Point)] == ["x", "rest"]
    assert dataclasses.asdict(new.Point(rest=[1])) == {"x": 1, "rest": [1]}
    assert dataclasses.fields(new.Point)[0].default_factory is dataclasses.MISSING
    assert new.Point().rest is not new.Point().rest
    assert new.Slotted(1) < new.Slotted(2)
    assert not hasattr(new.Slotted(1), "__dict__")


def _check_abstract(new: Any) -> None:
    with pytest.raises(TypeError, match="abstract"):
        new.Abstract()
    assert isinstance(new.Plain(), new.Abstract)
    assert isinstance(new.Plain(), new.HasMethod)
    assert not isinstance(new.Hidden(), new.HasMethod)
    assert new.Box[int](3).value == 3
    assert new.Box.__parameters__ == (new.T,)
    assert new.IntBox.__orig_bases__[0].__origin__ is new.Box


def _check_tuples(new: Any) -> None:
    assert (new.Pair(1).total(), new.DoublePair(1).total()) == (3, 6)
    assert isinstance(new.DoublePair(1), new.Pair)
    assert new.Pair(1)._replace(a=5).total() == 7
    assert new.Renamed(1, 2, 3)._asdict() == {"a": 1, "_1": 2, "_2": 3}
    if new.GenericPair is not None:
        assert new.GenericPair[int](4) == (4, 2)
        assert new.GenericPair(4).total() == 4
        assert new.GenericPair.__parameters__ == (new.T,)


def _check_enumerations(new: Any) -> None:
    assert date(2020, 1, 1) == new.Day.FIRST
    assert new.Day(date(2020, 12, 31)) is new.Day.LAST
    assert new.Moment.NOON.hour == 12
    assert new.Price.LOW * 2 == 3


def _check_own_making(new: Any) -> None:
    assert new.OwnError("text", 3).code == 3
    assert new.Registering.known == {"one": new.Registered}
    assert new.Registered().method() == 1
    assert (type(new.Odd), new.Odd().method()) == (new.Equal, 1)
    assert new.Net().layer.weight.shape == (1, 2)
    x = torch.ones(1, requires_grad=True)
    new.Twice.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad.item() == 2


@pytest.mark.parametrize(
    "check",
    [_check_methods, _check_dataclasses, _check_abstract, _check_tuples, _check_enumerations, _check_own_making],
)
def test_every_sort_works(sorts: ModuleType, sides: tuple[Side, Side], check: Callable[[Any], None]) -> None:
    """What has arrived does what it does here, also when each came on its own."""
    here, there = sides
    names = [name for name in _names() if name != "make_local"]
    new = ModuleType("new")
    for name in names:
        setattr(new, name, there.unpack(here.pack(getattr(sorts, name))))
    new.GenericPair = getattr(new, "GenericPair", None)  # type: ignore[attr-defined]
    check(new)


@pytest.mark.parametrize(
    ("library", "cell"),
    [
        ("pydantic", "class C(pydantic.BaseModel):\n    x: int = 1\nvalue = C(x='3')"),
        ("attrs", "@attrs.define\nclass C:\n    x: int = 1\nvalue = C(3)"),
    ],
)
def test_classes_of_libraries(sorts: ModuleType, sides: tuple[Side, Side], library: str, cell: str) -> None:
    """Models and the like, which refer to themselves by what is compiled for them."""
    setattr(sorts, library, pytest.importorskip(library))
    exec(cell, vars(sorts))
    here, there = sides
    arrived = there.unpack(here.pack(sorts.value))
    assert arrived == type(arrived)(x=3)
    assert arrived != type(arrived)(x=4)
    assert here.unpack(there.pack(arrived)) == sorts.value


def test_globals_that_are_a_copy(monkeypatch: pytest.MonkeyPatch, sides: tuple[Side, Side]) -> None:
    """A function that was made with a copy of the notebook's namespace takes along what only the copy has."""
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    names = vars(module)
    exec("import threading\nlock = threading.Lock()\nold = model = iter([])\ndef g(): return 1", names)
    copied = {**names, "extra": 2, "number": 3}
    exec(
        "def f(self, more=0, *, last=4):\n    'doc'\n    self.model = self.lock = more\n"
        "    return [g(), extra, last, *(number for _ in 'a')], f",
        copied,
    )
    here, there = sides
    names["old"] = names["model"] = 1
    f = copied["f"]
    f.mark = f
    payload = here.pack([f, f])
    names["lock"] = None
    one, two = there.unpack(payload)
    assert one is two is one.mark
    assert one(ModuleType("x")) == ([1, 2, 4, 3], one)
    assert (one.__doc__, one.__qualname__, one.__module__) == ("doc", "f", "__main__")
    assert "model" not in one.__globals__


# ---- one class ----


def test_redefined_is_another(sides: tuple[Side, Side]) -> None:
    """A cell that is run again makes another class, as in plain Python; the old one's instances keep theirs."""
    here, there = sides
    cell = "class C:\n    x = 1"
    old, new = here.cell(cell)["C"], here.cell(cell)["C"]
    first, second = there.unpack(here.pack(old())), there.unpack(here.pack(new()))
    assert not isinstance(second, type(first))
    assert type(there.unpack(here.pack(old()))) is type(first)


def test_copied_is_another(sides: tuple[Side, Side]) -> None:
    """A class that was made of another's attributes is not that one."""
    here, there = sides
    one = here.cell("class C:\n    x = 1")["C"]
    here.pack(one)
    other = type("C", one.__bases__, {"__module__": "__main__", "x": one.x})
    assert there.unpack(here.pack(one)) is not there.unpack(here.pack(other))


def test_through_the_notebook(sides: tuple[Side, Side]) -> None:
    """What goes from one rank by the notebook to another, and back, is one class everywhere."""
    rank0, kernel = sides
    rank1 = Side()
    mine = rank0.cell("class C: pass")["C"]
    at_kernel = kernel.unpack(rank0.pack(mine()))
    at_rank1 = rank1.unpack(kernel.pack(at_kernel))
    assert type(rank0.unpack(rank1.pack(at_rank1))) is mine
    assert type(kernel.unpack(rank1.pack(at_rank1))) is type(at_kernel)


def test_same_cell_on_ranks(sides: tuple[Side, Side]) -> None:
    """A class that each rank has made by the same cell is one to the notebook, and each rank's own when it is back."""
    rank0, rank1 = sides
    kernel = Side()
    cell = "import dataclasses\n@dataclasses.dataclass\nclass C:\n    x: int = 1\n    class Inner: pass"
    own0, own1 = rank0.cell(cell, "7")["C"], rank1.cell(cell, "7")["C"]
    one, two, inner = (kernel.unpack(rank.pack(value)) for rank, value in
                       ((rank0, own0(2)), (rank1, own1(2)), (rank1, own1.Inner())))  # fmt: skip
    assert one == two
    assert type(inner) is type(one).Inner
    assert rank1.unpack(kernel.pack(one)) == own1(2)
    again = rank0.cell(cell, "8")["C"]
    assert type(kernel.unpack(rank0.pack(again()))) is not type(one)


@pytest.mark.parametrize(
    "cell",
    [
        "class C:\n    x = rank",
        "class C:\n    x = [{'a': (rank,)}]",
        "if rank:\n    class C:\n        def f(self): pass\nelse:\n    class C:\n        def f(self): pass",
        "import enum\nclass C(enum.Enum):\n    A = rank",
        "class B0: pass\nclass B1: pass\nclass C((B0, B1)[rank]): pass",
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n    x: list = dataclasses.field(default=(rank, {}))",
        "def make(rank):\n    class C:\n        def f(self): return rank\n    return C\nC = make(rank)",
    ],
    ids=["attribute", "inside an attribute", "lines", "members", "bases", "default", "closure"],
)
def test_other_on_each_rank(sides: tuple[Side, Side], cell: str) -> None:
    """What the ranks have made differently is not taken for one class."""
    kernel = Side()
    made = [kernel.unpack(side.pack(side.cell(cell, "7", rank=rank)["C"])) for rank, side in enumerate(sides)]
    assert made[0] is not made[1]


_LAZY = """
class Lazy:
    @property
    def __class__(self): raise RuntimeError("not yet")
class C:
    lazy, lazies = Lazy(), [Lazy()]
"""
_ENUM = """
import enum
class E(enum.Enum):
    A = 1
    def _raise(self): raise RuntimeError("not yet")
    value = property(_raise)
"""
_CLOSED = """
class Meta(type):
    def __getattribute__(cls, name): raise RuntimeError("not yet")
class Closed(metaclass=Meta): pass
class C: pass
"""


def test_class_that_cannot_be_asked_for(sides: tuple[Side, Side]) -> None:
    """A proxy may raise where it is asked for its class: the classes that hold it are told from others all the same."""
    kernel = Side()
    for side in sides:
        assert id(side.cell(_LAZY, "7")["C"]) in side._own[0]
        assert id(side.cell(_CLOSED, "8")["C"]) in side._own[0]
    arrived = [kernel.unpack(side.pack(side.cell(_ENUM, "9")["E"].A)) for side in sides]
    assert arrived[0] is arrived[1]
    names = kernel.cell(f"{_LAZY}value = Lazy()")
    assert id(names["C"]) in kernel._own[0]
    with pytest.raises(TransferError, match="value of type Lazy cannot be sent"):
        kernel.pack_variables(value=names["value"])


def test_before_the_fork(sides: tuple[Side, Side]) -> None:
    """The classes that a copy of the notebook has are known by their idents, also inner and nameless ones."""
    kernel, _ = sides
    names = kernel.cell("class C:\n    class Inner: pass\nvalue = type('Nameless', (), {})()")
    for cls in (names["C"], names["C"].Inner, type(names["value"])):
        assert id(cls) in kernel._own[0]


# ---- a class that holds instances of its own ----

_OWN_INSTANCES = {
    "frozen with slots": """
import dataclasses
@dataclasses.dataclass(frozen=True, slots=True)
class C:
    r: int
    g: int = 0
C.RED = C(255)
make = lambda: C(1, 2)
check = lambda new: (new.RED.r, new.RED.g) == (255, 0)
""",
    "own __setitem__": """
class C(dict):
    def __setitem__(self, key, value):
        super().__setitem__(key.upper(), value)
C.DEFAULT = C(); C.DEFAULT["a"] = 1
make = lambda: C(B=2)
check = lambda new: new.DEFAULT == {"A": 1}
""",
    "own append": """
class C(list):
    def append(self, value): super().append(value)
    def extend(self, values): super().extend(values)
C.FIRST = C([1, 2])
make = lambda: C([3])
check = lambda new: new.FIRST == [1, 2]
""",
    "own __setstate__": """
class C:
    def __init__(self, x): self.x = x
    def __getstate__(self): return {"x": self.x}
    def __setstate__(self, state): self.__dict__.update(state); self.is_back = True
C.ZERO = C(0)
make = lambda: C(1)
check = lambda new: (new.ZERO.x, new.ZERO.is_back) == (0, True)
""",
    "own __setattr__": """
class C:
    __slots__ = ("_x",)
    def __setattr__(self, name, value): object.__setattr__(self, "_" + name.lstrip("_"), value)
C.ZERO = C(); C.ZERO.x = 3
make = C
check = lambda new: new.ZERO._x == 3
""",
    "own __new__": """
class C(float):
    def __new__(cls, value, unit="K"):
        self = super().__new__(cls, value)
        self.unit = unit
        return self
    def __getnewargs__(self): return float(self), self.unit
C.ZERO = C(273.0, "C")
make = lambda: C(1.0)
check = lambda new: (new.ZERO, new.ZERO.unit) == (273.0, "C")
""",
    "own __reduce__": """
class C:
    def __init__(self, x): self.x = x
    @classmethod
    def of(cls, x): return cls(x)
    def __reduce__(self): return C.of, (self.x,)
C.ROOT = C(7)
make = lambda: C(1)
check = lambda new: new.ROOT.x == 7
""",
    "one only": """
class C:
    one = None
    def __new__(cls):
        if cls.one is None:
            cls.one = super().__new__(cls)
        return cls.one
make = C
C().x = 1
check = lambda new: new() is new.one is new.mine and new.one.x == 1
""",
    "one only, of an int": """
class C(int):
    def __new__(cls, value=3):
        if not hasattr(cls, "one"):
            cls.one = super().__new__(cls, value)
        return cls.one
make = C
C().x = 1
check = lambda new: new() is new.one is new.mine and (new.one, new.one.x) == (3, 1)
""",
    "sets of them": """
class C:
    def __init__(self, x): self.x = x
    def __hash__(self): return hash(self.x)
    def __eq__(self, other): return self.x == other.x
C.all, C.numbers = {C(1), C(2)}, {C(1): "one"}
make = lambda: C(1)
check = lambda new: (len(new.all), new(1) in new.all, new.numbers[new(1)]) == (2, True, "one")
""",
    "a descriptor": """
class Doubled:
    def __set_name__(self, owner, name): self.name = name
    def __get__(self, instance, owner): return self if instance is None else instance.__dict__["_" + self.name]
    def __set__(self, instance, value): instance.__dict__["_" + self.name] = 2 * value
class C:
    x = Doubled()
    def __init__(self, x): self.x = x
    def __getstate__(self): return {"x": self.x}
    def __setstate__(self, state): self.x = state["x"] / 2
C.ONE = C(1)
make = lambda: C(2)
check = lambda new: new.ONE.x == 2
""",
    "as a default": """
class C:
    def __init__(self, x): self.x = x
    def __setstate__(self, state): super().__setattr__("x", state["x"])
def plus(self, other=C(4)): return self.x + other.x
C.plus = plus
make = lambda: C(1)
check = lambda new: new(1).plus() == 5
""",
    "inside a function's default": """
class C:
    def __init__(self, x): self.x = x
    def __setstate__(self, state): super().__setattr__("x", state["x"])
C.ONE = C(1)
def make(default=C(2)):
    return default
value = make
check = lambda new: new.ONE.x == 1
""",
    "a named tuple": """
import typing
class C(typing.NamedTuple):
    x: int
    def __hash__(self): return 7
    def __eq__(self, other): return self.x == other.x
C.all = {C(1)}
make = lambda: C(2)
check = lambda new: new(1) in new.all
""",
}


@pytest.mark.parametrize("cell", _OWN_INSTANCES.values(), ids=_OWN_INSTANCES)
def test_own_instances(monkeypatch: pytest.MonkeyPatch, sides: tuple[Side, Side], cell: str) -> None:
    """They are rebuilt by the class's own methods, whichever comes first."""
    here, there = sides
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    names = vars(module)
    exec(cell, names)
    names["C"].mine = names["make"]()
    arrived = there.unpack(here.pack(names.get("value", names["C"].mine)))
    new = type(arrived) if "value" not in names else type(arrived())
    assert new is not names["C"]
    assert names["check"](new)
    assert type(new.mine) is new
    assert there.unpack(here.pack_variables(C=names["C"]))["C"] is new
    assert names["check"](new)


def test_fails_rather_than_loses(sides: tuple[Side, Side]) -> None:
    """What cannot be rebuilt yet is no instance without its values."""
    here, there = sides
    cell = """
def make():
    class C:
        def __init__(self, x): self.x = x
        def __getattribute__(self, name, own=[]): return object.__getattribute__(self, name)
        def __setstate__(self, state): self.x = state["x"]
    C.__getattribute__.__defaults__[0].append(C(1))
    return C
C = make()
"""
    table = """
class C:
    table = {}
    def __new__(cls, key):
        if key not in cls.table:
            cls.table[key] = super().__new__(cls)
        return cls.table[key]
    def __getnewargs__(self): return (1,)
C(1)
"""
    payload = here.pack(here.cell(table)["C"])
    with pytest.raises(TransferError, match=r"no attribute 'table'\. The class holds instances of its own"):
        there.unpack(payload)
    payload = here.pack(here.cell(cell)["C"])
    with pytest.raises(TransferError, match="__getattribute__ is called while its class is still being rebuilt"):
        there.unpack(payload)


def test_metaclass_with_a_registry(sides: tuple[Side, Side]) -> None:
    """A class that its metaclass, or its base, has in a list is made before these are whole, and once."""
    here, there = sides
    cell = """
class Meta(type):
    made = {}
    def __new__(meta, name, bases, names):
        cls = super().__new__(meta, name, bases, names)
        meta.made[name] = cls
        return cls
    def __init__(cls, *args): super().__init__(*args)
    def __call__(cls, *args): return super().__call__(*args)
class Base:
    known = []
    def __init_subclass__(cls):
        super().__init_subclass__()
        cls.known.append(cls)
class C(Base, metaclass=Meta):
    def f(self): return 1
class Late(Base, metaclass=Meta): pass
Meta.first = C
"""
    names = here.cell(cell)
    arrived = there.unpack(here.pack(names["C"]()))
    new = type(arrived)
    assert arrived.f() == 1
    assert [*type(new).made] == ["Base", "C", "Late"][1:]
    assert type(new).made["C"] is new
    assert [cls.__name__ for cls in new.known] == ["C", "Late"]
    assert new.known[0] is new
    later = type(new)("Later", (new,), {})
    assert later() is not None
    assert (type(new).made["Later"], new.known[-1]) == (later, later)


# ---- methods and attributes ----

_CONFIG = "class Config:\n    rate = 1\n    def show(self): return self.rate\n    def __hash__(self): return 1"


def test_pushed_class_is_brought_up_to_date(sides: tuple[Side, Side]) -> None:
    """A class that is pushed itself becomes as it is here; one that comes along with a value is left alone."""
    here, there = sides
    own = here.cell(_CONFIG)["Config"]
    config = there.unpack(here.pack(own()))
    own.rate, own.show, own.more = 2, lambda self: "new", property(lambda self: 3)
    type(config).mine = 4
    there.unpack(here.pack_variables(config=own(), both=[own]))
    assert (config.rate, config.show()) == (1, 1)
    there.unpack(here.pack_variables(Config=own, config=own()))
    assert (config.rate, config.show(), config.more, config.mine) == (2, "new", 3, 4)


def test_pushed_kinds_are_brought_up_to_date(sides: tuple[Side, Side]) -> None:
    """So are named tuples and enumerations; these keep their members."""
    here, there = sides
    names = here.cell(
        "import enum, typing\nclass Pair(typing.NamedTuple):\n    a: int\n    def show(self): return 1\n"
        "class Color(enum.Enum):\n    RED = 1\n    def show(self): return 1\n"
    )
    pair, red = names["Pair"](1), names["Color"].RED
    copies = there.unpack(here.pack([pair, red]))
    type(copies[1]).mine = 4
    for cls in (type(pair), type(red)):
        cls.show, cls.rate = lambda self: "new", 2
    there.unpack(here.pack([pair, red, type(pair), type(red)]))
    assert [(copy.show(), hasattr(copy, "rate")) for copy in copies] == [(1, False), (1, False)]
    there.unpack(here.pack_variables(Pair=type(pair), Color=type(red), values=[pair, red]))
    assert [(copy.show(), copy.rate) for copy in copies] == [("new", 2), ("new", 2)]
    assert (type(copies[1]).RED, type(copies[1]).mine, type(copies[1])(1)) == (copies[1], 4, copies[1])


def test_pushed_class_from_before_the_start(sorts: ModuleType) -> None:
    """Of a class that both sides have, plain attributes go along, and what was bound anew; nothing else."""
    own = sorts.Plain
    own.rate, own.kept, own.replaced = 1, (i for i in range(3)), [1]
    common = Common.of(vars(sorts))
    copy = type("Plain", (), dict(vars(own)))
    at_rank = Common({"Plain": copy})
    for rate, replaced in ((2, [2]), (1, own.replaced)):
        own.rate, own.replaced, own.method = rate, replaced, lambda self: "new"
        assert unpack(pack_variables({"Plain": own}, common), at_rank) == {"Plain": copy}
        assert (copy.rate, copy.replaced, copy().method(), copy.kept) == (rate, replaced, "new", own.kept)  # type: ignore[attr-defined]
        copy.rate = 7  # type: ignore[attr-defined]
    assert unpack(pack(own, common), at_rank) is copy
    assert copy.rate == 7  # type: ignore[attr-defined]


def test_a_pull_changes_no_class(sides: tuple[Side, Side]) -> None:
    """What a rank has done to its copy of a class stays with the rank."""
    kernel, rank = sides
    own = kernel.cell(_CONFIG)["Config"]
    copy = rank.unpack(kernel.pack(own))
    copy.rate = 5
    assert kernel.unpack(rank.pack([copy, copy()]))[0] is own
    assert own.rate == 1


# ---- safety, memory ----


def test_still_tried_first(sides: tuple[Side, Side]) -> None:
    """A class that comes by value is not familiar, known or not: it may hold anything."""
    for value in (
        sides[0].cell("class C: pass")["C"],
        sides[0].cell("import enum\nclass C(enum.Enum):\n    A = 1")["C"],
    ):
        payload = pack(value)
        with pytest.raises(Unfamiliar):
            unpack(payload, None, FamiliarUnpickler)
        assert unpack_safely(payload, Common(), pytest.fail) is value


def test_half_made_is_completed(sides: tuple[Side, Side]) -> None:
    """A class whose first arrival failed in the middle gets its methods with the next."""
    here, there = sides
    names = here.cell("class Bad:\n    def __setstate__(self, state): raise ValueError('not here')\n"
                      "class C:\n    def f(self): return 1\n")  # fmt: skip
    own = names["C"]
    bad = names["Bad"]()
    bad.x = 1
    own.first = bad
    with pytest.raises(Exception, match="not here"):
        there.unpack(here.pack(own()))
    del own.first
    assert there.unpack(here.pack(own())).f() == 1


def test_two_threads(sides: tuple[Side, Side]) -> None:
    """What receives a class twice at the same time has it once."""
    here, there = sides
    names = here.cell(
        "import enum\nclass C:\n    x = list(range(99))\n    def f(self): return len(self.x)\n"
        "class E(enum.Enum):\n    A = 1\n    def f(self): return self.value"
    )
    payload = here.pack([names["C"](), names["E"].A])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(15):
            with there.here(), ThreadPoolExecutor(4) as pool:
                arrived = list(pool.map(lambda _: unpack(payload), range(4)))
            assert {(type(c), e) for c, e in arrived} == {(type(arrived[0][0]), arrived[0][1])}
            assert [(c.f(), e.f()) for c, e in arrived] == [(99, 1)] * 4
            del arrived
            gc.collect()
    finally:
        sys.setswitchinterval(interval)


def test_nothing_is_kept(sides: tuple[Side, Side]) -> None:
    """A thousand redefinitions leave nothing behind on either side."""
    here, there = sides
    cell = "import enum\nclass C:\n    def f(self): return C\n    x = [1]\nC.me = C()\nclass E(enum.Enum):\n    A = 1"
    gone = []
    for number in range(1000):
        names = here.cell(cell, str(number))
        arrived = there.unpack(here.pack([names["C"](), names["E"].A]))
        if number % 250 == 0:
            gone += map(weakref.ref, (names["C"], names["E"], type(arrived[0]), type(arrived[1])))
        names.clear()
        if number % 100 == 0:
            gc.collect()
    del names, arrived
    gc.collect()
    assert [ref() for ref in gone] == [None] * 16
    assert (here.size, there.size) == (0, 0)
