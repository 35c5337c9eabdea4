"""What can be unpickled without a second thought: plain data, tensors, arrays, instances of plain classes.

Unpickling runs code: of what is not familiar it may end the process or never return. This is no defence against
attackers: what comes is the same user's.
"""

from __future__ import annotations

import builtins
import types
from collections.abc import Callable
from functools import partial
from typing import Any

from nbsync.errors import TransferError
from nbsync.protocol import pieces, tensors
from nbsync.protocol.messages import Payload
from nbsync.protocol.paths import path_to
from nbsync.protocol.serial import Common, Unfamiliar, Unpickler, find_common, unpack

_BUILTINS = frozenset(
    [
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "getattr",
        "int",
        "list",
        "object",
        "range",
        "set",
        "slice",
        "str",
        "tuple",
    ]
)
_MODULES = frozenset(
    [
        "collections",
        "copyreg",
        "datetime",
        "decimal",
        "fractions",
        "numpy",
        "pandas",
        "pathlib",
        "pyarrow",
        "scipy",
        "sklearn",
        "torch",
        "uuid",
    ]
)
_FUNCTIONS = {
    tensors.__name__: frozenset(["_rebuild_storage", "_rebuild_typed"]),
    pieces.__name__: frozenset(["rebuild_bytes"]),
    "dill._dill": frozenset(
        ["_eval_repr", "_get_attr", "_import_module", "_load_type", "_create_array", "_create_dtypemeta"]
    ),
    "functools": frozenset(["partial"]),
    "_codecs": frozenset(["encode"]),
    "types": frozenset(["SimpleNamespace"]),
}
# What unpickling calls of a class, if it is there.
_HOOKS = frozenset(
    [
        "__new__",
        "__setstate__",
        "__reduce__",
        "__reduce_ex__",
        "__getnewargs__",
        "__getnewargs_ex__",
        "__setattr__",
        "__setitem__",
        "append",
        "extend",
    ]
)


class FamiliarUnpickler(Unpickler):
    """Raises `Unfamiliar` before anything is called that is not known to be harmless."""

    def find_class(self, module: str, name: str) -> Any:
        """Called for every global of the pickle."""
        found = super().find_class(module, name)
        if found is find_common:
            return _find_plain
        if not (_is_familiar(module, name) or _is_plain(found)):
            raise Unfamiliar(f"{module}.{name}")
        return found


class ReportingUnpickler(Unpickler):
    """Tells of everything unfamiliar before it is used. For a process that may end by it.

    Args:
        report: is given its name.
    """

    def __init__(self, *args: Any, report: Callable[[str], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._report = report

    def find_class(self, module: str, name: str) -> Any:
        """Called for every global of the pickle."""
        found = super().find_class(module, name)
        if found is find_common or _is_familiar(module, name):
            return found
        if isinstance(found, types.FunctionType | types.BuiltinFunctionType):
            return self._reporting(found, f"{module}.{name}")
        self._report(f"{module}.{name}")
        return found

    def _reporting(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self._report(name)
            return function(*args)

        return call


class _Stub:
    """Stands for an unfamiliar object, and holds what it would have been rebuilt from."""

    def __init__(self, *parts: Any) -> None:
        self.__dict__.update(enumerate(parts))  # type: ignore[arg-type]  # to be found by a search, no more

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


class _StubUnpickler(Unpickler):
    """Rebuilds what is familiar, with stubs for the rest."""

    def __init__(self, *args: Any, made: dict[str, list[_Stub]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._made = made

    def find_class(self, module: str, name: str) -> Any:
        """Called for every global of the pickle."""
        if module == find_common.__module__ or _is_familiar(module, name):
            return super().find_class(module, name)
        made = self._made.setdefault(f"{module}.{name}", [])
        return type(name, (_Stub,), {"__new__": lambda cls, *parts: _keep(object.__new__(cls), made)})


def _keep(stub: _Stub, made: list[_Stub]) -> _Stub:
    made.append(stub)
    return stub


def find_path(payload: Payload, common: Common, name: str, number: int) -> str | None:
    """Where the object stands for which `name` is called for the `number`-th time; None if that is not found.

    Nothing unfamiliar is called for this.
    """
    made: dict[str, list[_Stub]] = {}
    try:
        value = unpack(payload, common, partial(_StubUnpickler, made=made))
    except TransferError:  # a stub cannot stand for everything
        return None
    stubs = made.get(name, [])
    return path_to(stubs[number - 1], value) if 0 < number <= len(stubs) else None


def _find_plain(name: str) -> Any:
    found = find_common(name)
    if not _is_plain(found):
        raise Unfamiliar(f"__main__.{name}")
    return found


def _is_familiar(module: str, name: str) -> bool:
    if module == "builtins":
        return name in _BUILTINS or _is_plain(getattr(builtins, name, None))
    return module.partition(".")[0] in _MODULES or name in _FUNCTIONS.get(module, ()) or module == "nbsync.errors"


def _is_plain(found: Any) -> bool:
    """Whether this is a class whose instances are rebuilt without calling any code of its own."""
    if not isinstance(found, type) or type(found).__module__ not in ("builtins", "abc", "enum"):
        return False
    if type(found).__module__ == "enum" or _is_namedtuple(found):
        return True
    own = [cls for cls in found.__mro__ if cls.__module__ != "builtins" and not _is_familiar(cls.__module__, "")]
    if issubclass(found, BaseException):  # is called, with its arguments
        return not any("__init__" in vars(cls) or _HOOKS & vars(cls).keys() for cls in own)
    return not any(_HOOKS & vars(cls).keys() for cls in own)


def _is_namedtuple(cls: type) -> bool:
    """Its `__new__` is not its author's."""
    return cls.__bases__ == (tuple,) and getattr(cls.__new__, "__module__", "").startswith("namedtuple_")
