"""What the workers find in their environment, and how many threads they compute with."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import nbsync
from nbsync import Session, notebook_launcher
from nbsync.worker.server import _receive_fds

CORES = len(os.sched_getaffinity(0))
#: Where to write an error, which nbsync's workers tell over their channel; what the agent itself handles; a terminal's.
TORCHRUNS_OWN = {"TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_SIGNALS_TO_HANDLE", "COLUMNS", "LINES"}
DUMP = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1] + os.environ['RANK'], 'w'))"


def _environment() -> dict[str, str]:
    return dict(os.environ)


def _threads() -> tuple[int, str]:
    (torch.ones(1 << 20) + 1).sum()
    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


def test_the_set_of_torchrun_is_complete(tmp_path: Path) -> None:
    """Every variable that torchrun of this torch sets is there, with its value where that is not an address."""
    script = tmp_path / "dump.py"
    script.write_text(DUMP)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "0"]
    subprocess.run([*command, str(script), str(tmp_path / "rank")], check=True, timeout=100, capture_output=True)
    ours = notebook_launcher(_environment, num_processes=2)
    for rank in range(2):
        theirs: dict[str, str] = json.loads((tmp_path / f"rank{rank}").read_text())
        new = {name for name in theirs if theirs[name] != os.environ.get(name)} - TORCHRUNS_OWN
        assert new <= ours[rank].keys()
        own = {"MASTER_PORT", "MASTER_ADDR", "OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID", "PYTHONPATH"}
        assert {n: theirs[n] for n in new - own} == {n: ours[rank][n] for n in new - own}


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_defaults_can_be_overridden(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries are kept on loopback and from making threads, unless the notebook or `env` says otherwise."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TOKENIZERS_PARALLELISM", "NCCL_RAS_ENABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NCCL_RAS_ENABLE", "1")
    monkeypatch.setenv("OF_THE_NOTEBOOK", "yes")
    env = {"NCCL_SOCKET_IFNAME": "eth7", "MINE": "1"}
    found, _ = notebook_launcher(_environment, num_processes=2, env=env, start_method=method)
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NCCL_RAS_ENABLE", "TOKENIZERS_PARALLELISM", "MINE")
    assert [found[name] for name in names] == ["lo", "eth7", "1", "false", "1"]
    assert found["OF_THE_NOTEBOOK"] == "yes"
    assert "MINE" not in os.environ


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        ({}, {}, max(1, CORES // 2)),
        ({}, {"OMP_NUM_THREADS": "3"}, 3),
        ({"env": {"OMP_NUM_THREADS": "4"}}, {"OMP_NUM_THREADS": "3"}, 4),
        ({"threads_per_worker": 2}, {"OMP_NUM_THREADS": "3"}, 2),
    ],
)
def test_threads(
    arguments: dict[str, Any], environ: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker computes with its share of the cores, or as the user chose: by argument, `env`, or in the notebook."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = notebook_launcher(_threads, num_processes=2, **arguments)
    assert found == [(expected, str(expected))] * 2


def test_threads_of_blas() -> None:
    """numpy's BLAS, which was loaded in the notebook with all cores, is limited like torch."""
    pools = pytest.importorskip("threadpoolctl")

    def blas() -> set[int]:
        import numpy as np

        (np.ones((500, 500)) @ np.ones((500, 500))).sum()
        return {pool["num_threads"] for pool in pools.threadpool_info() if pool["user_api"] == "blas"}

    assert notebook_launcher(blas, num_processes=2, threads_per_worker=1) == [{1}, {1}]


@pytest.mark.skipif(CORES < 2, reason="numpy has no threads of its own here")
def test_no_threads_of_blas_are_started() -> None:
    """To limit numpy's BLAS starts no threads of it: each would spin for a while on a core that the ranks need."""
    pytest.importorskip("threadpoolctl")
    pytest.importorskip("numpy")

    def more_threads_than_known() -> int:
        return len(os.listdir("/proc/self/task")) - threading.active_count()

    assert notebook_launcher(more_threads_than_known, num_processes=2, threads_per_worker=1) == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"threads_per_worker": 0}, "threads_per_worker must be a positive integer"),
        ({"threads_per_worker": 1.5}, "threads_per_worker must be a positive integer"),
        ({"numa": "nearby"}, "numa must be one of node, socket, exclusive, core-complex"),
    ],
)
def test_refusals(arguments: dict[str, Any], said: str) -> None:
    """What makes no sense is refused before anything starts."""
    with pytest.raises(nbsync.UsageError, match=said):
        Session(2, **arguments)


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="the ranks have GPUs here")
def test_numa_needs_gpus() -> None:
    """Binding near a GPU is refused where there is none."""
    with pytest.raises(nbsync.UsageError, match="they have none here"):
        Session(2, numa="node")


def test_received_descriptors_are_not_inherited() -> None:
    """What a fork server hands a rank is not held by the programs that the user's code starts."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(ours, [b"x"], [1, 2])
        received = _receive_fds(theirs, 2)
        try:
            assert [os.get_inheritable(fd) for fd in received] == [False, False]
        finally:
            for fd in received:
                os.close(fd)
