"""What a worker is told when it starts, and what it inherits."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: A function with its arguments.
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

#: Makes a worker write its main thread's stack to its stderr, also while C code holds the GIL.
STACK_SIGNAL = signal.SIGUSR2

#: Interrupts a worker past its helper thread, which C code may keep from running. Not SIGINT, so that the worker can
#: tell it from one that its helper thread passed on at last: the two of them are one interrupt.
INSIST_SIGNAL = signal.SIGRTMIN + 4

#: The names that a worker binds in the user's namespace: of its place, which stays, and all of them.
PLACE_NAMES = ("world", "rank", "local_rank", "world_size")
OWN_NAMES = (*PLACE_NAMES, "device", "torch", "dist")

COMPILER = "torch._dynamo"  # the module of torch's compiler


@dataclass(frozen=True)
class WorkerSpec:
    """One rank's place in its world.

    Attributes:
        host, port: where the ranks meet.
        progress_interval: seconds between two reports of progress at least.
        scratch: a folder that is removed with the session, or "".
        secret: what the names of all their keys there begin with.
        life: how often the process group was made whole again before this worker was started.
        environ: variables to set, among them the torchrun set (RANK, MASTER_PORT, ...).
        backend: of the process group: "gloo", "nccl", or "cpu:gloo,cuda:nccl".
        init_group: create the process group before the first request (sessions), or leave that to the function
            (launched functions, which may call `dist.init_process_group()` or build an `Accelerator` themselves).
        compare_collectives: let the ranks compare blocking collectives before, other operations after them.
        threads: how many threads torch and BLAS may use.
        numa: bind the process to the processors near its GPU: a name of torch's AffinityMode, or None.
        seed: base of this world's random states; every rank adds its own number.
    """

    rank: int
    world_size: int
    host: str
    port: int
    secret: str = field(repr=False)
    backend: str
    init_group: bool
    seed: int
    threads: int
    numa: str | None = None
    compare_collectives: bool = True
    life: int = 0
    progress_interval: float = 0.1
    scratch: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Endpoints:
    """What a worker inherits from the kernel to speak with it: its end of the channel, and two write ends."""

    channel: socket.socket
    stdout: int
    stderr: int
    kernel_pid: int
