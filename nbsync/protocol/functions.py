"""Functions whose globals are a copy of the notebook's namespace, such as the methods that attrs makes.

The copy holds all of the notebook, and much of it cannot be sent. What goes is what the function uses.
"""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

_USE = frozenset(["LOAD_GLOBAL", "LOAD_NAME"])


def has_copied_globals(function: types.FunctionType) -> bool:
    """Whether its globals are a copy of the notebook's namespace."""
    main, own = vars(sys.modules["__main__"]), function.__globals__
    if own is main or own.get("__name__") != "__main__":
        return False
    return "__builtins__" in own and own["__builtins__"] is main.get("__builtins__")


def parts_of_function(function: types.FunctionType) -> tuple[types.FunctionType, tuple[str, ...]]:
    """What `assemble` makes it of: the function with those globals that the notebook has not, and names of others."""
    main, whole = vars(sys.modules["__main__"]), function.__globals__
    used = [name for name in dict.fromkeys(_names_used(function.__code__)) if name in whole]
    own = {name: whole[name] for name in used if name not in main or main[name] is not whole[name]}
    code, closure = function.__code__, function.__closure__
    bare = types.FunctionType(code, {"__name__": "__main__", **own}, function.__name__, function.__defaults__, closure)
    for name in ("__kwdefaults__", "__annotations__", "__doc__", "__module__", "__qualname__"):
        setattr(bare, name, getattr(function, name))
    vars(bare).update(vars(function))
    return bare, tuple(name for name in used if name not in own)


def assemble(bare: types.FunctionType, names: Sequence[str]) -> types.FunctionType:
    """The function, with what this side's notebook has by these names."""
    main = vars(sys.modules["__main__"])
    bare.__globals__.update((name, main[name]) for name in names if name in main)
    return bare


def _names_used(code: types.CodeType) -> Iterator[Any]:
    """Global ones; an attribute's name is none."""
    yield from (each.argval for each in dis.get_instructions(code) if each.opname in _USE)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_used(constant)
