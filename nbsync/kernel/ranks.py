"""Rank specs as users type them: ``0,2-3``, ``main``, ``last``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from nbsync.errors import UsageError
from nbsync.protocol.words import format_ranks

_NAMED: dict[str, Callable[[int], Iterable[int]]] = {  # by the size of the world
    "main": lambda size: (0,),
    "local_main": lambda size: (0,),  # all ranks are on one node
    "last": lambda size: (size - 1,),
    "all": range,
}
NAMES = tuple(_NAMED)
_ACCEPTED = "a rank (0), a list (0,2), a range (0-3), main, local_main, last, all, or a mixture (0,last or 0 last)"
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def parse_ranks(spec: str, world_size: int) -> tuple[int, ...]:
    """Return the ranks that `spec` names, sorted, each once.

    Raises `UsageError` if the spec is malformed or names a rank that this world does not have.
    """
    chosen: set[int] = set()
    for name in re.split(r",|\s+", re.sub(r"\s*([,-])\s*", r"\1", spec.strip())):
        chosen.update(_NAMED[name](world_size) if name in _NAMED else _parse_range(name, spec, world_size))
    return tuple(sorted(chosen))


def _parse_range(part: str, spec: str, world_size: int) -> range:
    match = _RANGE.fullmatch(part)
    if match is None:
        raise _bad(spec, f"{part!r} is not a rank" if part else "a rank is missing", world_size)
    first = int(match[1])
    last = int(match[2] or match[1])
    if first > last:
        raise _bad(spec, f"the range {part} runs backwards", world_size)
    if last >= world_size:
        raise _bad(spec, f"there is no rank {last}", world_size)
    return range(first, last + 1)


def _bad(spec: str, reason: str, world_size: int) -> UsageError:
    world = f"ranks {format_ranks(range(world_size))}" if world_size > 1 else "only rank 0"
    return UsageError(f"bad ranks {spec!r}: {reason}. This world has {world}. Accepted: {_ACCEPTED}.")
