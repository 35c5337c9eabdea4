"""`notebook_launcher`: one function on fresh workers, its return values back. A drop-in for Accelerate's."""

from __future__ import annotations

import inspect
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nbsync.errors import UsageError, WorkerError
from nbsync.kernel.output.printer import Label
from nbsync.kernel.output.sink import make_sink, tell
from nbsync.kernel.session import Session, call_in_fresh_workers
from nbsync.kernel.start.plan import Plan, checked_env, checked_plan
from nbsync.kernel.start.rendezvous import LOOPBACK
from nbsync.protocol.limits import check_timeout

PRECISIONS = ("no", "fp16", "bf16", "fp8")


class Results(list[Any]):
    """The return values, one per rank; as the last line of a cell it shows nothing when all are None."""

    def _ipython_display_(self) -> None:
        if any(value is not None for value in self):
            print(list.__repr__(self))


def notebook_launcher(
    function: Callable[..., Any],
    args: Sequence[Any] = (),
    num_processes: int | None = None,
    mixed_precision: str = "no",
    use_port: int | str | None = None,
    master_addr: str = LOOPBACK,
    node_rank: int = 0,
    num_nodes: int = 1,
    rdzv_backend: str = "static",
    rdzv_endpoint: str = "",
    rdzv_conf: Mapping[str, Any] | None = None,
    rdzv_id: str = "none",
    max_restarts: int = 0,
    monitor_interval: float = 0.1,
    log_line_prefix_template: str | None = None,
    *,
    backend: str | None = None,
    start_method: str = "auto",
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    threads_per_worker: int | None = None,
    numa: str | None = None,
    progress: bool = True,
    session: Session | None = None,
) -> list[Any]:
    """Run `function(*args)` on several ranks of this machine and return what each returned.

    The workers are forked from the notebook, so closures, lambdas, and functions, classes and data defined in it
    work without pickling. They have the environment that torchrun would give them: inside, `World()`,
    `dist.init_process_group()` and `Accelerator()` find their world. Names and meanings are those of
    `accelerate.notebook_launcher`.

    Args:
        function: what to run. It gets `args` and nothing else.
        args: its arguments, a tuple.
        num_processes: how many ranks; None for one per GPU, or 2 on a machine without GPUs. More ranks than GPUs
            share them over gloo.
        mixed_precision: "no", "fp16", "bf16" or "fp8", for an `Accelerator()` made inside.
        use_port: port of the rendezvous; None lets the system choose a free one, without a race.
        master_addr: address of the rendezvous.
        node_rank, num_nodes: only one node (0 of 1) so far.
        rdzv_backend: "static" or "c10d", the same thing on one node.
        rdzv_endpoint: "host:port", in place of `master_addr` and `use_port`.
        rdzv_conf: may hold "rank" (0, this node's). Everything else would be without effect, and is refused.
        rdzv_id: the run's name, in TORCHELASTIC_RUN_ID.
        max_restarts: how often to start all ranks anew when one fails; not after an interrupt.
        monitor_interval: at most so many seconds pass until the end of a worker is noticed; here it is at once.
        log_line_prefix_template: what stands before each line, e.g. "[${role_name}${local_rank}]: ", in place of
            "[0] "; lines of several ranks are then not folded. Names: role_name, rank, local_rank.
        backend: of the process group; None for gloo on CPU, gloo with NCCL where each rank has a GPU.
        start_method: "fork", "forkserver", "spawn", or "auto": fork, but a fork server where a fork could not work.
        timeout: seconds for the whole call; None for no limit.
        env: variables to set in the workers, over everything else.
        threads_per_worker: for torch and BLAS; None for the user's OMP_NUM_THREADS, else the cores divided among
            the ranks.
        numa: bind each rank to the processors near its GPU: "node", "socket", "exclusive" or "core-complex".
        progress: show bars and barriers live; without it, bars are the ranks' text.
        session: run it on this session's live workers instead of fresh ones, as `session.call(function, *args)`: what
            it leaves in the notebook's variables (`global model`) is there in the next cell. The process group is
            there too. Only `args` and `timeout` can be given with it, and `num_processes` if it is the session's.

    Returns:
        The return values, one per rank. CUDA tensors arrive as CPU tensors.

    Raises:
        UsageError: an argument makes no sense; the message says what was expected.
        NotImplementedError: `num_nodes` > 1.
        StartError: the workers could not be started.
        WorkerError: a rank raised; it is also of the original exception's type. WorkerDied: its process ended.
        RunTimeout: `timeout` was reached. KeyboardInterrupt: it was interrupted; if `function` catches that, and
            returns on all ranks, so does this.

    Examples:
        >>> from nbsync import World, notebook_launcher
        >>> factor = 10
        >>> notebook_launcher(lambda offset: factor * World().rank + offset, args=(1,), num_processes=2)
        [1, 11]
    """
    arguments = dict(locals())
    _check_function(function, args)
    if session is not None:
        _check_with_session(session, arguments)
        return Results(session.call(function, *args, timeout=timeout))
    _check_nodes(node_rank, num_nodes, rdzv_backend, rdzv_conf)
    _check_numbers(max_restarts, monitor_interval)
    check_timeout(timeout)
    host, port = _endpoint(rdzv_endpoint, master_addr, use_port)
    plan = checked_plan(
        num_processes,
        backend,
        threads_per_worker=threads_per_worker,
        numa=numa,
        start_method=start_method,
        init_group=False,
        is_one_run=True,
        env={"ACCELERATE_MIXED_PRECISION": _precision(mixed_precision)} | checked_env(env),
        host=host,
        port=port,
        run_id=str(rdzv_id),
        max_restarts=max_restarts,
        progress=progress,
    )
    if log_line_prefix_template is not None:
        plan = replace(plan, label=_template_label(log_line_prefix_template), fold=False)
    return Results(_attempt(plan, function, tuple(args), timeout))


def _attempt(plan: Plan, function: Callable[..., Any], args: tuple[Any, ...], timeout: float | None) -> list[Any]:
    """Run in fresh workers, again in a new generation of them as long as restarts are left."""
    while True:
        try:
            return call_in_fresh_workers(plan, (function, args, {}), timeout)
        except WorkerError as error:
            if plan.restart_count >= plan.max_restarts or error.after_interrupt:
                raise
            plan = replace(plan, restart_count=plan.restart_count + 1)
            tell(make_sink(), f"{error.summary}; restart {plan.restart_count} of {plan.max_restarts}")


def _check_function(function: Any, args: Any) -> None:
    if not callable(function):
        raise UsageError(f"function must be callable, got {type(function).__name__}")
    if isinstance(args, str | bytes) or not isinstance(args, Sequence):
        raise UsageError(f"args must be a tuple of arguments, got {args!r}: write args=({args!r},)")


def _check_with_session(session: Any, arguments: Mapping[str, Any]) -> None:
    if not isinstance(session, Session):
        raise UsageError(f"session must be an nbsync.Session, got {session!r}: `nbsync.session()` is the current one")
    if arguments["num_processes"] not in (None, session.world_size):
        raise UsageError(
            f"num_processes is {arguments['num_processes']}, but the session has {session.world_size} ranks: "
            "leave it out, or leave out session"
        )
    taken = ("function", "args", "num_processes", "timeout", "session")
    parameters = inspect.signature(notebook_launcher).parameters
    idle = [name for name, value in arguments.items() if name not in taken and value != parameters[name].default]
    if idle:
        raise UsageError(
            f"{', '.join(idle)} would have no effect on the workers of a session, which run already: "
            "leave that out, or leave out session"
        )


def _check_nodes(node_rank: int, num_nodes: int, rdzv_backend: str, rdzv_conf: Mapping[str, Any] | None) -> None:
    if not 0 <= node_rank < num_nodes:
        raise UsageError(f"The node_rank must be less than the number of nodes, got {node_rank} of {num_nodes}")
    if num_nodes != 1:
        raise NotImplementedError(
            f"num_nodes={num_nodes}: several nodes need the torchrun engine, which is still to come; "
            "on one machine leave num_nodes out"
        )
    if rdzv_backend not in ("static", "c10d"):
        raise UsageError(f"rdzv_backend must be 'static' or 'c10d', got {rdzv_backend!r}")
    rest = {key: value for key, value in (rdzv_conf or {}).items() if (key, value) != ("rank", 0)}
    if rest:
        raise UsageError(f"rdzv_conf may only hold rank=0 on one node, got {rest}")


def _check_numbers(max_restarts: int, monitor_interval: float) -> None:
    if isinstance(max_restarts, bool) or not isinstance(max_restarts, int) or max_restarts < 0:
        raise UsageError(f"max_restarts must be 0 or a positive integer, got {max_restarts!r}")
    if not isinstance(monitor_interval, int | float) or not monitor_interval > 0:
        raise UsageError(f"monitor_interval must be a positive number of seconds, got {monitor_interval!r}")


def _precision(mixed_precision: str) -> str:
    chosen = str(mixed_precision).lower()
    if chosen not in PRECISIONS:
        raise UsageError(f"mixed_precision must be one of {', '.join(PRECISIONS)}, got {mixed_precision!r}")
    return chosen


def _endpoint(rdzv_endpoint: str, master_addr: str, use_port: int | str | None) -> tuple[str, int]:
    host, port = str(rdzv_endpoint).rpartition(":")[::2] if rdzv_endpoint else (master_addr, use_port)
    try:
        number = int(str(port or 0))
    except ValueError:
        number = -1
    if isinstance(host, str) and host and 0 <= number < 65536:
        return host, number
    if rdzv_endpoint:
        raise UsageError(f'rdzv_endpoint must be "host:port", as in "127.0.0.1:29500", got {rdzv_endpoint!r}')
    raise UsageError(
        "master_addr must be a host and use_port a port (0 to 65535) or None for a free one, "
        f"got {master_addr!r} and {use_port!r}"
    )


def _template_label(template: str) -> Label:
    if not isinstance(template, str):
        raise UsageError(f"log_line_prefix_template must be a string, got {template!r}")
    parsed = string.Template(template)

    def label(ranks: tuple[int, ...]) -> str:
        (rank,) = ranks  # such lines are not folded
        return parsed.safe_substitute(role_name="default", rank=rank, local_rank=rank).rstrip(" ")

    label((0,))
    return label
