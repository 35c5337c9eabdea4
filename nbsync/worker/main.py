"""The life of a worker: it starts as a copy of the notebook, takes requests until it is told to stop, and exits."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import torch

from nbsync.errors import NbsyncError
from nbsync.protocol.channel import Channel
from nbsync.protocol.given_up import GivenUp
from nbsync.protocol.messages import (
    Alive,
    Begin,
    Done,
    Failure,
    Heal,
    Payload,
    Raised,
    Ready,
    Request,
    Stop,
    Work,
)
from nbsync.protocol.serial import Common, set_common
from nbsync.protocol.spec import COMPILER, Call, Endpoints, WorkerSpec
from nbsync.protocol.userlines import keep_users_lines
from nbsync.worker import performer, process, shell
from nbsync.worker.arrival import Arrived, explain_missing
from nbsync.worker.attendant import Attendant
from nbsync.worker.control.report import set_reporter
from nbsync.worker.control.world import World
from nbsync.worker.crashes import keep_showing_stacks, show_stacks
from nbsync.worker.failure import (
    came_of_others,
    describe,
    follows_from_others,
    has_ended_connection,
    identify,
    is_rendered_elsewhere,
)
from nbsync.worker.feed import Feed, FeedReporter
from nbsync.worker.groups.group import GroupKeeper
from nbsync.worker.groups.meeting import MeetingPoint
from nbsync.worker.groups.standing import look_after_groups
from nbsync.worker.groups.storestarts import StoreStarts
from nbsync.worker.groups.storewaits import StoreWaits
from nbsync.worker.groups.watch import CollectiveWatch
from nbsync.worker.inheritance import forget_inherited_fork_server, forget_inherited_worlds
from nbsync.worker.interrupts import Interrupts
from nbsync.worker.leaving import finish, forget_inherited_exits
from nbsync.worker.libraries.accelerate import see_cpu_worlds
from nbsync.worker.libraries.bars import show_bars
from nbsync.worker.libraries.imports import import_whole
from nbsync.worker.libraries.lightning import leave_the_prompt
from nbsync.worker.libraries.loaders import end_cut_loaders_at_once
from nbsync.worker.libraries.transformers import show_training_once
from nbsync.worker.own_names import OwnNames
from nbsync.worker.pages import share_pages
from nbsync.worker.performer import Performer
from nbsync.worker.recorder import Recorder
from nbsync.worker.seeds import seed_rank
from nbsync.worker.shell import CellOutcome, WorkerShell
from nbsync.worker.shortage import give_back
from nbsync.worker.streams import Streams
from nbsync.worker.threads import bind_near_gpu, look_for_pools, use_threads
from nbsync.worker.tracebacks import load_tracebacks

_ABOVE_USERS = (sys.modules[__name__], performer, process, shell)
_OURS = tuple(str(module.__file__) for module in _ABOVE_USERS)


def before_forks() -> None:
    """In the process that is about to fork workers: what need not be done in each of them."""
    look_for_pools()
    load_tracebacks()


def work(spec: WorkerSpec, ends: Endpoints, inherited: Call | None, common: Common) -> NoReturn:
    """Be rank `spec.rank` until told to stop. Never returns into the kernel's frames.

    Args:
        inherited: the function that a launch carries along.
        common: what notebook and workers have in common, to be sent by name.
    """
    try:
        process.detach_from_kernel(ends.kernel_pid)
        forget_inherited_exits()
        process.release_listeners()
        process.keep_sockets_in(spec.scratch)
        set_common(common)
        Worker(spec, ends, inherited).serve()
    except BaseException:  # only reached by a defect in nbsync itself: serve() exits by itself
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(70)


def work_fresh(index: int, ends: Endpoints, arrive: Callable[[], Arrived]) -> NoReturn:
    """As `work`, in a process that is no copy of the notebook: it unpacks what was sent. `index` is into the specs."""
    try:
        process.detach_from_kernel(ends.kernel_pid)
        forget_inherited_exits()
        os.dup2(ends.stdout, 1)
        os.dup2(ends.stderr, 2)
        arrived = arrive()
        process.keep_sockets_in(arrived.specs[index].scratch)
        set_common(arrived.common)
        own = Worker(arrived.specs[index], ends, arrived.inherited)
        for line in arrived.complaints:
            print(f"nbsync: {line}", file=sys.stderr)
        own.serve()
    except BaseException:  # e.g. no more threads or descriptors; the kernel shows what is written here
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(70)


class Worker:
    """One rank: its shell, streams, process groups and helper thread."""

    def __init__(self, spec: WorkerSpec, ends: Endpoints, inherited: Call | None) -> None:
        self.spec = spec
        self.interrupts = Interrupts()
        self.interrupts.install()
        self.streams = Streams(ends.stdout, ends.stderr, self.interrupts.shield)
        show_stacks(self.streams.to_kernel)
        os.environ.update(spec.environ)
        meeting = MeetingPoint(spec.host, spec.port, spec.world_size, spec.secret)
        self.groups = GroupKeeper(meeting, spec.rank, spec.world_size, self.interrupts.shield)
        self.watch = CollectiveWatch(spec.compare_collectives, self.interrupts.shield)
        self.channel = Channel(ends.channel)
        self.feed = Feed(spec.progress_interval)
        self.attendant = Attendant(self.channel, self.interrupts, self.groups, self.watch, self.feed)
        self.attendant.start()
        self.recorder = Recorder(spec.scratch, spec.rank, self.interrupts)
        self.recorder.install()
        self.shell = WorkerShell(self._post, self.attendant.pace, self._on_error, self.recorder.note)
        self.own_names = OwnNames(self.shell.namespace)
        self.performer = Performer(spec, inherited, self.shell, self.recorder, self.groups, self.watch)
        self._caught, self._follows = 0.0, False  # when the error at hand was, and whether it follows from another's
        self._came_of_peer = False  # whether it was raised while one that follows was handled

    def serve(self) -> NoReturn:
        """Start up, then answer requests one by one."""
        problem = self._attempt(self._settle)
        self._wait_for_begin()
        self.channel.send(Ready(self.spec.rank, problem or self._attempt(self._join)))
        while True:
            request = self.attendant.inbox.get()
            if isinstance(request, Stop):
                finish()
                self.streams.flush()
                self.attendant.drain(timeout=1.0)
                os._exit(0)
            self._answer(request)
            del request

    def _post(self, make_message: Callable[[int], Any]) -> None:
        self.streams.post(make_message, self.channel)

    def _wait_for_begin(self) -> None:
        if not isinstance(self.attendant.inbox.get(), Begin):  # stopped before it began
            os._exit(0)

    def _attempt(self, step: Callable[[], None]) -> Failure | None:
        """Take a step of the start. It can fail for reasons outside nbsync; that is reported, not raised."""
        try:
            step()
        except Exception as error:  # it must reach the user, whatever it is
            follows = follows_from_others(error, released=False)
            return describe(error, self.shell.render(error), caught=time.monotonic(), follows=follows)
        return None

    def _settle(self) -> None:
        """What needs neither the others nor the kernel, and so is done while others are still forked."""
        forget_inherited_worlds()
        forget_inherited_fork_server()
        if "nccl" not in self.spec.backend:
            see_cpu_worlds()
        end_cut_loaders_at_once(
            lambda: self.interrupts.is_in_effect or self.groups.is_healing or self.attendant.is_here
        )
        import_whole(COMPILER, self.interrupts.put_off)
        leave_the_prompt()
        show_training_once(self.spec.rank)
        self.groups.install()
        self.watch.install()
        StoreStarts(self.attendant.has_failed_elsewhere).install()
        StoreWaits(self.attendant.has_failed_elsewhere).install()
        use_threads(self.spec.threads)
        show_bars(self.feed, self.streams.owns)
        seed_rank(self.spec.seed, self.spec.rank)
        set_reporter(FeedReporter(self.feed, self.streams.meet))

    def _join(self) -> None:
        """Become a rank of the world."""
        self.channel.send(Alive())
        world = World(backend=self.spec.backend)
        if world.device.type == "cuda":
            torch.cuda.set_device(world.device)
        if self.spec.numa is not None:
            bind_near_gpu(world.local_rank, self.spec.numa)
        if self.spec.init_group:
            self.groups.join(self.spec.backend, world.device, self.spec.life)
            share_pages(self.spec, self.watch, self.spec.life)
        look_after_groups(self.shell.namespace, in_session=self.spec.init_group)
        self.own_names.bind(world, in_session=self.spec.init_group)

    def _answer(self, request: Request) -> None:
        """Do what `request` asks for, and tell how it went. Any error of the user's code is part of the answer."""
        run = request.run
        value: Payload | None = None
        failure: Failure | None = None
        self.feed.begin(isinstance(request, Work) and request.show_bars)
        self.recorder.doing = f"received {request.size}" if isinstance(request, GivenUp) else ""
        self._caught, self._follows, self._came_of_peer = 0.0, False, False
        keep_showing_stacks(self.streams.to_kernel)
        try:
            try:  # no generator: those cannot pass on every error
                self.interrupts.begin(run)
                outcome, value = self._perform(request)
                failure = self._describe(outcome, run)  # inside, since it runs the user's __str__ and __reduce__
            finally:
                self.interrupts.run, self.interrupts.over = None, run
        except BaseException as error:  # an interrupt: before anything was done, or while the error was described
            outcome, value = self._failed(error, run), None
            failure = self._describe(outcome, run)
        done = self._conclude(request, Done(run, 0, failure, outcome.result, value, group_broken=True))
        outcome.error = None  # its frames would keep the user's objects alive
        self.feed.send(self.channel, time.monotonic(), at_once=True)
        self._post(lambda fence: replace(done, fence=fence))
        if failure is not None and failure.memory_limit is not None:
            give_back()

    def _conclude(self, request: Request, done: Done) -> Done:
        """The answer with what is known of this rank; where that cannot be told, its groups are to be made whole."""
        run, is_well = request.run, done.failure is None
        try:
            if not isinstance(request, Heal):
                self.groups.end_run(well=is_well and not self.interrupts.was_asked(run))
                self.own_names.restore()
            return replace(
                done,
                group_broken=self.groups.are_broken or self.watch.has_failed,
                sequence=(*self.groups.sequence_numbers(), *self.watch.sequence_numbers()),
                memory=self.attendant.memory.read(),
                caught_interrupt=is_well and self.interrupts.was_raised(run),
                has_compiler=COMPILER in sys.modules,
            )
        except Exception:  # a library may have made anything of its groups and models: a value is not lost by that
            traceback.print_exc()
            return done

    def _perform(self, request: Request) -> tuple[CellOutcome, Payload | None]:
        try:
            return self.performer.perform(request)
        except BaseException as error:  # also KeyboardInterrupt and SystemExit: the worker lives on
            return self._failed(error, request.run), None

    def _failed(self, error: BaseException, run: int) -> CellOutcome:
        rendered = () if self._on_error(error, run) else self.shell.render(error, _OURS)
        return CellOutcome(error=error, traceback=rendered)

    def _on_error(self, error: BaseException, run: int | None = None) -> bool:
        self._caught = time.monotonic()
        explain_missing(error)
        run = self.interrupts.run if run is None else run  # it is closed already where a call has failed
        self.watch.has_failed |= has_ended_connection(error)
        released = self.attendant.was_released(run)  # not yet for this error, which the kernel does not know
        self._follows = follows = follows_from_others(error, released=released)
        self._came_of_peer = came_of_others(error, released=released)
        if isinstance(error, NbsyncError) and not follows:  # its message says all; under the user's line it is ours
            keep_users_lines(error)
        if run is not None and self.interrupts.was_asked(run) and isinstance(error, KeyboardInterrupt):
            return True
        if run is None or follows:
            return follows
        self.channel.send(Raised(run))
        told = identify(error, self.recorder.doing)
        return is_rendered_elsewhere(told, self.watch.underway.ledger, self.spec.rank, run)

    def _describe(self, outcome: CellOutcome, run: int) -> Failure | None:
        if outcome.error is None:
            return None
        return describe(
            outcome.error,
            outcome.traceback,
            caught=self._caught or time.monotonic(),
            follows=self._follows,
            came_of_peer=self._came_of_peer,
            interrupted=self.interrupts.was_asked(run),
            doing=self.recorder.doing,
            pickling=self.recorder.pickling("the error", [outcome.error]),
        )
