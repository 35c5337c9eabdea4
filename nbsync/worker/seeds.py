"""Random states: a fork alone would give every rank the notebook's."""

from __future__ import annotations

import random

import torch

try:
    import numpy.random
except ModuleNotFoundError:  # torch works without it
    numpy = None  # type: ignore[assignment]


def seed_rank(base: int, rank: int) -> None:
    """Give this rank random states of its own in `random`, numpy and torch, reproducible from `base`."""
    seed = (base + rank) % 2**63
    random.seed(seed)
    torch.manual_seed(seed)
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
