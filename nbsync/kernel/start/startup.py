"""The first moments of workers: they come alive, then they join their world; or it is told which of them did not."""

from __future__ import annotations

import os
import queue
import time
from itertools import groupby
from pathlib import Path

from nbsync.errors import Interrupted, StartError
from nbsync.kernel.dispatch import Dispatch
from nbsync.kernel.hub import Exited
from nbsync.kernel.run import Run
from nbsync.kernel.supervision.verdict import describe_exit
from nbsync.protocol.messages import Alive, Arriving, Ready
from nbsync.protocol.words import describe_ranks, ranks_do, without_colours

START_LIMIT = 60.0  # seconds until every rank must have come up
LIMIT_PER_RANK = 3.0  # seconds more for each interpreter that loads torch, should there be one processor
ALIVE_LIMIT = 3.0  # seconds after which a forked rank that does nothing is taken for hung
ALIVE_PER_RANK = 0.1  # seconds more for each
STILL = 1.5  # seconds without any processor time, all threads asleep
STARVED = 1.0  # seconds between two looks: then the machine is too busy for a judgement
GATHER = 0.3  # seconds in which others that fail too are waited for, to name them all


class NotAlive(StartError):
    """A forked worker hung or crashed before it could do anything: started in another way it may live."""


class Startup:
    """Waits for the workers of one start.

    Args:
        start: the run that their messages go to.
        method: how they were started.
    """

    def __init__(self, start: Run, traffic: Dispatch, method: str) -> None:
        self._start, self._traffic, self._method = start, traffic, method
        self._alive: set[int] = set()
        self._up: set[int] = set()
        self._problems: dict[int, str] = {}
        self._steps: dict[int, str] = {}  # what each said last that it does
        self._crashed = False
        self._said: list[bytes] = []
        self._still: dict[int, tuple[str, float]] = {}  # what the processor time was, and since when
        self._looked = 0.0
        fresh = LIMIT_PER_RANK * len(start.ranks) if method == "spawn" else 0.0
        self._patience = ALIVE_LIMIT + ALIVE_PER_RANK * len(start.ranks)
        self._began, self._limit = time.monotonic(), START_LIMIT + fresh

    def wait_until_alive(self) -> None:
        """Return when every worker runs, with all its threads; they may not have joined their world yet.

        Raises:
            NotAlive: a forked one hung or crashed.
            StartError: others did.
            Interrupted: the user gave it up.
        """
        while missing := set(self._start.ranks) - self._alive:
            self._step(missing)
            if self._problems:
                self._fail(NotAlive if self._method == "fork" and self._crashed else StartError)
            if self._method == "fork" and time.monotonic() > self._began + self._patience:
                self._look_for_hung(missing)

    def wait_until_up(self) -> None:
        """Return when every worker takes requests.

        Raises:
            StartError: some do not.
            Interrupted: the user gave it up.
        """
        while missing := set(self._start.ranks) - self._up:
            self._step(missing)
            if self._problems:
                self._fail(StartError)

    def _step(self, missing: set[int], limit: float = 0.2) -> bool:
        """Take one message; False when none came for a while, which is an error at the limit if ranks are missing."""
        try:
            rank, kind, what = self._start.inbox.get(timeout=limit)
        except queue.Empty:
            if missing and time.monotonic() > self._began + self._limit:
                late, doing = describe_ranks(sorted(missing)), "; ".join(self._doing(missing))
                raise StartError(f"{late} did not come up in {self._limit:.0f} s: {doing}{self._quoted()}") from None
            return False
        except KeyboardInterrupt:
            raise Interrupted([f"while {doing}" for doing in self._doing(missing)]) from None
        match what:
            case Arriving(step):
                self._steps[rank] = step
            case Alive():
                self._alive.add(rank)
            case Ready(_, None):
                self._up.add(rank)
                self._traffic.up(rank, self._start)
            case Ready(_, failure) if failure is not None:
                self._problems[rank] = "could not start:\n" + without_colours("\n".join(failure.traceback))
            case Exited(status=status):
                self._crashed |= os.WIFSIGNALED(status)
                is_arriving = rank in self._steps and rank not in self._alive
                when = f"while {self._steps[rank]}" if is_arriving else "during the start"
                self._problems[rank] = f"{describe_exit(status)} {when}"
            case bytes():
                self._said.append(what)
                self._traffic.keep((rank, kind, what))
        return True

    def _doing(self, ranks: set[int]) -> list[str]:
        """`rank 1 was rebuilding 'x'`, one line for those that did the same."""
        first = "loading torch" if self._method == "spawn" else "starting"
        steps = {rank: self._steps.get(rank, first) for rank in sorted(ranks)}
        steps.update((rank, "joining the others") for rank in ranks & self._alive)
        same = {step: [rank for rank in steps if steps[rank] == step] for step in steps.values()}
        return [ranks_do(of, f"was {step}") for step, of in same.items()]

    def _fail(self, kind: type[StartError]) -> None:
        """Tell of all ranks that have a problem, those with the same one together."""
        while set(self._start.ranks) - self._problems.keys() and self._step(set(), GATHER):
            pass
        order = sorted(self._problems, key=lambda rank: (self._problems[rank], rank))
        told = [
            ranks_do(list(ranks), problem) for problem, ranks in groupby(order, key=lambda rank: self._problems[rank])
        ]
        raise kind("\n".join(told) + self._quoted())

    def _look_for_hung(self, missing: set[int]) -> None:
        before, self._looked = self._looked, time.monotonic()
        now = self._looked
        if now - before > STARVED:
            self._still.clear()
        for rank in missing:
            pid = self._traffic.pid(rank)
            pulse = _pulse(pid) if pid is not None else ""
            if rank not in self._still or self._still[rank][0] != pulse:
                self._still[rank] = (pulse, now)
        hung = [
            rank
            for rank in sorted(missing)
            if self._still[rank][0].startswith("asleep") and now - self._still[rank][1] > STILL
        ]
        if hung:
            raise NotAlive(
                f"{describe_ranks(hung)} hung right after the fork: something in this notebook does not survive it. "
                f"start_method='forkserver' starts workers without it{self._quoted()}"
            )

    def _quoted(self) -> str:
        """The end of what workers wrote before they failed to start."""
        text = b"".join(self._said).decode(errors="replace").strip()
        return f". It said:\n{text[-2000:]}" if text else ""


def _pulse(pid: int) -> str:
    """Whether all threads of the process are asleep, and the processor time that they have used."""
    try:
        tasks = [task / "stat" for task in Path(f"/proc/{pid}/task").iterdir()]
        stats = [task.read_text("utf-8", "replace").rpartition(")")[2].split() for task in tasks]
    except OSError:  # it has ended, which is told by itself, or a thread has
        return ""
    asleep = all(fields[0] == "S" for fields in stats)
    used = sum(int(fields[11]) + int(fields[12]) for fields in stats)
    return f"{'asleep' if asleep else 'awake'} {used}"
