"""What an operation of a process group is: the words in which ranks tell each other what they are about to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from nbsync.worker.control.report import barrier_name

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
    "reduce_scatter": 0,
    "reduce_scatter_single": 0,
    "reduce_scatter_single_coalesced": 0,
    "alltoall": None,
    "all_to_all_single": None,
    "barrier": None,
}
_REDUCTIONS = dist.ReduceOp.RedOpType.__members__
_PYTHON_NAMES = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "all_gather_single": "all_gather_into_tensor",
    "reduce_scatter_single": "reduce_scatter_tensor",
    "alltoall": "all_to_all",
}


@dataclass(frozen=True)
class Collective:
    """A collective that this process waits for: its name, its group, and its number in that group."""

    name: str
    group: str
    ranks: tuple[int, ...]
    number: int


class Message(NamedTuple):
    """A message that this process waits for: `irecv` or `isend`, and the rank at its other end."""

    name: str
    peer: int

    @property
    def ranks(self) -> tuple[int, ...]:
        """Whom this process waits for."""
        return (self.peer,)


def python_name(method: str) -> str:
    """As torch.distributed calls what a method of `ProcessGroup` does."""
    return _PYTHON_NAMES.get(method, method)


def describe(method: str, args: Sequence[Any], options: Any) -> str:
    """A collective with its shapes, types, reduction and root: what must be equal on all ranks."""
    index = COLLECTIVES[method]
    return _describe(method, [] if index is None else describe_tensors(args[index]), options)


def describe_loosely(method: str, args: Sequence[Any], options: Any) -> str:
    """The same with the numbers of elements for the shapes: what gives right numbers if it is equal on all ranks."""
    index = COLLECTIVES[method]
    return _describe(method, [] if index is None else measure_tensors(args[index]), options)


def _describe(method: str, tensors: Sequence[str], options: Any) -> str:
    parts = [python_name(method), *tensors]
    if hasattr(options, "reduceOp"):
        parts.append(next(name.lower() for name, kind in _REDUCTIONS.items() if options.reduceOp == kind))
    if method == "barrier" and barrier_name() not in (None, _UNNAMED):
        parts.append(repr(barrier_name()))
    if hasattr(options, "rootRank") and method != "barrier":
        parts.append(f"root {options.rootRank}")
    return " ".join(parts)


def describe_tensors(argument: Any) -> list[str]:
    """`(2, 3) float32` for each tensor."""
    return [f"{tuple(tensor.shape)} {_type_name(tensor)}" for tensor in tensors_in(argument)]


def measure_tensors(argument: Any) -> list[str]:
    """`6 float32` for each tensor."""
    return [f"{tensor.numel()} {_type_name(tensor)}" for tensor in tensors_in(argument)]


def _type_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def tensors_in(argument: Any) -> list[torch.Tensor]:
    """The tensors in lists of lists."""
    if isinstance(argument, torch.Tensor):
        return [argument]
    return [tensor for part in argument for tensor in tensors_in(part)]
