"""`Session`: workers that live on between cells. The magics and `notebook_launcher` are thin users of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from nbsync.kernel import current
from nbsync.kernel.aftermath import take_note
from nbsync.kernel.ask import Ranks, ask, ask_for_values, check_expressions, checked_variables, choose, raise_for
from nbsync.kernel.fleet import Fleet
from nbsync.kernel.output.sink import Sink, make_sink, tell
from nbsync.kernel.packing import make_call, make_push, name_of
from nbsync.kernel.results import show_results
from nbsync.kernel.sigint import interrupt_costs, sigint_later
from nbsync.kernel.start.loading import load
from nbsync.kernel.start.plan import Plan, checked_plan
from nbsync.kernel.state import Phase, Snapshot
from nbsync.kernel.supervision.glance import describe_stacks, describe_world
from nbsync.kernel.supervision.mend import refill
from nbsync.protocol.messages import Pull, RunCall, RunCell
from nbsync.protocol.reports import Where
from nbsync.protocol.spec import Call


class Session:
    """One worker per rank, forked from this notebook, joined in one `torch.distributed` world.

    The workers start as copies of the notebook: every variable, import and function defined so far is there.
    Use it as a context manager, or call `close`. While there is no other, it is the session that the magics use.

    Args:
        num_processes: how many ranks; None for one per GPU, or 2 on a machine without GPUs.
        backend: of the process group; None for gloo on CPU, and gloo with NCCL where each rank has a GPU.
        start_method: "fork", "forkserver", "spawn", or "auto": fork, but a fork server where a fork could not work.
        env: variables to set in the workers, over everything that nbsync sets.
        threads_per_worker: for torch and BLAS; None for OMP_NUM_THREADS, else the cores divided among the ranks.
        numa: bind each rank to the processors near its GPU, as torchrun's `--numa-binding`: "node", "socket",
            "exclusive" or "core-complex".
        refill: bring a rank whose process has ended back at the end of the cell, or before the next one, as a fresh
            copy of the notebook.
        compare_collectives: let the ranks compare shapes, types and operations before each blocking collective, so
            that a difference is an error on all of them instead of a crash, a hang or a wrong number. What does
            not block (`async_op=True`), and `send` and `recv`, are compared when they have been waited for.
        progress: show bars and barriers live; without it, bars are the ranks' text.
        seed: makes the ranks' random states (random, numpy, torch) reproducible; they differ by rank.

    Raises:
        UsageError: an argument makes no sense.
        StartError: the workers could not be started; none is left running.

    Examples:
        >>> from nbsync import Session
        >>> with Session(2) as session:
        ...     session.push({"lr": 0.5})
        ...     session.run_cell("total = world.reduce(torch.tensor(lr)).item()")
        ...     session.pull("rank", "total")
        [[0, 1.0], [1, 1.0]]
    """

    def __init__(
        self,
        num_processes: int | None = None,
        *,
        backend: str | None = None,
        start_method: str = "auto",
        env: Mapping[str, str] | None = None,
        threads_per_worker: int | None = None,
        numa: str | None = None,
        seed: int | None = None,
        refill: bool = False,
        compare_collectives: bool = True,
        progress: bool = True,
    ) -> None:
        plan = checked_plan(
            num_processes,
            backend,
            start_method=start_method,
            env=env,
            threads_per_worker=threads_per_worker,
            numa=numa,
            seed=seed,
            refill=refill,
            compare_collectives=compare_collectives,
            progress=progress,
        )
        self._begin(plan, None)
        if not current.has_session():
            current.set_session(self)

    def _begin(self, plan: Plan, inherited: Call | None) -> None:
        self._plan, self._inherited = plan, inherited
        for line in filter(None, (take_note(), plan.placement.note)):
            tell(make_sink(), line)
        self._start_fleet()

    def _start_fleet(self) -> None:
        engine = load("nbsync.kernel.engines.local").LocalEngine(self._plan.start_method)
        self._fleet = Fleet(self._plan, engine, self._inherited)
        try:
            self._fleet.start()
            current.add(self)
        except BaseException:  # also an interrupt: all or nothing
            self._fleet.abandon()
            current.remove(self)
            raise

    # ---- what it is ----

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self._fleet.size

    @property
    def backend(self) -> str:
        """The process group's backend."""
        return self._plan.placement.backend

    @property
    def options(self) -> dict[str, Any]:
        """What the workers were started with: the arguments of `Session` by their names."""
        return self._plan.options

    @property
    def is_running(self) -> bool:
        """Whether the workers are there."""
        return self._fleet.is_running

    @property
    def dead_ranks(self) -> tuple[int, ...]:
        """The ranks whose process has ended."""
        return self._fleet.state.in_phase(Phase.DEAD)

    def status(self) -> Snapshot:
        """What every rank is doing now, as far as the kernel knows without asking.

        Returns:
            `ranks` has of each its `rank`, `pid`, `phase` (its `value` is "starting", "idle", "busy" or "dead"), `note`
                (what it does, or how its process ended) and `bars`; `describe()` says it in words.
        """
        return self._fleet.traffic.snapshot()

    def describe(self) -> str:
        """What every rank is doing now, in words: state, current line, memory."""
        return describe_world(self._fleet)

    def __repr__(self) -> str:
        return f"<nbsync.Session: {self.status().describe()}>" if self.is_running else "<nbsync.Session: closed>"

    # ---- what it does ----

    def run_cell(
        self,
        code: str,
        ranks: Ranks = "all",
        *,
        timeout: float | None = None,
        execution_count: int = 1,
        sink: Sink | None = None,
    ) -> None:
        """Run a cell on `ranks`, through IPython, and show what it prints, displays and evaluates to.

        Args:
            code: the cell; magics and top-level `await` work.
            ranks: which ranks, e.g. "0,2-3", "main", "last", "all", 1, or [0, 1].
            timeout: seconds after which the cell is interrupted; None for no limit.
            execution_count: the number that tracebacks show ("Cell In[3]").
            sink: where output goes; by default to the notebook or the terminal.

        Raises:
            WorkerError: a rank raised; it is also of the original exception's type.
            WorkerDied: a rank's process ended. NoSession, RankBusy, UsageError: nothing was run.
            RunTimeout: the time limit was reached.
            KeyboardInterrupt: it was interrupted. In all cases the living ranks keep their state.
        """
        sink, fleet = sink or make_sink(), self._fleet
        run = ask(fleet, lambda n: RunCell(n, code, execution_count), ranks, sink, note="runs a cell", timeout=timeout)
        show_results(run, sink, self._plan)
        raise_for(fleet, run)

    def check_idle(self, ranks: Ranks = "all") -> None:
        """Raise `RankBusy` if one of `ranks` still runs something, `UsageError` if there are no such ranks."""
        self._fleet.traffic.check_idle(choose(self._fleet, ranks))

    def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        ranks: Ranks = "all",
        timeout: float | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Call a function on `ranks`. It and its arguments are sent with dill.

        Args:
            function: it runs in the cells' world: what it makes global, the next cell has.
            args, kwargs: its arguments.
            ranks: which ranks, as `run_cell`.
            timeout: seconds after which it is interrupted; None for no limit.

        Returns:
            What it returned, one value per rank of `ranks`. CUDA tensors arrive as CPU tensors.

        Raises:
            TransferError: the function, an argument or a returned value cannot be sent.
            Others as `run_cell`; no KeyboardInterrupt if the function catches it, and returns on all ranks.
        """
        fleet, note = self._fleet, f"runs {name_of(function)}()"
        return ask_for_values(fleet, make_call(function, args, kwargs, fleet.common), ranks, note=note, timeout=timeout)

    def push(self, values: Mapping[str, Any], ranks: Ranks = "all") -> None:
        """Set variables on `ranks`: `session.push({"lr": 0.1})`. A class that they have already becomes as it is here.

        Args:
            values: the variables by their names.
            ranks: which ranks, as `run_cell`.

        Raises:
            UsageError: a name is none that a variable can have, or is each rank's own (`rank`, `world`, ...).
            TransferError: a value cannot be sent; nothing was set on any rank.
            NoSession, RankBusy, WorkerDied: a rank cannot receive them. KeyboardInterrupt: it was interrupted.
        """
        fleet, variables = self._fleet, checked_variables(values)
        raise_for(fleet, ask(fleet, make_push(variables, fleet.common), ranks, make_sink(), note="receives variables"))

    def pull(self, *expressions: str, ranks: Ranks = "all") -> list[Any]:
        """Fetch variables, or any expressions, from `ranks`.

        Args:
            expressions: each a string, as "loss" or "x + 1".
            ranks: which ranks, as `run_cell`.

        Returns:
            One value per rank of `ranks`; with several expressions, one list of values per rank.

        Raises:
            UsageError: one is no expression.
            TransferError: a value cannot be sent. WorkerError: e.g. a NameError on a rank.
            NoSession, RankBusy, WorkerDied, KeyboardInterrupt: as `push`.
        """
        check_expressions(expressions)
        values = ask_for_values(self._fleet, lambda n: Pull(n, expressions), ranks, note="sends variables")
        return [value[0] for value in values] if len(expressions) == 1 else values

    def peek(self, ranks: Ranks = "all", names_of: str | None = None) -> dict[int, Where | None]:
        """Where each rank is, also while it is busy: its line, what it waits in, its stack.

        Args:
            ranks: which ranks, as `run_cell`.
            names_of: "" for the names of its variables as well, "model.head" for those of an object's attributes.

        Returns:
            By rank, with `line` (of the user's code), `waiting_in` (the operation of torch.distributed, or None),
                `stack` and `names`; None for one that does not answer within a second: C code holds the GIL.

        Raises:
            NoSession: the workers have been ended. UsageError: there are no such ranks.
        """
        chosen = choose(self._fleet, ranks)
        found = self._fleet.traffic.peek(chosen, names_of=names_of)
        return {rank: found.get(rank) for rank in chosen}

    def stack(self, ranks: Ranks = "all") -> str:
        """The Python stack of each rank, also while it is busy; of one that does not answer, in its cell's output.

        Args:
            ranks: which ranks, as `run_cell`.

        Raises:
            NoSession, UsageError: as `peek`.
        """
        return describe_stacks(self._fleet, choose(self._fleet, ranks))

    def interrupt(self) -> tuple[int, ...]:
        """Interrupt what runs, from another thread. Returns the ranks that were busy."""
        return self._fleet.traffic.interrupt()

    def restart(self, ranks: Ranks | None = None) -> tuple[int, ...]:
        """Start fresh workers as copies of the notebook as it is now.

        Args:
            ranks: only these; the others keep their state, and the process group of the whole world goes on.
                None for all, in a new world.

        Returns:
            The ranks that are fresh: with `ranks`, also those whose process had ended.

        Raises:
            StartError: they did not come up. NoSession, UsageError, RankBusy: the workers have been ended, there are
                no such ranks, another one is busy. KeyboardInterrupt: without `ranks`, the workers are gone then.
        """
        if ranks is not None:
            sink = make_sink()
            return refill(self._fleet, choose(self._fleet, ranks), sink, partial(tell, sink))
        with interrupt_costs(f"the workers are gone: `%nbsync start -n {self.world_size}` starts others"):
            self._fleet.close()
            self._start_fleet()
        return tuple(range(self.world_size))

    def close(self) -> None:
        """End all workers. Their variables are lost; calling it again does nothing."""
        with sigint_later():
            self._fleet.close()
            current.remove(self)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def call_in_fresh_workers(plan: Plan, call: Call, timeout: float | None = None) -> list[Any]:
    """Call a function in workers that are started for it, inherit it, and end with it."""
    session = Session.__new__(Session)
    session._begin(plan, call)
    with session:
        return ask_for_values(session._fleet, RunCall, "all", note=f"runs {name_of(call[0])}()", timeout=timeout)
