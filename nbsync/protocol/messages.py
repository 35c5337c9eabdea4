"""The messages between the kernel and a worker: frozen dataclasses of plain data.

A message never holds a user's object: those travel as `Payload` (see serial.py) and are only unpacked by the
thread that asked for them, so that an object that fails, hangs or crashes in unpickling cannot hurt the hub.

Every request to a worker's main thread carries a `run` number and is answered by exactly one `Done` with it.
"""

from __future__ import annotations

import mmap
import pickle
from dataclasses import dataclass, field, replace
from typing import Any

from nbsync.protocol.reports import Memory


@dataclass(frozen=True)
class Payload:
    """A pickled user object: the pickle itself and the large buffers that travel beside it, all of them uncopied."""

    pickled: bytes | memoryview
    buffers: tuple[pickle.PickleBuffer | bytearray | mmap.mmap, ...] = ()

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return sum(memoryview(part).nbytes for part in (self.pickled, *self.buffers))

    def __reduce__(self) -> tuple[type[Payload], tuple[object, ...]]:
        return Payload, (pickle.PickleBuffer(self.pickled), self.buffers)


# ---- kernel -> worker: requests to the main thread ----


@dataclass(frozen=True)
class Request:
    run: int


@dataclass(frozen=True)
class Work(Request):
    """Run the user's code. With `show_bars` its progress bars are told to the kernel, not written as text."""

    show_bars: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class RunCell(Work):
    code: str
    execution_count: int


@dataclass(frozen=True)
class Source:
    """A cell's code, for the tracebacks of functions that were defined in it.

    Attributes:
        name: the file name that their code objects have; number: the N of `In [N]`, if it has one.
    """

    name: str
    number: int | None
    text: str


@dataclass(frozen=True)
class RunCall(Work):
    """Call a function: the one inherited by the fork when `call` is None."""

    call: Payload | None = None
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Push(Request):
    values: Payload
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Pull(Request):
    names: tuple[str, ...]


@dataclass(frozen=True)
class Heal(Request):
    """Give every process group of this worker a fresh backend. `life` numbers the groups' new life."""

    life: int


# ---- kernel -> worker: orders to the helper thread, not answered ----


@dataclass(frozen=True)
class Interrupt:
    """Raise KeyboardInterrupt in the main thread if it still works on `run`, also out of a collective."""

    run: int


@dataclass(frozen=True)
class Release:
    """Break the collective that the main thread is blocked in, if it still works on `run`; `dead` ended, if one did."""

    run: int
    dead: int | None = None


@dataclass(frozen=True)
class Peek:
    """Ask the helper thread where the main thread is; answered by `Where`.

    Attributes:
        names_of: also for the names of this, if it is not None.
    """

    ticket: int
    with_stack: bool = False
    names_of: str | None = None


@dataclass(frozen=True)
class Shown:
    """So many more of what the rank has displayed or cleared were shown, or never will be: as many others may come."""

    count: int


@dataclass(frozen=True)
class Begin:
    """All workers are forked: join. Until then none may make a thread of the kernel hold a lock at a fork."""


@dataclass(frozen=True)
class Stop:
    """End the process, once the main thread is idle."""


# ---- worker -> kernel ----


@dataclass(frozen=True)
class Arriving:
    """A process that is no copy of the notebook becomes like it; `step` is what it does now: "rebuilding 'x'"."""

    step: str


@dataclass(frozen=True)
class Alive:
    """The worker runs, and has computed with several threads: what did not survive the fork would have shown."""


@dataclass(frozen=True)
class Ready:
    """The worker is up. `failure` says why it is not usable, if so."""

    rank: int
    failure: Failure | None = None


@dataclass(frozen=True)
class Display:
    fence: int
    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str | None = None
    update: bool = False


@dataclass(frozen=True)
class ClearOutput:
    fence: int
    wait: bool


@dataclass(frozen=True)
class Failure:
    """An exception on a rank, in plain data.

    Attributes:
        module, type_name, message: of the exception.
        traceback: rendered by IPython, with the cell's source lines.
        time: when it was caught, by the host's monotonic clock, comparable between processes.
        where: the last line of the user's code, what it did with a value, or both: "Cell In[3], line 7, while it ...".
        waiting_in: the torch.distributed operation it came out of, or None.
        is_consequence: it only says that a peer failed or that the rank was released.
        came_of_peer: it was raised while such an error was handled, by code that catches it and says more.
        interrupted: it is the answer to an interrupt.
        exception: the exception itself, when it can be pickled and is not large.
        memory_limit: how many bytes the rank may have; None unless it ran out of memory.
    """

    module: str
    type_name: str
    message: str
    traceback: tuple[str, ...] = ()
    time: float = 0.0
    where: str = ""
    waiting_in: str | None = None
    is_consequence: bool = False
    came_of_peer: bool = False
    interrupted: bool = False
    exception: Payload | None = None
    memory_limit: int | None = None

    @property
    def place(self) -> str:
        """`at Cell In[3], line 7`, `while it pickled x, of type Net`, or ""."""
        return f"at {self.where}" if self.where and not self.where.startswith("while ") else self.where

    @property
    def in_one_line(self) -> str:
        """`ValueError: boom`; what is cut off of a longer message shows as dots."""
        first, more, _ = self.message.strip().partition("\n")
        text = f"{first.rstrip().removesuffix(':')}..." if more else first
        return f"{self.type_name}: {text}" if text else self.type_name


@dataclass(frozen=True)
class Raised:
    """An exception ended the user's code on this rank; its description follows in `Done`."""

    run: int


@dataclass(frozen=True)
class Done:
    """The answer to a request.

    Attributes:
        result: the last expression of a cell as a mime bundle, with its metadata.
        value: what a call returned or a pull fetched.
        group_broken: this rank's process group needs healing before its next collective.
        memory: what the rank holds at the end, a failed cell's frames included.
        caught_interrupt: the code got a KeyboardInterrupt, and ended well all the same.
        has_compiler: the rank has loaded torch's compiler.
    """

    run: int
    fence: int
    failure: Failure | None = None
    result: tuple[dict[str, Any], dict[str, Any]] | None = None
    value: Payload | None = None
    group_broken: bool = False
    sequence: tuple[tuple[str, int], ...] = ()
    memory: Memory | None = None
    caught_interrupt: bool = False
    has_compiler: bool = False

    def without_objects(self) -> Done:
        """The same without what it holds of the user's."""
        failure = None if self.failure is None else replace(self.failure, exception=None)
        return replace(self, value=None, failure=failure)
