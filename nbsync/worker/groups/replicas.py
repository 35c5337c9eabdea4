"""Whether the ranks' copies of a DDP model are still the same.

DDP makes them equal once, and then trusts that all ranks take the same steps. An error or interrupt may find one rank
before an optimizer step and another after it; from then on they would train different models, and nothing would tell.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from typing import Any

import torch

from nbsync.errors import describe_ranks

_SAMPLE = 16  # elements of each parameter: an optimizer's step changes all of them


def changes(model: Any) -> int:
    """How often the parameters were changed in place: found at once, and as often on all ranks while all is well."""
    return sum(parameter._version for parameter in model.parameters() if not parameter.is_inference())


def fingerprint(model: Any) -> int | None:
    """Equal where the parameters are; None if they are of a kind that cannot be looked at without other ranks."""
    parameters = list(model.parameters())
    if any(type(p) not in (torch.nn.Parameter, torch.Tensor) or p.is_meta for p in parameters):
        return None
    try:
        parts = [p.detach().flatten()[:_SAMPLE].to("cpu", torch.float64) for p in parameters]
    except RuntimeError:  # the device has failed
        return None
    return zlib.crc32(torch.cat(parts).numpy().tobytes()) if parts else None


def tell_of_difference(model: Any, ranks: Sequence[int], prints: Sequence[int | None]) -> bool:
    """Say so if the ranks' copies differ; return whether they do."""
    together: dict[int, list[int]] = {}
    for rank, found in zip(ranks, prints, strict=True):
        if found is not None:
            together.setdefault(found, []).append(rank)
    if len(together) < 2:
        return False
    sides = " and ".join(describe_ranks(same) for same in together.values())
    name = type(model.module).__name__
    print(
        f"nbsync: the DDP model {name} has other parameters on {sides}: it was stopped where some were past an "
        "optimizer step and others were not. Load a checkpoint, or make them equal: "
        "`for p in model.parameters(): dist.broadcast(p.data, 0)`",
        file=sys.stderr,
    )
    return True
