"""The names that a rank has, for Tab in the notebook.

They are found without a property or `__getattr__` of the user's: those may wait, or change something, and it is the
helper thread that looks.
"""

from __future__ import annotations

import sys
from types import MappingProxyType
from typing import Any

MOST = 2000  # in one answer
_NAMED_PARTS = ("_parameters", "_buffers", "_modules")  # of a torch module, whose `__getattr__` finds them


def names_of(path: str) -> tuple[str, ...]:
    """The variables of this rank for "", the attributes of an object for its path, as "model.head"; () if unknown."""
    main = sys.modules["__main__"]
    try:
        found: Any = main
        for name in path.split(".") if path else ():
            found = _attributes(found)[name]
        names = [*_attributes(found), *([] if found is main else _inherited(found))]
    except Exception:  # a class of the user's may be anything, and must not cost the rank its helper thread
        return ()
    return tuple(dict.fromkeys(name for name in names if type(name) is str))[:MOST]


def _attributes(value: Any) -> dict[Any, Any]:
    """What the object itself holds."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    held = dict(own) if type(own) in (dict, MappingProxyType) else {}
    for part in _NAMED_PARTS:
        if type(named := held.get(part)) is dict:
            held |= named
    return held


def _inherited(value: Any) -> list[str]:
    """The names in its classes."""
    cls = value if isinstance(value, type) else type(value)
    classes: tuple[type, ...] = type.__dict__["__mro__"].__get__(cls)
    return [name for each in classes[:-1] for name in [*vars(each)]]  # a list: other threads may change the class
