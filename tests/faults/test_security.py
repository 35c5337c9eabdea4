"""Rows 44 to 47: who else on this machine may speak to us, and what they hear."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from worlds import GUARD, Ranks

from notebooks import Notebook, family, listeners, listening

_LOOPBACK = ("0100007F", "00000000000000000000000001000000")


def _ours(ranks: Ranks) -> dict[str, tuple[str, int]]:
    """The listening sockets of the kernel and its ranks."""
    pids = [ranks.notebook.pid, *(process.pid for process in family(ranks.notebook.pid))]
    held = listeners(pids)
    return {inode: place for inode, place in listening().items() if inode in held}


@contextmanager
def _connected(ranks: Ranks, count: int) -> Iterator[list[socket.socket]]:
    """`count` connections to each port that the session opened."""
    with ExitStack() as stack:
        found = []
        for port in _ports_of_session(ranks):
            for _ in range(count):
                sock = stack.enter_context(socket.socket())
                sock.settimeout(5)
                sock.connect(("127.0.0.1", port))
                found.append(sock)
        yield found


def _ports_of_session(ranks: Ranks) -> list[int]:
    """The kernel's five ports speak Jupyter's protocol; the others are the store and gloo."""
    jupyter = json.loads((ranks.notebook.folder / "runtime" / "kernel.json").read_text())
    known = {value for name, value in jupyter.items() if name.endswith("_port")}
    return [port for _, port in _ours(ranks).values() if port not in known]


def test_row_44_garbage(pair: Ranks) -> None:
    """Random bytes to every port of the session do no harm."""
    with _connected(pair, 3) as sockets:
        for number, sock in enumerate(sockets):
            with suppress(OSError):
                sock.sendall(secrets.token_bytes(64) if number % 3 else b"GET / HTTP/1.1\r\n\r\n")
        pair.assert_whole()
    pair.assert_whole()
    error = pair.fail("if rank == 1:\n    inject.raise_error('row 44')\ndist.barrier()", "ValueError")
    assert error.evalue.splitlines()[0] == "rank 1: ValueError: row 44"
    pair.assert_whole()


def test_row_44_idle_connections(pair: Ranks) -> None:
    """Hundreds of connections that say nothing do no harm, also when the process group is healed."""
    with _connected(pair, 100):
        pair.assert_whole()
        pair.fail("if rank == 1:\n    inject.raise_error('row 44')\ndist.barrier()", "ValueError")
        pair.assert_whole()


def test_row_45_nothing_of_ours_is_readable(pair: Ranks) -> None:
    """What nbsync puts on disk is readable for this user only."""
    for folder, _, files in os.walk(pair.notebook.tmp):
        for name in files:
            path = os.path.join(folder, name)
            if "nbsync" in path:
                assert not stat.S_IMODE(os.stat(path).st_mode) & 0o077, path
    pair.assert_whole()


def test_row_46_store_has_a_prefix_that_nobody_guesses(pair: Ranks) -> None:
    """The keys in the store have other names in every session."""
    keys = "dist.distributed_c10d._get_default_store()._underlying_non_prefix_store.list_keys()"
    before = pair.notebook.run(f"%%on_rank 0\nset({keys})").ok().texts
    pair.notebook.run("%nbsync restart", GUARD).ok()
    after = pair.notebook.run(f"%%on_rank 0\nset({keys})").ok().texts
    names = [set(re.findall(r"'([^']+)'", texts[0])) for texts in (before, after)]
    assert all(names), names
    assert not names[0] & names[1]


_STRAY = """
import sys
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False)
print("connected", flush=True)
while True:
    for key in sys.argv[2:]:
        store.set(key, "written by a stray process")
"""


def test_row_46_stray_process_writes_the_keys_of_torch(pair: Ranks) -> None:
    """Another process of the user that writes every key it can know of, also of lives to come, disturbs nothing."""
    store = "dist.distributed_c10d._get_default_store()._underlying_non_prefix_store"
    pair.notebook.run("%nbsync restart", GUARD).ok()
    pair.mark()
    pair.run("from nbsync.testing import inject; world.wait_for_everyone()").ok()
    (shown,) = pair.notebook.run(f"%%on_rank 0\nsorted({store}.list_keys()), {store}.port").ok().texts
    known = {key[key.index("nbsync/") :] for key in re.findall(r"'([^']+)'", shown)}
    lives = (1, 2, 3)
    known |= {key.replace("life-0/0//", f"life-{life}/0/") for key in known for life in lives}
    known |= {f"nbsync/life-{life}/{name}/{rank}" for life in lives for name in ("groups", "models") for rank in (0, 1)}
    port = re.findall(r"\d+", shown)[-1]
    with _running([sys.executable, "-c", _STRAY, port, *known]) as stray:
        assert stray.stdout is not None
        stray.stdout.readline()
        for number in range(3):
            pair.fail(f"if rank == {number % 2}:\n    inject.raise_error('row 46')\ndist.barrier()", "ValueError")
            pair.run("world.wait_for_everyone(); group = dist.new_group([0, 1]); dist.barrier(group=group)").ok()
            pair.assert_whole()
        assert stray.poll() is None


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_row_46_group_made_by_user_code(notebook: Notebook) -> None:
    """A launched function that calls `dist.init_process_group()` meets the others under the prefix too."""
    cell = (
        "import torch.distributed as dist\nfrom nbsync import notebook_launcher\n"
        "def function():\n    dist.init_process_group()\n    dist.barrier()\n"
        "    return dist.distributed_c10d._get_default_store()._underlying_non_prefix_store.list_keys()\n"
        "keys = notebook_launcher(function, num_processes=2)\n"
        "len({key.split('/')[0] for rank in keys for key in rank}), len(keys[0][0].split('/')[0]) * 4"
    )
    assert notebook.run(cell, GUARD).ok().texts == ["(1, 128)"]


def test_row_47_all_listeners_are_on_loopback(pair: Ranks) -> None:
    """Every port of the kernel and the ranks is on a loopback address, also after the process group was healed."""
    assert {address for address, _ in _ours(pair).values()} <= set(_LOOPBACK)
    pair.fail("if rank == 1:\n    inject.raise_error('row 47')\ndist.barrier()", "ValueError")
    pair.run("group = dist.new_group([0, 1]); dist.barrier(group=group)").ok()
    assert {address for address, _ in _ours(pair).values()} <= set(_LOOPBACK)
