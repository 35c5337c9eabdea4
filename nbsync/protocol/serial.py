"""How users' objects travel between the notebook and its workers: dill, with tensors beside the pickle.

Both sides descend from one notebook, so a class or function that both have is sent by name and stays the same object
(`isinstance` and `except` go on working); what only one side has goes by value, a class with its ident.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import dill

from nbsync.errors import TransferError
from nbsync.protocol.classes import asks_half_made, change_of, own_constants, reduce_class, reduce_constant
from nbsync.protocol.functions import assemble, has_copied_globals, parts_of_function
from nbsync.protocol.kinds import VARIABLES
from nbsync.protocol.messages import Payload
from nbsync.protocol.paths import parts_of
from nbsync.protocol.pieces import LONG, Reader, rebuild_bytes
from nbsync.protocol.tensors import reduce_tensor


class Common:
    """The classes and functions that a notebook and its workers have in common, by name.

    It is taken just before the fork. What is in it is sent by name, and found again in the other side's copy: so it is
    the same object on both sides, also when the notebook has redefined the name since.

    Args:
        before: the attributes of the classes in it, as they were when it was taken.
    """

    def __init__(
        self, objects: Mapping[str, Any] | None = None, before: Mapping[str, dict[str, Any]] | None = None
    ) -> None:
        self.objects, self.before = dict(objects or {}), before or {}
        self._names = {id(value): name for name, value in self.objects.items()}

    @classmethod
    def of(cls, namespace: Mapping[str, Any]) -> Common:
        """What `namespace`, the notebook's, defines."""
        objects = {
            name: value
            for name, value in dict(namespace).items()  # a copy: the user's threads go on
            if issubclass(type(value), type | types.FunctionType)  # `__class__` may be the user's code
            and value.__module__ == "__main__"
            and value.__qualname__ == name
        }
        return cls(objects, {name: dict(vars(value)) for name, value in objects.items() if isinstance(value, type)})

    def __and__(self, other: Common) -> Common:
        """What is the same object in both. The rest is still found: ranks that have it from before send it by name."""
        both = Common(self.objects, self.before)
        both.forget({name for name in self.names if other.objects.get(name) is not self.objects[name]})
        return both

    def forget(self, names: Collection[str]) -> None:
        """The other side does not have these after all: they are not sent by name."""
        self._names = {key: name for key, name in self._names.items() if name not in names}

    @property
    def names(self) -> tuple[str, ...]:
        """Of what is sent by name."""
        return tuple(self._names.values())

    def name_of(self, value: Any) -> str | None:
        """The name under which the other side finds this very object, if it does."""
        return self._names.get(id(value))


_common = Common()  # of this worker; the kernel has one for each world, and passes it
_in_use = threading.local()
_RLOCK = type(threading.RLock())
_ARE_CLASSES = (type, *VARIABLES)
_HAVE_NAMES = (types.FunctionType, *_ARE_CLASSES)
_FILES = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom, io.FileIO)
_NO_GROUP = "process group has not been initialized"  # as torch says where a DDP model is unpickled
_DEEPEST = 6  # steps from a value to the part that is named


def set_common(common: Common) -> None:
    """In a worker: what it has in common with the notebook."""
    global _common
    _common = common


def find_common(name: str) -> Any:
    """What both sides know as `name`. Pickles name this function."""
    return getattr(_in_use, "common", _common).objects[name]


class Unpickler(dill.Unpickler):  # type: ignore[misc]  # dill has no types
    """dill's, but a value keeps its class: dill would give it the one that has the name in this process now."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, ignore=True, **kwargs)


class Unfamiliar(Exception):
    """A pickle holds something of which it is not known that it is harmless; the argument names it."""


def pack(
    value: Any,
    common: Common | None = None,
    named: Mapping[str, Any] | None = None,
    anew: Iterable[Any] = (),
) -> Payload:
    """Pickle a user's object.

    Args:
        common: what both sides know by name; in a worker it is known.
        named: the parts of `value`, by what the user calls them; by default it is "the value".
        anew: classes that go with their methods and attributes as they are now, also to who has them already.

    Raises:
        TransferError: it cannot be pickled; the message names the part and its type.
    """
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    try:
        Pickler(file, common or _common, buffers.append, anew).dump(value)
    except Exception as error:  # a user's __reduce__ may raise anything
        path, culprit = _find_culprit(named or {"the value": value}, common or _common)
        raise TransferError(
            f"{path} of type {type(culprit).__qualname__} cannot be sent between processes: "
            f"{type(error).__name__}: {error}"
        ) from error
    return Payload(file.getvalue(), tuple(buffers))


def pack_variables(variables: Mapping[str, Any], common: Common) -> Payload:
    """Pickle variables by their names; a class among them becomes as it is here. Raises as `pack`."""
    classes = [value for value in variables.values() if issubclass(type(value), type)]  # not by the user's `__class__`
    return pack(variables, common, variables, classes)


def pack_call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], common: Common) -> Payload:
    """Pickle a function with its arguments; raises as `pack`."""
    return pack((function, args, kwargs), common, {"the function": function, "args": args, "kwargs": kwargs})


def unpack(payload: Payload, common: Common | None = None, unpickler: Callable[..., Any] = Unpickler) -> Any:
    """Rebuild a user's object. `common` as in `pack`.

    Raises:
        TransferError: it cannot be rebuilt here.
        Unfamiliar: by an unpickler of `nbsync.protocol.familiar`.
    """
    _in_use.common = common or _common
    try:
        return unpickler(Reader(payload.pickled), buffers=payload.buffers).load()
    except Unfamiliar:
        raise
    except Exception as error:  # a user's __setstate__ may raise anything
        raise TransferError(
            f"a value arrived but cannot be rebuilt in this process: {type(error).__name__}: {error}{_hint(error)}"
        ) from error
    finally:
        del _in_use.common


def _hint(error: Exception) -> str:
    if _NO_GROUP in str(error):
        return " This process is in none: pull what is wrapped (`ddp_model.module`)"
    if isinstance(error, AttributeError) and asks_half_made(error.obj):
        return ". The class holds instances of its own, which are rebuilt before it has this attribute"
    return ""


@dataclass(frozen=True)
class Parts:
    """An exception that does not survive pickling as a whole."""

    type: type[BaseException]
    args: tuple[Any, ...]
    attributes: dict[str, Any]

    def assemble(self) -> BaseException:
        """The exception again, without calling code of its class."""
        builtin = next(cls for cls in self.type.__mro__ if cls.__module__ == "builtins")
        error = builtin.__new__(self.type, *self.args)
        vars(BaseException)["args"].__set__(error, self.args)
        vars(error).update(self.attributes)
        return error


class Pickler(dill.Pickler):  # type: ignore[misc]  # dill has no types
    """dill, with tensors and long bytes beside the pickle, and by name what both sides have.

    Args:
        file: where the pickle goes.
        common: what both sides know by name.
        keep: takes each large buffer.
        anew: as in `pack`.
    """

    def __init__(
        self,
        file: io.BytesIO,
        common: Common,
        keep: Callable[[pickle.PickleBuffer], None],
        anew: Iterable[Any] = (),
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=keep, recurse=False)
        self._known = common
        self._anew = {id(thing) for thing in anew}
        self._constants: dict[int, Any] = {}  # by id; of the classes that have gone by value
        self._functions: dict[int, tuple[Any, ...]] = {}  # by id; their parts

    def reducer_override(self, obj: Any) -> Any:
        kind: Any = type(obj)  # a proxy's `__class__` may raise
        name = self._known.name_of(obj)
        if name is not None:
            change = change_of(obj, self._known.before[name]) if id(obj) in self._anew else ()
            return find_common, (name,), *change
        if id(obj) in self._constants:
            return reduce_constant(obj)
        if kind is bytes and len(obj) >= LONG:  # to copy them would hold the GIL for seconds
            return rebuild_bytes, (pickle.PickleBuffer(obj),)
        if issubclass(kind, types.ModuleType) and id(sys.modules.get(obj.__name__)) == id(obj):
            return import_module, (obj.__name__,)  # dill would send the state of a user's module along
        if issubclass(kind, _HAVE_NAMES) and _is_importable(obj):
            # dill looks into the parent module for it, where torch.optim deletes its own
            return _global_name(obj)
        if issubclass(kind, _ARE_CLASSES):
            reduced = reduce_class(obj, id(obj) in self._anew)
            if reduced is not None:
                self._constants |= {id(value): value for value in own_constants(obj)}
                return reduced
        if kind is types.FunctionType and has_copied_globals(obj):
            if id(obj) not in self._functions:  # it may refer to itself
                self._functions[id(obj)] = parts_of_function(obj)
            return assemble, self._functions[id(obj)]
        if kind is types.CellType and self._is_there(obj):
            return types.CellType, (obj.cell_contents,)  # dill may fill it late: the class's methods are needed before
        if issubclass(kind, _FILES) and _would_be_emptied(obj):
            raise TypeError("a file that is open for writing cannot be opened twice: that would empty it")
        if issubclass(kind, _RLOCK):
            return threading.RLock, ()  # dill's is held by nobody, for ever: a cached_property of Python 3.11 hangs
        if kind is dict and obj is vars(sys.modules["__main__"]):
            return _main_namespace, ()
        return reduce_tensor(obj)

    def _is_there(self, cell: types.CellType) -> bool:
        """Whether its contents come before it in the pickle."""
        try:
            return id(cell.cell_contents) in self.memo
        except ValueError:  # it is empty
            return False


def _would_be_emptied(file: Any) -> bool:
    """Whether dill, which opens a file again by its name and mode, would do that to this one."""
    is_new = not file.closed and not {"w", "x"}.isdisjoint(str(getattr(file, "mode", "")))
    return is_new and file.fileno() > 2


def _global_name(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", thing.__name__))  # a type variable has but a name


def _is_importable(thing: Any) -> bool:
    """Whether any process finds this very class or function in its module."""
    found: Any = sys.modules.get(thing.__module__) if thing.__module__ != "__main__" else None
    for name in _global_name(thing).split("."):
        found = getattr(found, name, None)
    return found is thing


def _main_namespace() -> dict[str, Any]:
    """What functions of the notebook see as their globals, on either side."""
    return vars(sys.modules["__main__"])


def _find_culprit(named: Mapping[str, Any], common: Common) -> tuple[str, Any]:
    """The innermost part that cannot be pickled, by the path that leads to it."""
    culprits = (item for item in named.items() if not _packs(item[1], common))
    path, culprit = next(culprits, next(iter(named.items())))
    for _ in range(_DEEPEST):
        inner = next(((step, part) for step, part in parts_of(culprit) if not _packs(part, common)), None)
        if inner is None:
            break
        path, culprit = path + inner[0], inner[1]
    return path, culprit


def _packs(value: Any, common: Common) -> bool:
    try:
        Pickler(io.BytesIO(), common, _ignore).dump(value)
    except Exception:  # the question is only whether it can be done
        return False
    return True


def _ignore(buffer: pickle.PickleBuffer) -> None:
    pass
