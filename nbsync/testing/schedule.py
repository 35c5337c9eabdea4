"""A seeded sequence of faults, for a soak."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A kind of fault for a soak.

    Attributes:
        row: its row in the fault matrix.
        statement: what the rank that is hit runs, while the others wait for it in a barrier; `hit` is its number.
        on_all: the statement runs on all ranks, and no barrier follows.
        interrupts: how many interrupts it takes to end the cell, a second or more apart.
        kills: the rank that is hit loses its state.
    """

    name: str
    row: int
    statement: str
    on_all: bool = False
    interrupts: int = 0
    kills: bool = False

    def cell(self, hit: int) -> str:
        """The code of a cell that every rank runs."""
        head = f"from nbsync.testing import inject\nhit = {hit}\n"
        return head + (self.statement if self.on_all else f"if rank == hit:\n    {self.statement}\ndist.barrier()")


FAULTS = (
    Fault("raise", 2, "inject.raise_error()"),
    Fault("same error everywhere", 3, "inject.raise_error()", on_all=True),
    Fault("sys.exit", 4, "inject.sys_exit()"),
    Fault("os._exit", 4, "inject.exit_process()", kills=True),
    Fault("segfault", 5, "inject.segfault()", kills=True),
    Fault("SIGKILL", 6, "inject.kill()", kills=True),
    Fault("SIGKILL in a large message", 6, "inject.die_in_a_message(hit)", on_all=True, kills=True),
    Fault("abort", 7, "inject.abort('injected assertion')", kills=True),
    Fault("out of memory", 8, "inject.torch_out_of_memory()"),
    Fault("shapes", 10, "inject.mismatched_shapes(hit)", on_all=True),
    Fault("reductions", 10, "inject.mismatched_reductions(hit)", on_all=True),
    Fault("operations", 10, "inject.mismatched_operations(hit)", on_all=True),
    Fault("missed collective", 11, "inject.miss_collective(hit)", on_all=True),
    Fault("loop", 13, "inject.loop_forever()", interrupts=1),
    Fault("recv", 15, "inject.deadlock_in_recv()", on_all=True),
    Fault("sleep", 16, "inject.sleep_forever()", interrupts=1),
    Fault("read", 18, "inject.read_forever()", interrupts=1),
    Fault("data loader", 19, "inject.load_data_forever()", interrupts=1),
    Fault("swallowed interrupt", 23, "inject.swallow_interrupts(times=1)", interrupts=2),
    Fault("flood", 33, "inject.flood_stdout(2); inject.raise_error()"),
)


@dataclass(frozen=True)
class Planned:
    """A fault that is due `at` seconds after the start, on rank `hit`."""

    at: float
    hit: int
    fault: Fault


class Schedule:
    """A Poisson sequence of faults: the same seed gives the same one.

    Args:
        rate: faults per second, on average.
        size: the number of ranks.
        faults: what to choose from.
    """

    def __init__(self, seed: int, rate: float, size: int = 2, faults: Sequence[Fault] = FAULTS) -> None:
        if not rate > 0:
            raise ValueError(f"rate must be positive, got {rate!r}")
        self.seed, self.rate, self.size, self.faults = seed, rate, size, tuple(faults)

    def __iter__(self) -> Iterator[Planned]:
        """The faults in the order of their times, without end."""
        draw = random.Random(self.seed)
        at = 0.0
        while True:
            at += draw.expovariate(self.rate)
            yield Planned(at, draw.randrange(self.size), draw.choice(self.faults))
