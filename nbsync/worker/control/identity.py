"""Who this process is among the others, and what runs only on some of them. No communication."""

from __future__ import annotations

import builtins
import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from nbsync.errors import UsageError
from nbsync.worker.control.environment import WorldInfo

Function = Callable[..., Any]


class Identity:
    """This process's place in the world.

    Nothing is remembered: each answer comes from the process group, or without one from the environment.
    """

    @property
    def info(self) -> WorldInfo:
        """The whole place of this process, as it is now.

        Raises:
            UsageError: the environment says something impossible.
        """
        if dist.is_initialized():
            return WorldInfo.from_environ(os.environ, rank=dist.get_rank(), size=dist.get_world_size())
        return WorldInfo.from_environ(os.environ)

    @property
    def rank(self) -> int:
        """This process's number, from 0 to `size` - 1."""
        return self.info.rank

    @property
    def process_index(self) -> int:
        """The same as `rank`, by the name of Accelerate's `PartialState.process_index`."""
        return self.rank

    @property
    def local_rank(self) -> int:
        """This process's number on its node."""
        return self.info.local_rank

    @property
    def local_process_index(self) -> int:
        """The same as `local_rank`, by the name of Accelerate's `PartialState.local_process_index`."""
        return self.local_rank

    @property
    def size(self) -> int:
        """The number of processes."""
        return self.info.size

    @property
    def num_processes(self) -> int:
        """The same as `size`, by the name of Accelerate's `PartialState.num_processes`."""
        return self.size

    @property
    def local_size(self) -> int:
        """The number of processes on this node."""
        return self.info.local_size

    @property
    def use_distributed(self) -> bool:
        """Whether there is more than one process, as Accelerate's `PartialState.use_distributed`."""
        return self.size > 1

    @property
    def device(self) -> torch.device:
        """This process's GPU when the node has one for each of its processes, otherwise the CPU."""
        info = self.info
        # device_count asks NVML first, so that a notebook which looks here can still fork.
        if info.local_size <= torch.cuda.device_count():
            return torch.device("cuda", info.local_rank)
        return torch.device("cpu")

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, as Accelerate's `PartialState.is_main_process`."""
        return self.rank == 0

    @property
    def is_local_main_process(self) -> bool:
        """Whether this is local rank 0, as Accelerate's `PartialState.is_local_main_process`."""
        return self.local_rank == 0

    @property
    def is_last_process(self) -> bool:
        """Whether this is the highest rank, as Accelerate's `PartialState.is_last_process`."""
        info = self.info
        return info.rank == info.size - 1

    def print(self, *args: Any, **kwargs: Any) -> None:
        """The builtin `print`, once per node: on local rank 0. As Accelerate's `PartialState.print`."""
        if self.is_local_main_process:
            builtins.print(*args, **kwargs)

    def on_main_process(self, function: Function | None = None) -> Function:
        """Decorator: the function runs on rank 0 and returns None elsewhere.

        As `PartialState.on_main_process`. It can be written with or without brackets, as all of these
        decorators. Where a call runs is decided at the call, not at the definition.
        """
        return _only_where(lambda: self.is_main_process, function)

    def on_local_main_process(self, function: Function | None = None) -> Function:
        """Decorator: the function runs on local rank 0 of every node and returns None elsewhere.

        As `PartialState.on_local_main_process`.
        """
        return _only_where(lambda: self.is_local_main_process, function)

    def on_last_process(self, function: Function | None = None) -> Function:
        """Decorator: the function runs on the highest rank and returns None elsewhere.

        As `PartialState.on_last_process`.
        """
        return _only_where(lambda: self.is_last_process, function)

    def on_process(self, function: Function | None = None, process_index: int | None = None) -> Function:
        """Decorator: the function runs on rank `process_index` and returns None elsewhere.

        As `PartialState.on_process`, which silently runs it nowhere for an index that does not exist. In a world of
        one it runs, whatever the index: so a notebook can define it for the workers it will start.

        Args:
            function: the function; without it, what is returned decorates one.
            process_index: the rank that runs it.

        Raises:
            UsageError: `process_index` is missing or no rank.
        """
        return self._on_index(function, "process_index", process_index, lambda: (self.rank, self.size))

    def on_local_process(
        self,
        function: Function | None = None,
        local_process_index: int | None = None,
        *,
        local_process_idx: int | None = None,
    ) -> Function:
        """Decorator: the function runs on that local rank of every node and returns None elsewhere.

        As `PartialState.on_local_process`. In a world of one it runs, whatever the index.

        Args:
            function: the function; without it, what is returned decorates one.
            local_process_index: the local rank that runs it.
            local_process_idx: another name of the same, which Accelerate's guides use.

        Raises:
            UsageError: the index is missing or no local rank.
        """
        given = local_process_index if local_process_index is not None else local_process_idx
        return self._on_index(function, "local_process_index", given, lambda: (self.local_rank, self.local_size))

    def _on_index(
        self, function: Function | None, name: str, index: int | None, place: Callable[[], tuple[int, int]]
    ) -> Function:
        """Only where `place()`, a number and how many there are, has the number `index`."""

        def is_here() -> bool:
            if not self.use_distributed:
                return True
            mine, count = place()
            _check_index(name, index, count)
            return mine == index

        _check_index(name, index, place()[1] if self.use_distributed else None)
        return _only_where(is_here, function)


def _only_where(here: Callable[[], bool], function: Function | None) -> Function:
    def decorate(decorated: Function) -> Function:
        if not callable(decorated):
            raise UsageError(f"expected a function to decorate, got {decorated!r}; an index needs its name")

        @functools.wraps(decorated)
        def run(*args: Any, **kwargs: Any) -> Any:
            return decorated(*args, **kwargs) if here() else None

        return run

    return decorate if function is None else decorate(function)


def _check_index(name: str, index: int | None, count: int | None) -> None:
    """Raise a UsageError unless `index` is a number from 0 to `count` - 1, or to whatever while that is not known."""
    if count is None:
        if index is None or index < 0:
            raise UsageError(f"{name} is {index}: expected a rank, 0 or more")
    elif index is None or not 0 <= index < count:
        raise UsageError(f"{name} is {index}: expected a number from 0 to {count - 1}")
