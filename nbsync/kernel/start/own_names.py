"""The names that the workers bind for themselves, where the notebook has variables of these names."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from nbsync.kernel.output.sink import make_sink, tell
from nbsync.protocol.spec import OWN_NAMES

_WORLD = ("nbsync.worker.control.world", "World")
_told: set[str] = set()


def tell_hidden(variables: Mapping[str, Any]) -> None:
    """Say, once for each, which of the notebook's variables mean something else in a distributed cell."""
    hidden = [name for name in OWN_NAMES if name in variables and not _is_alike(variables[name]) and name not in _told]
    _told.update(hidden)
    if hidden:
        names = ", ".join(f"`{name}`" for name in hidden)
        tell(make_sink(), f"in distributed cells {names} will be each rank's own, not the notebook's")


def _is_alike(value: Any) -> bool:
    """Whether it is torch, torch.distributed, or a `World`: then it means the same there."""
    kind = type(value)  # not `isinstance`: a proxy may lie about its class, or raise
    if issubclass(kind, ModuleType):
        return value.__name__ in ("torch", "torch.distributed")
    return (kind.__module__, kind.__qualname__) == _WORLD
