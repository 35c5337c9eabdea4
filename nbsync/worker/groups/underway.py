"""What this process has begun and not yet waited for: `async_op=True`, `isend`, `irecv`, functional collectives, DDP's.

Each rank notes what it begins where the others can read it (see ledger.py), and compares when it has waited for it.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist

from nbsync.errors import CollectiveMismatch, OperationCutOff
from nbsync.worker.groups.comparison import tell_difference
from nbsync.worker.groups.ledger import Entry, Ledger, checksum
from nbsync.worker.groups.operations import Collective, Message, tensors_in, unseen
from nbsync.worker.places import line_of

_SHORT = 200  # characters of what an operation is, besides its line
_HELD = 64  # messages that nobody has waited for


@dataclass(frozen=True)
class Begun:
    """What this process has begun.

    Attributes:
        what: None if that is not known.
        ranks: whom it concerns.
        key: by which they know it.
        must: what they must have noted of it too; None if that is not compared.
    """

    what: Collective | Message | None
    ranks: tuple[int, ...]
    key: str
    must: str | None


_UNKNOWN = Begun(None, (), "", None)


class Underway:
    """The operations of this process that nobody has waited for, by what will be: a `Work`, its future, a storage.

    Attributes:
        ledger: where the ranks note what they begin, if there is such a place.
    """

    def __init__(self) -> None:
        self.ledger: Ledger | None = None
        self._begun: WeakKeyDictionary[Any, Begun] = WeakKeyDictionary()
        self._earlier: WeakKeyDictionary[Any, Begun] = WeakKeyDictionary()  # begun before the groups were healed
        # A message whose `Work` is dropped before it has flowed would block what comes after it on its connection.
        self._held: deque[Any] = deque(maxlen=_HELD)

    def forget(self) -> None:
        """The groups begin a new life: what was under way has been cut off."""
        self._earlier.update(self._begun)
        self._begun.clear()
        self._held.clear()

    def note(self, key: str, must: str, told: str) -> str | None:
        """Note what is begun, before anything of it can reach another rank. Returns what they must have noted too."""
        if self.ledger is None:
            return None
        entry = Entry(checksum(must), f"{told[:_SHORT]} at {line_of(sys._getframe())}")
        self.ledger.note(key, entry)
        return entry.must

    def hold(self, work: Any) -> Any:
        """Keep the `Work` of a message until somebody has waited for it."""
        if work is not None:
            self._held.append(work)
        return work

    def keep(self, result: Any, begun: Begun) -> Any:
        """Know what this is of: a `Work`, or the tensors that will have the data, by their storages."""
        for handle in _handles(result):
            self._begun[handle] = begun
        return result

    def take(self, handle: Any) -> Begun:
        """What this `Work` or storage, which is waited for now, is of."""
        if handle in self._held:  # a recent message; to fail at removing it would show all numbers of a storage
            self._held.remove(handle)
        return self._begun.pop(handle, _UNKNOWN)

    def known(self, handle: Any) -> Begun:
        """What this is of; nobody waits for it now."""
        return self._begun.get(handle, _UNKNOWN)

    def knows(self, handle: Any) -> bool:
        """Whether that is known, or was before the groups were healed."""
        return handle in self._begun or handle in self._earlier

    def also(self, future: Any, begun: Begun) -> Any:
        """Know that this future, too, is of what was begun."""
        if begun is not _UNKNOWN:
            self._begun[future] = begun
        return future

    def cut_off(self, handle: Any) -> OperationCutOff | None:
        """What to tell of what was under way when an earlier cell failed: gloo tells of a connection only."""
        begun = self._earlier.get(handle)
        if begun is None or begun.what is None:
            return None
        return OperationCutOff(
            f"this {begun.what.name} was cut off when a cell failed before it had ended. Begin it again"
        )

    def difference(self, begun: Begun) -> CollectiveMismatch | None:
        """What there is to tell of what has ended, if not all its ranks meant the same."""
        if begun.must is None or self.ledger is None:
            return None
        noted = self.ledger.read(begun.ranks, begun.key)
        is_same = all(entry.must == begun.must for entry in noted.values())
        return None if is_same else CollectiveMismatch(tell_difference(noted))

    def compare(self, *begun: Begun) -> None:
        """Raise the first that `difference` has to tell of what has ended.

        Raises:
            CollectiveMismatch: not all its ranks meant the same.
        """
        for one in begun:
            difference = self.difference(one)
            if difference is not None:
                raise difference from None


def _handles(result: Any) -> list[Any]:
    if result is None:
        return []
    if isinstance(result, dist.Work):
        return [result]
    with unseen():
        return [tensor.untyped_storage() for tensor in tensors_in(result)]
