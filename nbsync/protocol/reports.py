"""What a worker tells of itself while it works: its progress, its barriers, its memory, where it is."""

from __future__ import annotations

from dataclasses import dataclass

# Words of `Where.waiting_in`.
STORE_WAITS = ("get", "multi_get", "wait", "queue_pop")  # the methods of a store that wait for somebody to set a key
STORE_START = "TCPStore"  # whose constructor waits for its server, or for its clients
ASYNCHRONOUS = "an asynchronous operation"  # that a rank waits for, and of which no more is known


@dataclass(frozen=True)
class Memory:
    """What a process holds, in bytes. `allocated` and `reserved`: of its GPU, 0 while it uses none."""

    resident: int
    allocated: int = 0
    reserved: int = 0


@dataclass(frozen=True)
class BarrierEvent:
    """A rank entered (`entered`) or left a named barrier, at `call_site`.

    Attributes:
        time: by the host's monotonic clock.
        passed: it left because everyone had come, not because of an error.
    """

    name: str
    call_site: str
    entered: bool
    time: float
    passed: bool = False


@dataclass(frozen=True)
class Bar:
    """A progress bar (tqdm) of a rank, as it was at `time` by the host's monotonic clock.

    Attributes:
        number: which of its process's bars it is, in the order in which they were made.
        n, total: steps done, and steps in all, or None where that is not known.
        elapsed: seconds it has run.
        rate: steps a second, smoothed; None before the first.
        unit, unit_scale, unit_divisor: how tqdm writes the numbers.
        closed: it has ended.
        text: for a bar that is only a line of text, that line.
    """

    number: int
    name: str
    n: float
    total: float | None
    elapsed: float
    rate: float | None
    time: float
    unit: str = "it"
    unit_scale: bool = False
    unit_divisor: float = 1000
    postfix: str = ""
    closed: bool = False
    text: str | None = None


@dataclass(frozen=True)
class Progress:
    """What has changed on a rank since it told last.

    Attributes:
        bars: those that are new or have moved.
        gone: the numbers of those that are not to be shown any more.
        count: how many bars there are, also those that were left out because nobody could look at so many.
        barriers: the barriers that it entered and left, in order.
    """

    bars: tuple[Bar, ...] = ()
    gone: tuple[int, ...] = ()
    count: int = 0
    barriers: tuple[BarrierEvent, ...] = ()


@dataclass(frozen=True)
class Where:
    """Where the main thread is: the answer to Peek.

    Attributes:
        run: what it works on; None when it is idle.
        line: the user's line.
        waiting_in: the torch.distributed operation it is in, or None.
        number: which collective of its group that is, where it is known.
        group: the global ranks that take part in it, where they are known.
        group_name: which process group of theirs it is.
        peer: the rank that it sends to or receives from, where that is known.
        cpu: seconds of processor time the process has used: hardly any between two looks means that it waits.
        queued: seconds for which its threads have waited for a processor: where there is none, it uses none.
        is_queued: one of them has a processor or waits for one now.
        is_alone: no other thread runs the user's code, and could do what somebody waits for.
        memory: what the process holds; None where that cannot be told.
        stack: the whole Python stack as text, innermost last.
        must: what the collective has to be on all ranks, where it is known.
        is_ddp: it waits, as DDP does, for what was begun in a backward pass.
        names: those that were asked for.
    """

    ticket: int
    run: int | None
    line: str
    waiting_in: str | None
    number: int | None = None
    group: tuple[int, ...] = ()
    peer: int | None = None
    cpu: float = 0.0
    queued: float = 0.0
    is_queued: bool = False
    is_alone: bool = True
    memory: Memory | None = None
    stack: tuple[str, ...] = ()
    must: str | None = None
    group_name: str = ""
    is_ddp: bool = False
    names: tuple[str, ...] = ()
