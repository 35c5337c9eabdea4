"""Rows 44 to 47: who else on this machine may speak to us, and what they hear."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from worlds import GUARD, Ranks

from notebooks import family, listeners, listening

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


@pytest.mark.xfail(strict=True, reason="row 46: the keys in the store have no random prefix")
def test_row_46_store_has_a_prefix_that_nobody_guesses(pair: Ranks) -> None:
    """The keys in the store have other names in every session."""
    keys = "dist.distributed_c10d._get_default_store()._underlying_non_prefix_store.list_keys()"
    before = pair.notebook.run(f"%%on_rank 0\nset({keys})").ok().texts
    pair.notebook.run("%nbsync restart", GUARD).ok()
    after = pair.notebook.run(f"%%on_rank 0\nset({keys})").ok().texts
    names = [set(re.findall(r"'([^']+)'", texts[0])) for texts in (before, after)]
    assert all(names), names
    assert not names[0] & names[1]


def test_row_47_all_listeners_are_on_loopback(pair: Ranks) -> None:
    """Every port of the kernel and the ranks is on a loopback address, also after the process group was healed."""
    assert {address for address, _ in _ours(pair).values()} <= set(_LOOPBACK)
    pair.fail("if rank == 1:\n    inject.raise_error('row 47')\ndist.barrier()", "ValueError")
    pair.run("group = dist.new_group([0, 1]); dist.barrier(group=group)").ok()
    assert {address for address, _ in _ours(pair).values()} <= set(_LOOPBACK)
