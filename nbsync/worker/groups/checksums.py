"""A number for all that tensors hold, by which ranks find out whether they hold the same.

All bits count: a step may change a few elements only, as a row of an embedding. They are looked at in pieces, and where
they are: no model is copied for it, nor brought from a GPU.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import torch

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_IN_CACHE = 2**15  # elements of a piece: a processor is fastest with what stays in its cache
_AT_ONCE = 2**22  # and a GPU with few large pieces
_FACTOR = 1_000_003  # makes the order of the pieces count


def fingerprint(values: Any) -> int | None:
    """The same for equal values: tensors and numbers, also in lists and dictionaries, as optimizers keep them.

    Returns:
        None where they cannot be looked at by one rank alone.
    """
    leaves = list(_leaves(values))
    if not all(_is_plain(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)):
        return None
    try:
        sums = [_checksum(leaf.detach()) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        found = [each.item() if isinstance(each, torch.Tensor) else each for each in sums]  # once all have begun
    except RuntimeError:  # the device has failed, or has no memory left
        return None
    return zlib.crc32(repr(found).encode())


def _leaves(values: Any) -> Iterator[Any]:
    if isinstance(values, dict):
        for key in sorted(values, key=str):
            yield str(key)
            yield from _leaves(values[key])
    elif isinstance(values, (list, tuple)):
        for each in values:
            yield from _leaves(each)
    elif isinstance(values, (torch.Tensor, int, float, str, type(None))):
        yield values


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is no shard, and has data."""
    return type(tensor) in (torch.nn.Parameter, torch.Tensor) and not tensor.is_meta


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of all bits as integers, each times another number. It stays on the device, and is not waited for."""
    flat = _as_real(tensor).flatten()  # a view, but of a tensor with an order of its own
    size = flat.element_size()
    width = next(width for width in (8, 4, 2, 1) if width >= size and flat.numel() * size % width == 0)
    length = _IN_CACHE if flat.is_cpu else _AT_ONCE
    weights = torch.arange(min(length, flat.numel() * size // width), device=flat.device) * 2 + 1
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for piece in torch.split(flat, length * width // size):
        if piece.storage_offset() * size % width:
            piece = piece.clone()
        integers = piece.view(_INTEGERS[width])
        total = total * _FACTOR + (integers * weights[: len(integers)]).sum()
    return total


def _as_real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
