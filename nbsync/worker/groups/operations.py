"""What an operation of a process group is: the words in which ranks tell each other what they are about to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from nbsync.worker.control.report import barrier_name

#: What gloo and the store say when a peer has gone or the connection was cut.
PEER_GONE = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|Socket closed|recv\(\) failed|"
    r"Connection was likely closed|failed to recv|connectFullMesh failed|writev? .*: Bad file|"
    r"Transport endpoint is not connected|gloo.*(read|write)v?.*error|Application timeout caused pair closure",
    re.IGNORECASE,
)
_TIMED_OUT = re.compile(r"Timed out waiting \d+ms for (send|recv) operation")
_UNNAMED = "wait_for_everyone"  # how `World` calls a barrier that the user has not named

#: The collectives: which argument must agree in shape and type on all ranks; None compares nothing but the operation.
COLLECTIVES: dict[str, int | None] = {
    "allreduce": 0,
    "allreduce_coalesced": 0,
    "broadcast": 0,
    "reduce": 0,
    "allgather": 1,
    "allgather_coalesced": 1,
    "all_gather_single": 1,
    "all_gather_single_coalesced": 1,
    "gather": 1,
    "scatter": 0,
    "reduce_scatter": 1,  # its outputs may differ
    "reduce_scatter_single": 1,
    "reduce_scatter_single_coalesced": 1,
    "alltoall": None,
    "all_to_all_single": None,
    "barrier": None,
}
_REDUCTIONS = dist.ReduceOp.RedOpType.__members__
_PYTHON_NAMES = {
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce_coalesced",
    "allgather": "all_gather",
    "all_gather_single": "all_gather_into_tensor",
    "all_gather_single_coalesced": "all_gather_into_tensor_coalesced",
    "reduce_scatter_single": "reduce_scatter_tensor",
    "reduce_scatter_single_coalesced": "reduce_scatter_tensor_coalesced",
    "alltoall": "all_to_all",
}


@dataclass(frozen=True)
class Collective:
    """A collective that this process waits for: its name, its group, and its number in that group.

    Attributes:
        must: a checksum of what it has to be on all ranks, if that is compared when it has ended.
    """

    name: str
    group: str
    ranks: tuple[int, ...]
    number: int
    must: str | None = None


class Message(NamedTuple):
    """A message that this process waits for: `irecv` or `isend`, and the rank at its other end."""

    name: str
    peer: int

    @property
    def ranks(self) -> tuple[int, ...]:
        """Whom this process waits for."""
        return (self.peer,)


class Intent(NamedTuple):
    """What this process is about to do, as far as it has to be the same on all ranks concerned."""

    name: str
    tensors: Sequence[torch.Tensor]
    details: Sequence[str] = ()

    @property
    def told(self) -> str:
        """With its shapes: `all_reduce (2, 3) float32 sum`."""
        return self._tell(f"{tuple(tensor.shape)}" for tensor in self.tensors)

    @property
    def must(self) -> str:
        """The same with the numbers of elements: what gives right numbers if it is equal on all ranks."""
        return self._tell(f"{tensor.numel()}" for tensor in self.tensors)

    def _tell(self, sizes: Iterable[str]) -> str:
        types = (str(tensor.dtype).removeprefix("torch.") for tensor in self.tensors)
        sized = (f"{size} {kind}" for size, kind in zip(sizes, types, strict=True))
        with unseen():
            return " ".join([self.name, *sized, *self.details])


def unseen() -> AbstractContextManager[None]:
    """In here, neither the user's modes for functions of torch nor their kinds of tensors see what is asked of one."""
    return torch._C.DisableTorchFunction()


def ends_connection(text: str) -> bool:
    """Whether gloo has closed a connection for good, by what an operation has raised: after a timeout too."""
    return any(pattern.search(text) for pattern in (PEER_GONE, _TIMED_OUT))


def python_name(method: str) -> str:
    """As torch.distributed calls what a method of `ProcessGroup` does."""
    return _PYTHON_NAMES.get(method, method)


def intent_of(method: str, args: Sequence[Any], options: Any) -> Intent:
    """What a call of a method of `ProcessGroup` is."""
    index, details = COLLECTIVES[method], []
    if hasattr(options, "reduceOp"):
        details.append(next(name.lower() for name, kind in _REDUCTIONS.items() if options.reduceOp == kind))
    if method == "barrier" and barrier_name() not in (None, _UNNAMED):
        details.append(repr(barrier_name()))
    if hasattr(options, "rootRank") and method != "barrier":
        details.append(root(options.rootRank))
    return Intent(python_name(method), [] if index is None else tensors_in(args[index]), details)


def root(rank: int) -> str:
    """How the root of a collective is told: its rank in the group."""
    return f"root {rank}"


def tensors_in(argument: Any) -> list[torch.Tensor]:
    """The tensors in lists of lists."""
    if isinstance(argument, torch.Tensor):
        return [argument]
    return [tensor for part in argument for tensor in tensors_in(part)]
