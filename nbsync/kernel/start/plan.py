"""How the workers of a world are to be started, and what each of them is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from nbsync.errors import UsageError
from nbsync.kernel.output.printer import Label, bracket_label
from nbsync.kernel.start.devices import Placement, count_gpus, place, threads_per_rank
from nbsync.kernel.start.methods import check_start_method
from nbsync.kernel.start.rendezvous import LOOPBACK, Rendezvous, quiet_defaults, torchrun_environment
from nbsync.protocol.spec import WorkerSpec

PROGRESS_EVERY = 0.1  # seconds between two reports of a rank
MOST_REPORTS = 512  # a second, of all ranks

NUMA_BINDINGS = ("node", "socket", "exclusive", "core-complex")  # torch.numa.binding.AffinityMode


@dataclass(frozen=True)
class Plan:
    """How to start the workers.

    Attributes:
        placement: how many ranks, and over which backend.
        start_method: "auto", "fork", "forkserver" or "spawn".
        threads: for each worker; None for the cores divided among the ranks, or the user's OMP_NUM_THREADS.
        numa: how workers are bound to the processors near their GPU; None for not at all.
        init_group: whether workers create the process group at start.
        is_one_run: the session ends with its only run, so that what the user was told of must outlive it.
        compare_collectives: let ranks compare blocking collectives before, other operations after them.
        refill: bring a rank back at once when its process has ended.
        seed: base of the random states; drawn when None.
        env: variables for the workers, over all others.
        host: of the rendezvous.
        port: of the rendezvous; 0 lets the system choose.
        run_id, restart_count, max_restarts: as torchrun's environment tells them.
        label: what stands before a line of some ranks.
        fold: show equal lines of several ranks once.
        progress: show bars and barriers live, where the front end can.
    """

    placement: Placement
    start_method: str = "auto"
    threads: int | None = None
    numa: str | None = None
    init_group: bool = True
    is_one_run: bool = False
    compare_collectives: bool = True
    refill: bool = False
    seed: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    host: str = LOOPBACK
    port: int = 0
    run_id: str = "none"
    restart_count: int = 0
    max_restarts: int = 0
    label: Label = bracket_label
    fold: bool = True
    progress: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """As the arguments of `Session`."""
        same = ("start_method", "numa", "seed", "refill", "compare_collectives", "progress")
        return {
            "num_processes": self.placement.world_size,
            "backend": self.placement.backend,
            "env": dict(self.env),
            "threads_per_worker": self.threads,
            **{name: getattr(self, name) for name in same},
        }


def checked_plan(
    num_processes: int | None,
    backend: str | None,
    *,
    start_method: str,
    env: Mapping[str, str] | None,
    threads_per_worker: int | None,
    numa: str | None,
    seed: int | None = None,
    **rest: Any,
) -> Plan:
    """The plan for what the user asks for, as `Session` describes it; `rest` are more attributes of it.

    Raises:
        UsageError: an argument makes no sense.
        StartError: on this system no workers can be started.
    """
    check_start_method(start_method)
    placement = place(num_processes, backend, count_gpus())
    return Plan(
        placement,
        start_method=start_method,
        env=checked_env(env),
        threads=checked_threads(threads_per_worker),
        numa=checked_numa(numa, placement),
        seed=checked_seed(seed),
        **rest,
    )


def checked_env(env: Mapping[str, str] | None) -> dict[str, str]:
    """Variables for the workers as the user gave them.

    Raises:
        UsageError: a name or value is not a string.
    """
    if not isinstance(env, Mapping | None):
        raise UsageError(f"env must map names to strings, as in {{'NAME': 'value'}}, got {env!r}")
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise UsageError(f"env must map names to strings, got {name!r}: {value!r}: write {name!r}: {str(value)!r}")
    return dict(env or {})


def checked_threads(threads: int | None) -> int | None:
    """Raises UsageError: it is neither None nor a positive integer."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise UsageError(f"threads_per_worker must be a positive integer or None (cores / ranks), got {threads!r}")
    return threads


def checked_numa(numa: str | None, placement: Placement) -> str | None:
    """Raises UsageError: torch knows no such binding, or the ranks have no GPU to be near to."""
    if numa is not None and numa not in NUMA_BINDINGS:
        raise UsageError(f"numa must be one of {', '.join(NUMA_BINDINGS)}, or None, got {numa!r}")
    if numa is not None and not placement.uses_gpu:
        raise UsageError("numa binds ranks to the processors near their GPUs, and they have none here: leave it out")
    return numa


def checked_seed(seed: int | None) -> int | None:
    """Raises UsageError: it is neither None nor an integer."""
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise UsageError(f"seed must be an integer or None (drawn), got {seed!r}")
    return int(seed)  # numpy's would overflow


def make_spec(plan: Plan, rank: int, seed: int, rendezvous: Rendezvous, life: int = 0, scratch: str = "") -> WorkerSpec:
    """What worker `rank` is told.

    Args:
        life: how often the process group was made whole again.
        scratch: the session's folder, "" when there is none.
    """
    size = plan.placement.world_size
    environ = torchrun_environment(
        rank,
        size,
        rendezvous,
        run_id=plan.run_id,
        restart_count=plan.restart_count,
        max_restarts=plan.max_restarts,
    )
    environ |= quiet_defaults() | {"NBSYNC_BACKEND": plan.placement.backend}
    if plan.placement.uses_gpu and plan.init_group:
        # The session aborts and heals NCCL's groups itself; torch's own handling would end the processes.
        environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    if not plan.placement.uses_gpu:
        environ["ACCELERATE_USE_CPU"] = "true"
    threads = plan.threads or threads_per_rank(size, plan.env)
    environ["OMP_NUM_THREADS"] = str(threads)
    return WorkerSpec(
        rank=rank,
        host=rendezvous.host,
        port=rendezvous.port,
        secret=rendezvous.secret,
        world_size=size,
        backend=plan.placement.backend,
        init_group=plan.init_group,
        seed=seed,
        threads=threads,
        numa=plan.numa,
        compare_collectives=plan.compare_collectives,
        life=life,
        progress_interval=max(PROGRESS_EVERY, size / MOST_REPORTS),
        scratch=scratch,
        environ=environ | dict(plan.env),
    )
