"""Collectives over nested tensors. A wrong shape, dtype or structure is an error on every rank, never a hang.

Each takes `size`, the number of ranks in the default process group; one means no group, and nothing is sent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from nbsync.errors import UsageError
from nbsync.worker.control.nested import leaves, map_leaves

_REDUCTIONS = ("sum", "mean", "max", "none")


@dataclass(frozen=True)
class _Leaf:
    """What the ranks must have in common. `kind` is a dtype, or a type's name for what is not a tensor."""

    path: str
    kind: str
    shape: tuple[int, ...] | None

    @property
    def without_sizes(self) -> tuple[str, str, int]:
        """What padding cannot make equal."""
        return self.path, self.kind, len(self.shape or ())

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return where + (self.kind if self.shape is None else f"{self.shape} {self.kind}")


_Layout = tuple[_Leaf, ...]


def gather(data: Any, size: int) -> Any:
    """Every rank's tensors, concatenated along dimension 0; a 0-d tensor counts as one element."""
    layouts = _exchange_layouts("gather", data, size)
    _require_equal("gather", layouts)

    def gather_one(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor[None] if tensor.ndim == 0 else tensor
        if size == 1:
            return flat
        # zeros and not empty_like: that would copy strides, and a collective needs dense memory
        parts = [torch.zeros(flat.shape, dtype=flat.dtype, device=flat.device) for _ in range(size)]
        dist.all_gather(parts, flat.contiguous())
        return torch.cat(parts)

    return map_leaves(gather_one, data)


def reduce(data: Any, size: int, reduction: str, scale: float) -> Any:
    """A new structure of tensors reduced over the ranks and multiplied by `scale`."""
    if reduction not in _REDUCTIONS:
        raise UsageError(f"reduction is {reduction!r}: expected one of {', '.join(map(repr, _REDUCTIONS))}")
    layouts = _exchange_layouts("reduce", data, size)
    if reduction != "none":
        _require_equal("reduce", layouts)

    def reduce_one(tensor: torch.Tensor) -> torch.Tensor:
        result = tensor.clone(memory_format=torch.contiguous_format)
        if reduction == "none":
            return result
        if size > 1:
            dist.all_reduce(result, dist.ReduceOp.MAX if reduction == "max" else dist.ReduceOp.SUM)
        if reduction == "mean":
            result = result / size
        return result if scale == 1.0 else result * scale

    return map_leaves(reduce_one, data)


def broadcast(data: Any, size: int, source: int) -> Any:
    """Overwrite every rank's tensors, in place, with those of rank `source`; returns `data`."""
    _check_source(source, size)
    layouts = _exchange_layouts("broadcast", data, size)
    _require_equal("broadcast", layouts)
    if size > 1:
        for _, tensor in leaves(data):
            target = tensor.detach()
            dense = target.contiguous()
            dist.broadcast(dense, src=source)
            if dense is not target:
                target.copy_(dense)
    return data


def broadcast_object_list(objects: list[Any], size: int, source: int) -> list[Any]:
    """Replace the content of every rank's list with that of rank `source`; returns the list."""
    _check_source(source, size)
    if size > 1:
        # One object and not many: lists of unequal length would otherwise end the process inside gloo.
        box = [list(objects)]
        dist.broadcast_object_list(box, src=source)
        objects[:] = box[0]
    return objects


def gather_object(value: Any, size: int) -> list[Any]:
    """Every rank's object in a list, flattened by one level when all of them are lists or tuples."""
    found = [value]
    if size > 1:
        found = [None] * size
        dist.all_gather_object(found, value)
    if all(isinstance(each, list | tuple) for each in found):
        return [item for each in found for item in each]
    return found


def pad(data: Any, size: int, dim: int, pad_index: float, pad_first: bool) -> Any:
    """The tensors padded along `dim` to the longest of any rank; those without that dimension stay."""
    layouts = _exchange_layouts("pad_across_processes", data, size)
    _require_equal("pad_across_processes", layouts, besides_sizes=True)
    same_leaf_of_all_ranks = zip(*layouts, strict=True)
    longest = iter([_longest(ranks) for ranks in same_leaf_of_all_ranks])

    def pad_one(tensor: torch.Tensor) -> torch.Tensor:
        lengths = next(longest)
        if not -tensor.ndim <= dim < tensor.ndim or tensor.shape[dim] == lengths[dim]:
            return tensor
        shape = list(tensor.shape)
        shape[dim] = lengths[dim]
        result = torch.full(shape, pad_index, dtype=tensor.dtype, device=tensor.device)
        start = lengths[dim] - tensor.shape[dim] if pad_first else 0
        result.narrow(dim, start, tensor.shape[dim]).copy_(tensor)
        return result

    return map_leaves(pad_one, data)


def control_device() -> torch.device:
    """Where small tensors of our own travel: the CPU, unless the process group only knows GPUs."""
    if "cpu:" in dist.get_backend_config():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _exchange_layouts(operation: str, data: Any, size: int) -> list[_Layout]:
    """What every rank brings to `operation`; raises on all of them when one brings more than tensors."""
    mine = tuple(_describe(path, leaf) for path, leaf in leaves(data))
    layouts = [mine] * size
    if size > 1 and not _all_agree(mine, size):
        dist.all_gather_object(layouts, mine)
    for rank, layout in enumerate(layouts):
        for leaf in layout:
            if leaf.shape is None:
                what = f"{leaf.kind} at {leaf.path}" if leaf.path else leaf.kind
                raise UsageError(f"{operation} takes tensors in lists, tuples and dicts; rank {rank} passed {what}")
    return layouts


def _all_agree(mine: _Layout, size: int) -> bool:
    """Whether all ranks have the same layout, by one small collective; all of them get the same answer."""
    digest = int.from_bytes(hashlib.blake2b(repr(mine).encode(), digest_size=8).digest(), "big", signed=True)
    ours = torch.tensor([digest], device=control_device())
    digests = [torch.empty_like(ours) for _ in range(size)]
    dist.all_gather(digests, ours)
    return len({int(each) for each in digests}) == 1


def _require_equal(operation: str, layouts: list[_Layout], *, besides_sizes: bool = False) -> None:
    """Raise on all ranks unless their layouts are the same, or may only differ in the tensors' sizes."""
    same_besides_sizes = len({tuple(leaf.without_sizes for leaf in each) for each in layouts}) == 1
    if same_besides_sizes and (besides_sizes or len(set(layouts)) == 1):
        return
    lines = [f"\n  rank {rank}: {'; '.join(map(str, layout)) or 'nothing'}" for rank, layout in enumerate(layouts)]
    advice = "\npad_across_processes(tensor) first makes them equal"
    raise UsageError(
        f"{operation} needs {'the same tensors' if besides_sizes else 'the same shapes'} on every rank:"
        + "".join(lines)
        + (advice if operation == "gather" and same_besides_sizes else "")
    )


def _longest(ranks: tuple[_Leaf, ...]) -> list[int]:
    """The largest size of any rank, for each dimension."""
    return [max(sizes) for sizes in zip(*(leaf.shape or () for leaf in ranks), strict=True)]


def _describe(path: str, leaf: Any) -> _Leaf:
    if isinstance(leaf, torch.Tensor):
        return _Leaf(path, str(leaf.dtype).removeprefix("torch."), tuple(leaf.shape))
    return _Leaf(path, type(leaf).__name__, None)


def _check_source(source: int, size: int) -> None:
    if not 0 <= source < size:
        raise UsageError(f"from_process is {source}: expected a rank from 0 to {size - 1}")
