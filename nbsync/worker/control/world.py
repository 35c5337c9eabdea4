"""`World`: process control and collectives for a function or notebook cell that runs on several ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DataParallel, DistributedDataParallel

from nbsync.errors import UsageError
from nbsync.protocol.limits import check_timeout
from nbsync.worker.control import collectives
from nbsync.worker.control.barrier import wait_at_barrier
from nbsync.worker.control.identity import Identity
from nbsync.worker.control.nodes import group_of_node
from nbsync.worker.control.report import call_site, reported
from nbsync.worker.control.split import split
from nbsync.worker.control.turns import Outcome, first_goes_first

_ONE_GPU_EACH = "cpu:gloo,cuda:nccl"


class World(Identity):
    """All processes of this run, seen from one of them.

    It works in an nbsync worker, in a torchrun script and in a plain process, which is a world of one where
    nothing waits. The process group is made at the first operation that needs one, if there is none.

    Args:
        backend: for `dist.init_process_group`; by default NBSYNC_BACKEND, else NCCL beside gloo when there is
            a GPU for each process, else gloo.
        timeout: seconds after which a collective gives up; by default what torch has for the backend.

    Raises:
        UsageError: the timeout is no positive number.

    Examples:
        In a plain process; in a cell or a launched function the same code runs on several ranks.

        >>> from nbsync import World
        >>> world = World()
        >>> world
        <World: rank 0 of 1, local rank 0 of 1, ...>
        >>> @world.on_main_process
        ... def save():
        ...     return "saved"
        >>> world.wait_for_everyone()
        >>> save()
        'saved'
        >>> with world.split_between_processes(["a", "b", "c"]) as mine:
        ...     mine
        ['a', 'b', 'c']
        >>> world.gather_object({"rank": world.rank})
        [{'rank': 0}]
    """

    def __init__(self, backend: str | None = None, timeout: float | None = None) -> None:
        check_timeout(timeout)
        self._backend = backend
        self._timeout = timeout
        self._triggered = False

    def __repr__(self) -> str:
        info = self.info
        return (
            f"<World: rank {info.rank} of {info.size}, local rank {info.local_rank} of {info.local_size}, "
            f"{self.device}, {self.backend or 'no process group'}>"
        )

    @property
    def backend(self) -> str | None:
        """The backend of the process group, in use or to be made; None in a world of one without a group."""
        if dist.is_initialized():
            name = dist.get_backend()
            return name if name in dist.Backend.backend_list[1:] else dist.get_backend_config()
        info = self.info
        if info.size == 1 and not info.elastic:
            return None
        automatic = _ONE_GPU_EACH if self.device.type == "cuda" and dist.is_nccl_available() else "gloo"
        return self._backend or os.environ.get("NBSYNC_BACKEND") or automatic

    def join(self) -> int:
        """Make the process group now, if it is not there: DistributedDataParallel and others expect it.

        Every operation of `World` does this by itself. In a world of one without torchrun there is nothing to make.

        Returns:
            The number of processes.

        Raises:
            UsageError: the environment says something impossible, or not where the processes meet.
        """
        if dist.is_initialized():
            return dist.get_world_size()
        backend = self.backend
        if backend is None:
            return 1
        self.info.require_master()
        device = self.device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            backend,
            timeout=None if self._timeout is None else timedelta(seconds=float(self._timeout)),
            device_id=device if device.type == "cuda" and "nccl" in backend else None,
        )
        return dist.get_world_size()

    def wait_for_everyone(self, name: str | None = None, timeout: float | None = None) -> None:
        """Return when every process is here. As Accelerate's `PartialState.wait_for_everyone`.

        Args:
            name: what the notebook and errors call this barrier.
            timeout: seconds to wait; None waits as long as the process group does.

        Raises:
            BarrierTimeout: some ranks, which it names, did not come in time. The process group is unharmed.
            UsageError: the name is no string, or the timeout no number from 0 up.
        """
        if not isinstance(name, str | None):
            raise UsageError(f"a barrier's name is a string; a limit is timeout={name!r}")
        check_timeout(timeout, may_be_zero=True)
        name = name or "wait_for_everyone"
        if self.join() == 1:
            return
        on_gpu = collectives.control_device().type == "cuda"
        with reported(name, call_site()):
            wait_at_barrier(name, timeout, [torch.cuda.current_device()] if on_gpu else None)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Rank 0 runs the block, then all others do. As Accelerate's `PartialState.main_process_first`.

        The others are let in, or told, however rank 0 leaves the block. It can be nested.

        Raises:
            MainProcessFailed: on the others, when rank 0 raised in the block; it names the error.
        """
        with self._first_of(range(self.join()), "main_process_first"):
            yield

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """On each node local rank 0 runs the block, then the node's others do.

        As Accelerate's `PartialState.local_main_process_first`, which makes all nodes wait for each other.

        Raises:
            MainProcessFailed: on a node's others, when their local rank 0 raised in the block.
        """
        self.join()
        with self._first_of(self.info.node, "local_main_process_first"):
            yield

    @contextmanager
    def _first_of(self, members: range, name: str) -> Iterator[None]:
        if len(members) == 1:
            yield
            return
        site = call_site()

        def exchange(outcome: Outcome | None) -> Outcome:
            group = dist.group.WORLD if len(members) == dist.get_world_size() else group_of_node(members)
            box = [outcome]
            with reported(name, site):
                dist.broadcast_object_list(box, src=members[0], group=group)
            told = box[0]
            assert told is not None
            return told

        with first_goes_first(self.rank, members, exchange):
            yield

    @contextmanager
    def split_between_processes(self, inputs: Any, apply_padding: bool = False) -> Iterator[Any]:
        """This process's share of `inputs`. As Accelerate's `PartialState.split_between_processes`.

        The first ranks get one item more when it does not come out even; with more ranks than items the last
        ones get none. Nothing is sent and `inputs` is not changed. A world of one gets `inputs` itself.

        Args:
            inputs: a sequence with slices (list, tuple, str, range, ...), tensor, array, `datasets.Dataset`,
                or a dict of these, also nested, all of one length. Tensors and arrays: along dimension 0.
            apply_padding: repeat the last item until all shares have ceil(length / size) items; drop the
                repeated ones yourself after a gather. Empty inputs stay empty.

        Raises:
            UsageError: (a ValueError) the inputs are something else, or a dict's values differ in length.
        """
        info = self.info
        yield split(inputs, info.rank, info.size, apply_padding)

    def set_trigger(self) -> None:
        """Note something, on this rank alone, for the next `check_trigger`. As `Accelerator.set_trigger`."""
        self._triggered = True

    def check_trigger(self) -> bool:
        """Whether any rank called `set_trigger` since the last check. As `Accelerator.check_trigger`.

        All ranks must call it, and get the same answer; the trigger is then off again everywhere.
        """
        triggered = self._triggered
        if self.join() > 1:
            flag = torch.tensor(int(triggered), device=collectives.control_device())
            dist.all_reduce(flag)
            triggered = bool(flag)
        self._triggered = False
        return triggered

    def unwrap_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """The user's own model inside DistributedDataParallel, DataParallel, FSDP1 and `torch.compile`.

        As `Accelerator.unwrap_model`, which leaves the compiled layer on. A model sharded by FSDP2 is its own
        wrapper and comes back as it is.
        """
        fsdp = sys.modules.get("torch.distributed.fsdp")  # slow to import, and whoever uses it has done so
        wrappers = (DistributedDataParallel, DataParallel, *([fsdp.FullyShardedDataParallel] if fsdp else []))
        while True:
            if isinstance(model, wrappers):
                model = model.module
            elif isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
                model = inner
            else:
                return model

    def gather(self, tensor: Any) -> Any:
        """Every rank's tensors, concatenated along dimension 0 in rank order. As Accelerate's `gather`.

        Args:
            tensor: a tensor, or tensors in lists, tuples, named tuples and dicts, alike on every rank.

        Returns:
            The same structure; (n, ...) becomes (size * n, ...), and a 0-d tensor becomes (size,).

        Raises:
            UsageError: on every rank, with every rank's shapes, when they differ.
        """
        return collectives.gather(tensor, self.join())

    def gather_object(self, object: Any) -> list[Any]:
        """Every rank's object, in rank order, as Accelerate's `gather_object`.

        Returns:
            A list with one entry per rank. When every rank passes a list or tuple, their items in one list.
            Dicts stay whole; Accelerate returns their keys.
        """
        return collectives.gather_object(object, self.join())

    def reduce(self, tensor: Any, reduction: str = "sum", scale: float = 1.0) -> Any:
        """The ranks' tensors reduced to one, on every rank. As Accelerate's `Accelerator.reduce`.

        Args:
            tensor: a tensor, or tensors in lists, tuples, named tuples and dicts, alike on every rank.
            reduction: "sum", "mean" (of integers: a float), "max", or "none" to leave each rank its own.
            scale: factor for the result.

        Returns:
            New tensors in the same structure, with the shapes of the old ones.

        Raises:
            UsageError: shapes differ between the ranks, or there is no such reduction.
        """
        return collectives.reduce(tensor, self.join(), reduction, scale)

    def broadcast(self, tensor: Any, from_process: int = 0) -> Any:
        """Overwrite every rank's tensors, in place, with `from_process`'s. As Accelerate's `broadcast`.

        Args:
            tensor: a tensor, or tensors in lists, tuples, named tuples and dicts, alike on every rank.
            from_process: the rank that sends.

        Returns:
            `tensor` itself.

        Raises:
            UsageError: shapes differ between the ranks, or there is no such rank.
        """
        return collectives.broadcast(tensor, self.join(), from_process)

    def broadcast_object_list(self, object_list: list[Any], from_process: int = 0) -> list[Any]:
        """Replace the content of every rank's list, in place, with that of `from_process`; returns the list.

        As Accelerate's `broadcast_object_list`.

        Args:
            object_list: the list, which may have another length on every rank.
            from_process: the rank that sends.

        Raises:
            UsageError: there is no such rank.
        """
        return collectives.broadcast_object_list(object_list, self.join(), from_process)

    def pad_across_processes(self, tensor: Any, dim: int = 0, pad_index: float = 0, pad_first: bool = False) -> Any:
        """Pad tensors to the size of the largest on any rank, so that they can be gathered.

        As Accelerate's `pad_across_processes`.

        Args:
            tensor: a tensor, or tensors in lists, tuples, named tuples and dicts.
            dim: the dimension to pad; tensors that do not have it stay as they are.
            pad_index: the value to fill in.
            pad_first: pad before the data instead of behind it.

        Returns:
            The same structure; tensors that are long enough are not copied.

        Raises:
            UsageError: the ranks' tensors differ in more than their sizes.
        """
        return collectives.pad(tensor, self.join(), dim, pad_index, pad_first)
