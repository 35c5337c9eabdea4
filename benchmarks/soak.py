"""`make soak`: random faults into a training session in a real kernel, which must never be lost.

A seeded Poisson sequence, one fault every 5 s on average. Between faults a small model trains; after each the next
collective must work, and the parameters must be equal on all ranks. `--error-cycles N` measures instead what N failed
cells leave behind. The exit status is 1 when something was lost.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from faults import FaultKernel
from kernels import CellFailed

from nbsync.testing.inject import Planned, Schedule

_MEGABYTE = 1 << 20
STEPS = 100  # of a training cell: about as long as the cells of a notebook take
_SHOW_EVERY = 30.0  # seconds
_LATER = 1.2  # seconds until another interrupt counts as one
_START = 0.4  # seconds until a cell is surely where it waits

_BUILD = """%%distributed
import time
from torch.nn.parallel import DistributedDataParallel as DDP
def build():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    model = DDP(net)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)
def train(steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 32)).square().mean().backward()
        optimizer.step()
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    seen = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(seen, mine)
    assert all(torch.equal(mine, other) for other in seen), "the parameters differ"
model, optimizer = build()
train(2)
kept = rank
"""
_TRAIN = "%%distributed\ntrain({steps})\nassert kept == rank"
_REDUCE = "%%distributed\nt = torch.ones(1)\ndist.all_reduce(t)\nassert t.item() == world_size"
_CYCLE = "%%distributed\nif rank == {hit}: raise ValueError('cycle')\ndist.barrier()"
_FORGET = "get_ipython().history_manager.outputs.clear()"
_PIDS = "import nbsync\nprint(*[state.pid for state in nbsync.session().status().ranks])"


@dataclass(frozen=True)
class Usage:
    """What one process has: resident bytes, descriptors, threads."""

    resident: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """As /proc tells it."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        counts = (len(os.listdir(f"/proc/{pid}/{name}")) for name in ("fd", "task"))
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), *counts)

    def __str__(self) -> str:
        return f"{self.resident / _MEGABYTE:.0f} MB, {self.descriptors} fds, {self.threads} threads"


class Soak:
    """A kernel with a training session."""

    def __init__(self, kernel: FaultKernel, size: int) -> None:
        self._kernel, self._size = kernel, size
        self.seen: Counter[str] = Counter()
        kernel.run(f"%nbsync start -n {size}")
        kernel.run(_BUILD)
        kernel.run("print('x' * 2_000_000)")  # pyzmq starts a thread for the first large message

    def suffer(self, planned: Planned) -> None:
        """One fault, and what a user would do after it.

        Raises:
            CellFailed: the cell did not end, or the next collective did not work.
        """
        fault, cell = planned.fault, f"%%distributed\n{planned.fault.cell(planned.hit)}"
        self.seen[fault.name] += 1
        if fault.interrupts:
            self._kernel.run_interrupted(cell, [_START, *[_LATER] * (fault.interrupts - 1)])
        else:
            self._kernel.run(cell, expected="error")
        if fault.kills:
            self._kernel.run(f"%nbsync restart --ranks {planned.hit}")
        self._kernel.run(_REDUCE)
        if fault.kills:  # a fresh copy has no model: all begin anew
            self._kernel.run(_BUILD)
        self.train()

    def train(self) -> None:
        """A few steps; the parameters must be equal on all ranks afterwards."""
        self._kernel.run(_TRAIN.format(steps=STEPS))

    def cycle(self, number: int) -> None:
        """A cell that fails on one rank while the others wait, and one that works."""
        self._kernel.run(_CYCLE.format(hit=number % self._size), expected="error")
        self._kernel.run(_REDUCE)

    def forget(self) -> None:
        """Let IPython forget what the cells printed, which it keeps for good: it would be taken for growth."""
        self._kernel.run(_FORGET)

    def usage(self) -> list[Usage]:
        """Of the kernel and of each rank."""
        time.sleep(_START)  # the store's side of a connection ends a moment after the rank's
        return [Usage.of(pid) for pid in (self._kernel.pid, *self.pids())]

    def pids(self) -> list[int]:
        """The ranks' processes."""
        return [int(pid) for pid in self._kernel.run(_PIDS).stdout.split()]


def soak(options: argparse.Namespace) -> bool:
    """Inject faults until the time is up; returns whether all was well."""
    with FaultKernel("import torch", "%load_ext nbsync") as kernel:
        session = Soak(kernel, options.ranks)
        begin, shown, count = time.monotonic(), 0.0, 0
        print(f"seed {options.seed}, {options.ranks} ranks, {options.minutes:g} minutes, a fault every 5 s")
        print(f"{0:>6} s  kernel {Usage.of(kernel.pid)}", flush=True)
        first = Usage.of(kernel.pid)
        for planned in Schedule(options.seed, rate=0.2, size=options.ranks):
            if planned.at > 60 * options.minutes:
                break
            while time.monotonic() - begin < planned.at:
                session.train()
            try:
                session.suffer(planned)
            except CellFailed as error:
                print(f"LOST at {time.monotonic() - begin:.0f} s by {planned}:\n{error}")
                return False
            count += 1
            if (now := time.monotonic() - begin) - shown >= _SHOW_EVERY:
                shown = now
                session.forget()
                print(f"{now:>6.0f} s  kernel {Usage.of(kernel.pid)}; {count} faults", flush=True)
        session.train()
        session.forget()
        last = Usage.of(kernel.pid)
        print(f"{count} faults: {', '.join(f'{name} {n}' for name, n in sorted(session.seen.items()))}")
        print(f"kernel at the start: {first}\nkernel at the end:   {last}")
        return True


def error_cycles(options: argparse.Namespace) -> bool:
    """What many failed cells leave in the kernel and the ranks; returns whether it is within the targets."""
    with FaultKernel("import torch", "%load_ext nbsync") as kernel:
        session = Soak(kernel, options.ranks)
        for number in range(5):  # not counted: what the first failures set up
            session.cycle(number)
        before = session.usage()
        for number in range(options.error_cycles):
            session.cycle(number)
        after = session.usage()
    good = True
    for name, old, new in zip(["kernel", *[f"rank {r}" for r in range(options.ranks)]], before, after, strict=True):
        grown = (new.resident - old.resident) / _MEGABYTE
        descriptors, threads = new.descriptors - old.descriptors, new.threads - old.threads
        met = grown < 20 and not descriptors and not threads
        good = good and met
        print(f"{name}: {grown:+.1f} MB, {descriptors:+d} fds, {threads:+d} threads {'' if met else 'MISSED'}")
    return good


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description="Random faults into a training session.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long; default: 10")
    parser.add_argument("--seed", type=int, default=0, help="of the sequence of faults")
    parser.add_argument("--ranks", type=int, default=2, help="world size; default: 2")
    parser.add_argument("--error-cycles", type=int, default=0, metavar="N", help="measure what N failed cells leave")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder  # of the kernel, for a look at what it leaves
        good = error_cycles(options) if options.error_cycles else soak(options)
        left = [name for name in os.listdir(folder) if "nbsync" in name]
    if left:
        print(f"left in the temporary folder: {left}")
    return 0 if good and not left else 1


if __name__ == "__main__":
    sys.exit(main())
