"""What the live view costs: the ranks' loops and barriers, the kernel's processor, and the messages to the page.

The ranks of the last two are simulated (`nbsync.testing.crowd`), each with two bars; what they send is received and
reduced as the kernel does, from the bytes of its channel to the HTML.
"""

from __future__ import annotations

import json
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from kernels import Kernel
from report import Check, Row, at_most_times

from nbsync.kernel.output.sink import Controls
from nbsync.kernel.state import Snapshot, WorldState
from nbsync.kernel.view.live import LiveView
from nbsync.notebook.view.cell import CellView
from nbsync.protocol.channel import Channel
from nbsync.testing.crowd import Crowd

STEPS = 10_000_000
BARRIERS = 400
CROWDS = (2, 16, 512)
SHARE = 0.1  # of a processor, for the view
TICK = 50_000  # bytes at most
SECONDS = 12.0  # of simulated time

_LOOP = f"""
import time
from tqdm import tqdm
def loop(**options):
    begin = time.perf_counter()
    for _ in tqdm(range({STEPS}), **options):
        pass
    return time.perf_counter() - begin
"""
_BARRIERS = f"""
import json, time
def barriers():
    found = {{"dist.barrier": [], "wait_for_everyone": []}}
    for turn in range({BARRIERS} // 20):
        for name, wait in (("dist.barrier", dist.barrier), ("wait_for_everyone", world.wait_for_everyone)):
            for _ in range(20):
                begin = time.perf_counter()
                wait()
                found[name].append(time.perf_counter() - begin)
    return found
"""


def loops(repeats: int) -> Row:
    """A loop that does nothing but move its bar."""
    series: dict[str, list[float]] = {"tqdm in a rank": [], "plain tqdm to a file": []}
    with _kernel() as kernel, tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "seconds")
        kernel.run(_LOOP)
        kernel.run(f"%%on_rank 0\n{_LOOP}")
        for _ in range(min(repeats, 5)):
            kernel.run(f"%%on_rank 0\nopen({str(file)!r}, 'w').write(str(loop()))")
            series["tqdm in a rank"].append(float(file.read_text()))
            into = f"file=open({str(Path(folder, 'bar'))!r}, 'w')"
            kernel.run(f"open({str(file)!r}, 'w').write(str(loop({into})))")
            series["plain tqdm to a file"].append(float(file.read_text()))
    mine, plain = series.values()
    check = at_most_times("tqdm in a rank", mine, "plain tqdm", plain, limit=1.1, aim=1.0)
    return Row("view-loop", f"a tqdm loop of {STEPS:,} steps", series, [check])


def waits(repeats: int) -> Row:
    """A barrier that is shown, and torch's own, in turns of 20, back to back; the ranks compare both first."""
    series: dict[str, list[float]] = {"wait_for_everyone": [], "dist.barrier": []}
    with _kernel() as kernel, tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "seconds")
        kernel.run(f"%%distributed\n{_BARRIERS}")
        for _ in range(min(repeats, 5)):
            dump = f"if rank == 0: json.dump(found, open({str(file)!r}, 'w'))"
            kernel.run(f"%%distributed\nfound = barriers()\n{dump}")
            for name, samples in json.loads(file.read_text()).items():
                series[name] += samples
    mine, plain = series.values()
    check = at_most_times("wait_for_everyone", mine, "dist.barrier", plain, limit=1.3, aim=1.1)
    return Row("view-barrier", "2 ranks meet, back to back", series, [check])


def kernel_share(repeats: int) -> Row:
    """Seconds of processor time that the kernel takes for the view in each second of a run."""
    series, checks = {}, []
    for size in CROWDS:
        samples = [_Show(size, seed).run()[0] for seed in range(min(repeats, 5))]
        series[f"{size} ranks, a second"] = samples
        share = statistics.median(samples)
        text = f"{size} ranks: at most {SHARE:.0%} of a processor, is {share:.1%}"
        checks.append(Check(text, share <= SHARE))
    return Row("view-kernel", "the kernel's processor time for the view, simulated ranks", series, checks)


def tick_size(repeats: int) -> Row:
    """The largest message of the view."""
    checks = []
    for size in CROWDS:
        most = max(_Show(size, 0).run()[1])
        checks.append(Check(f"{size} ranks: at most {TICK:,} bytes a tick, is {most:,}", most <= TICK))
    return Row("view-bytes", "the size of a message of the view, simulated ranks", {}, checks)


class _Show:
    """A run of simulated ranks, shown in a cell. What a publisher is given goes nowhere but is measured."""

    def __init__(self, size: int, seed: int) -> None:
        self._crowd, self._state = Crowd(size, seed), WorldState("nccl")
        self._size, self._bytes = size, list[int]()
        self._controls = Controls(lambda: None, lambda: "")
        self._cell = CellView(self, self._controls)

    def run(self) -> tuple[float, list[int]]:
        """Processor seconds in a second, and the size of each message."""
        self._crowd.enter(self._state, 0.0)
        live = LiveView(self, self._look, self._controls, 0.0, clock=time.process_time)  # type: ignore[arg-type]
        ours, theirs = socket.socketpair()
        near, far = Channel(ours), Channel(theirs)
        spent = 0.0
        for tick in range(1, int(SECONDS * 10) + 1):
            for rank, message in self._crowd.messages(tick / 10):
                far.send(message)
                far.transmit()
                begin = time.process_time()
                for received in near.receive():
                    self._crowd.tell(self._state, rank, received, tick / 10)
                spent += time.process_time() - begin
            begin = time.process_time()
            live.tick(tick / 10)
            spent += time.process_time() - begin
        ours.close()
        theirs.close()
        return spent / SECONDS, self._bytes

    def publish(self, data: dict[str, Any], **more: Any) -> None:
        """As IPython's publisher: a message is JSON."""
        self._bytes.append(len(json.dumps(data, ensure_ascii=False).encode()))

    def view(self, snapshot: Snapshot, final: bool, controls: Controls) -> None:
        """As a sink."""
        self._cell.draw(snapshot, final)

    def _look(self, now: float) -> Snapshot:
        return self._state.snapshot(now, "Cell In[1]", range(self._size), 0.001)


def _kernel() -> Kernel:
    return Kernel("import torch, torch.distributed as dist", "%load_ext nbsync", "%nbsync start -n 2")


VIEW = {"view-loop": loops, "view-barrier": waits, "view-kernel": kernel_share, "view-bytes": tick_size}
