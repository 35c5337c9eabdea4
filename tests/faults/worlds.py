"""`Ranks`: ranks of a real kernel that are to be hit by faults, and what the kernel holds before and after."""

from __future__ import annotations

import random
import re
import secrets
import time
from collections.abc import Callable, Sequence

from holdings import Holdings, assert_no_more

from nbsync.testing.inject import Planned
from notebooks import CellError, Notebook, Outcome

GUARD = 60.0  # seconds: only to tell a hang from a slow machine; a first model imports for seconds, on each rank
LATER = 1.2  # seconds until another interrupt is meant as one: a second press in one moment is not
SETTLED = 0.3  # seconds in which a rank that printed something gets to its next line
#: A cell that makes a DDP model.
MODEL = "from torch.nn.parallel import DistributedDataParallel as DDP\nmodel = DDP(torch.nn.Linear(4, 4))"


class Ranks:
    """A session of `size` ranks, each with a sentinel in its namespace."""

    def __init__(self, notebook: Notebook, size: int) -> None:
        self.notebook, self.size = notebook, size
        self.everyone = tuple(range(size))
        self._token = ""

    # ---- cells ----

    def run(self, code: str, timeout: float = GUARD) -> Outcome:
        """Run a cell on all ranks."""
        return self.notebook.run(f"%%distributed\n{code}", timeout)

    def fail(self, code: str, ename: str = "", timeout: float = GUARD) -> CellError:
        """Run a cell on all ranks; its error, which there must be."""
        return self.run(code, timeout).failed(ename)

    def begin(self, code: str) -> None:
        """Begin a cell on all ranks, and return soon after all of them came to its first line."""
        self.notebook.start(f"%%distributed\nprint('begun', rank)\n{code}")
        self.wait_for_all("begun")
        time.sleep(SETTLED)

    def wait_for_all(self, word: str) -> None:
        """Return when each rank has printed this word and its number."""
        for rank in self.everyone:
            self.notebook.wait_for_output(f"{word} {rank}", GUARD)

    def interrupted(self, code: str, timeout: float = GUARD) -> Outcome:
        """Run a cell on all ranks, and interrupt it when they are in it."""
        self.begin(code)
        asked = time.monotonic()
        self.notebook.interrupt()
        outcome = self.notebook.wait(timeout)
        outcome.seconds = time.monotonic() - asked
        return outcome

    def interrupt_anywhere(self, code: str, check: str) -> None:
        """Interrupt a cell that goes on for ever, at random moments; `check` must be true on all ranks after each."""
        moments = random.Random(16)
        for _ in range(4):
            self.begin(code)
            time.sleep(moments.random() / 20)
            self.notebook.interrupt()
            self.notebook.wait(GUARD).failed("KeyboardInterrupt")
            assert self.run(check).ok().texts == [f"[0-{self.size - 1}] True"]

    # ---- state ----

    def pids(self) -> list[int]:
        """The processes of the ranks, in order."""
        shown = self.notebook.run("import nbsync; [state.pid for state in nbsync.session().status().ranks]").ok()
        return [int(pid) for pid in re.findall(r"\d+", shown.texts[0])]

    def mark(self, ranks: Sequence[int] | None = None) -> None:
        """Put a sentinel into the namespace of each rank."""
        self._token = self._token or secrets.token_hex(4)
        spec = ",".join(map(str, self.everyone if ranks is None else ranks))
        self.notebook.run(f"%%on_rank {spec}\nsentinel = f'{self._token}-{{rank}}'").ok()

    def assert_kept(self, ranks: Sequence[int] | None = None) -> None:
        """These ranks still have their sentinel."""
        ranks = self.everyone if ranks is None else ranks
        shown = self.notebook.run(f"%%on_rank {','.join(map(str, ranks))}\nsentinel", GUARD).ok().texts
        assert shown == [f"[{rank}] '{self._token}-{rank}'" for rank in ranks]

    def assert_next(self) -> None:
        """The next cell with a collective works, with no action of the user."""
        outcome = self.run("t = torch.tensor(rank + 1); dist.all_reduce(t); t.item()")
        assert outcome.ok().texts == [f"[0-{self.size - 1}] {self.size * (self.size + 1) // 2}"]

    def assert_whole(self) -> None:
        """The next collective works, and no rank lost its namespace."""
        self.assert_next()
        self.assert_kept()

    def bring_back(self, *lost: int) -> None:
        """The others kept their state; a restart of the lost ranks makes the world whole without touching it."""
        kept = [rank for rank in self.everyone if rank not in lost]
        self.assert_kept(kept)
        self.notebook.run(f"%nbsync restart --ranks {','.join(map(str, lost))}", GUARD).ok()
        self.assert_next()
        self.assert_kept(kept)


class Worlds:
    """Gives worlds of one kernel, one at a time."""

    def __init__(self, get: Callable[[], Notebook]) -> None:
        self._get = get
        self._current: tuple[Notebook, Ranks] | None = None
        self.given: Ranks | None = None
        self.before: Holdings | None = None

    def __call__(self, size: int) -> Ranks:
        """A world of `size` ranks that answer."""
        notebook = self._get()
        if self._current is None or self._current[0] is not notebook or self._current[1].size != size:
            notebook.run(f"%nbsync stop\n%nbsync start -n {size}", GUARD).ok()
            self._current = notebook, Ranks(notebook, size)
            notebook.run("print('x' * 2_000_000)").ok()  # pyzmq starts a thread for the first large message
            notebook.run("%%distributed\nimport ctypes, os, signal, sys, time\nfrom nbsync.testing import inject").ok()
        ranks = self._current[1]
        if ranks.run("t = torch.ones(1); dist.all_reduce(t); inject; t.item()").texts != [f"[0-{size - 1}] {size}.0"]:
            self._current = None  # a failed test left it so
            return self(size)
        ranks.mark()
        self.given, self.before = ranks, Holdings.of(notebook.pid)
        return ranks

    def assert_clean(self) -> None:
        """The kernel holds nothing that it did not hold before."""
        if self.given is None or self.before is None or not self.given.notebook.is_alive:
            return
        assert_no_more(self.given.notebook.pid, self.before)


def suffer(ranks: Ranks, planned: Planned) -> None:
    """Hit a rank with a fault, help the cell to its end, and see that the next collective works."""
    fault, notebook = planned.fault, ranks.notebook
    cell = fault.cell(planned.hit)
    if fault.interrupts:
        ranks.begin(cell)
        notebook.interrupt()
        for _ in range(fault.interrupts - 1):
            time.sleep(LATER)
            notebook.interrupt()
        notebook.wait(GUARD).failed("KeyboardInterrupt")
    else:
        ranks.fail(cell)
    if fault.kills:
        ranks.bring_back(planned.hit)
        ranks.mark()
    ranks.assert_whole()
