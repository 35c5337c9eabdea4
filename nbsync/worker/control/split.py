"""Each rank's share of some inputs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nbsync.errors import UsageError
from nbsync.worker.control.nested import with_values


@dataclass(frozen=True)
class _Share:
    """The items from `start` to `stop`, and the last item once more when padding makes the shares equal."""

    start: int
    stop: int
    repeat_last: bool


def split(inputs: Any, rank: int, size: int, apply_padding: bool) -> Any:
    """Rank `rank`'s share of `inputs`; the first ranks get one item more when it does not come out even.

    Nothing is communicated: every rank must have the same inputs. The inputs are never changed.

    Raises:
        UsageError: the inputs cannot be sliced, or values of a dict differ in length.
    """
    if size == 1:
        return inputs
    lengths = set(_lengths(inputs))
    if len(lengths) > 1:
        raise UsageError(
            "All values in the dictionary must have the same length, "
            f"found lengths {', '.join(map(str, sorted(lengths)))}"
        )
    each, extras = divmod(lengths.pop() if lengths else 0, size)
    start = rank * each + min(rank, extras)
    is_short = extras > 0 and rank >= extras
    share = _Share(start, start + each + (rank < extras), repeat_last=apply_padding and is_short)
    return _take(inputs, share)


def _lengths(inputs: Any) -> Iterator[int]:
    """The length of `inputs`, or of every leaf of a dict."""
    if isinstance(inputs, Mapping):
        for value in inputs.values():
            yield from _lengths(value)
    elif _is_dataset(inputs) or (_is_sliceable(inputs) and getattr(inputs, "ndim", 1) > 0):
        yield len(inputs)
    else:
        raise _cannot_split(inputs)


def _take(inputs: Any, share: _Share) -> Any:
    if isinstance(inputs, Mapping):
        return with_values(inputs, {key: _take(value, share) for key, value in inputs.items()})
    if _is_dataset(inputs):
        last = [len(inputs) - 1] if share.repeat_last else []
        return inputs.select([*range(share.start, share.stop), *last])
    try:
        taken = inputs[share.start : share.stop]
    except TypeError as error:  # e.g. a deque: a sequence without slices
        raise _cannot_split(inputs) from error
    return _append(taken, inputs[-1:]) if share.repeat_last else taken


def _append(taken: Any, last: Any) -> Any:
    if isinstance(taken, torch.Tensor):
        return torch.cat([taken, last])
    if _is_array(taken):
        return sys.modules["numpy"].concatenate([taken, last])
    if isinstance(taken, range) or not hasattr(taken, "__add__"):
        return [*taken, *last]
    return taken + last


def _is_sliceable(inputs: Any) -> bool:
    return isinstance(inputs, torch.Tensor | Sequence) or _is_array(inputs)


def _is_array(inputs: Any) -> bool:
    numpy = sys.modules.get("numpy")  # whoever passes an array has imported it
    return numpy is not None and isinstance(inputs, numpy.ndarray)


def _is_dataset(inputs: Any) -> bool:
    """Whether this looks like a `datasets.Dataset`; tables with a `select` for columns have no `features`."""
    return hasattr(inputs, "select") and hasattr(inputs, "features") and hasattr(inputs, "__len__")


def _cannot_split(inputs: Any) -> UsageError:
    what = f"a 0-d {type(inputs).__name__}" if getattr(inputs, "ndim", None) == 0 else f"a {type(inputs).__name__}"
    return UsageError(
        f"cannot split {what} between processes: expected a list, tuple, str, range or other sequence with "
        "slices, a tensor, an array, a datasets.Dataset, or a dict of these"
    )
