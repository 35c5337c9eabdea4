"""`run_ranks`: a function on several real processes that form a gloo world, as a launcher starts them."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import dill
import pytest
import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed import distributed_c10d as c10d

from nbsync.worker.control.world import World

_LIMIT = 30.0

Run = Callable[..., list[Any]]


class _Notes:
    """Marks that ranks leave for each other in the store: what happened first is known without sleeping."""

    def __init__(self, world: World) -> None:
        world.wait_for_everyone()
        self._store = c10d._get_default_store()

    def leave(self, name: str) -> None:
        self._store.set(name, "here")

    def await_all(self, *names: str) -> None:
        self._store.wait(list(names), timedelta(seconds=20))

    def has(self, name: str) -> Any:
        return self._store.check([name])


@pytest.fixture
def run_ranks() -> Iterator[Run]:
    """`run(function, size=2, *, local_size=None, environ=None)`: all ranks' values, or the first error."""
    yield _run
    assert multiprocessing.active_children() == [], "a rank outlived its test"


@pytest.fixture
def Notes() -> type[_Notes]:
    """The class: `Notes(world)` on every rank."""
    return _Notes


@pytest.fixture
def group_works() -> Callable[[World], bool]:
    """Whether a collective gives each rank what it should."""
    return lambda world: world.gather(torch.tensor(world.rank)).tolist() == list(range(world.size))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that no launcher started."""
    for name in (*_torchrun_environ(0, 1, 1, 0), "NBSYNC_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def _run(
    function: Callable[[], Any],
    size: int = 2,
    *,
    local_size: int | None = None,
    environ: dict[str, str] | None = None,
) -> list[Any]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pipes, ends = zip(*(context.Pipe() for _ in range(size)), strict=True)
    processes = []
    for rank, end in enumerate(ends):
        place = _torchrun_environ(rank, size, local_size or size, port) | (environ or {})
        foreign = [listener, *(pipe for pipe in pipes + ends if pipe is not end)]
        processes.append(context.Process(target=_rank_main, args=(function, place, end, foreign)))
    try:
        # A thread that never computes: a fork of one that used OpenMP hangs in the child (facts.md 1).
        forker = threading.Thread(target=_start, args=(processes,))
        forker.start()
        forker.join()
        for end in ends:
            end.close()
        # Only now: while its thread serves the first ranks it holds locks of libc, and a rank forked at that
        # moment would find them locked for ever.
        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
        for pipe in pipes:
            pipe.send_bytes(b"go")
        found = _collect(pipes)
        del store
        return found
    finally:
        for pipe in pipes:
            pipe.close()  # lets the ranks that have reported go
        for process in processes:
            process.join(1)
            process.kill()
            process.join()


def _torchrun_environ(rank: int, size: int, local_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank % local_size),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _start(processes: list[Any]) -> None:
    for process in processes:
        process.start()


def _rank_main(function: Callable[[], Any], environ: dict[str, str], end: Any, foreign: list[Any]) -> None:
    for each in foreign:  # a copy of another rank's end would hide that rank's death
        each.close()
    end.recv_bytes()
    torch.set_num_threads(1)
    os.environ.update(environ)
    faulthandler.dump_traceback_later(_LIMIT - 1, file=2)
    try:
        report = dill.dumps((function(), None, ""))
    except BaseException as error:
        text = traceback.format_exc()
        with suppress(BrokenPipeError):  # another rank's error came first
            end.send_bytes(dill.dumps((None, error.with_traceback(None), text)))
        os._exit(1)  # at once, so that a rank in a collective with this one is released
    end.send_bytes(report)
    # Stays until all have reported: gloo may still need this rank for the last collective of the others.
    wait([end], _LIMIT)
    os._exit(0)


def _collect(pipes: Sequence[Any]) -> list[Any]:
    deadline = time.monotonic() + _LIMIT
    values: dict[int, Any] = {}
    while len(values) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in values]
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            pytest.fail(f"ranks {sorted(set(range(len(pipes))) - values.keys())} hung for {_LIMIT:g} s")
        for pipe in ready:
            rank = pipes.index(pipe)
            values[rank] = _receive(rank, pipe)
    return [values[rank] for rank in range(len(pipes))]


def _receive(rank: int, pipe: Any) -> Any:
    try:
        value, error, text = dill.loads(pipe.recv_bytes())
    except EOFError:
        pytest.fail(f"rank {rank} died without a word")
    if error is not None:
        raise error from RuntimeError(f"on rank {rank}:\n{text}")
    return value
