"""Fingerprints of what ranks hold: equal where all bits are, however it lies in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nbsync.worker.groups.checksums import fingerprint

_TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
_TYPES += [torch.complex64, torch.complex128, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", _TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (8, 16), (300, 777), (1000, 800)])
def test_any_element_counts(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Also the last one, of any type; a copy that lies elsewhere is equal."""
    torch.manual_seed(0)
    tensor = (torch.rand(shape) * 9).to(dtype)
    found = fingerprint([tensor])
    assert found == fingerprint([tensor.clone()])
    assert found is not None
    apart = torch.cat([tensor.flatten()[:1], tensor.flatten()])[-tensor.numel() :].view(shape)  # at an odd address
    assert found == fingerprint([apart])
    for place in {0, tensor.numel() // 2, tensor.numel() - 1} if tensor.numel() else ():
        other = tensor.clone()
        other.view(-1)[place] = 1 if other.view(-1)[place] == 0 else 0
        assert found != fingerprint([other])


def test_order_counts_and_layout_does_not() -> None:
    """The same elements elsewhere are another tensor; the same ones in another layout are not."""
    tensor = torch.arange(200_000.0).view(400, 500)
    assert fingerprint(tensor) == fingerprint(tensor.t().contiguous().t())
    assert fingerprint(tensor) != fingerprint(tensor.flip(0))
    half = tensor.flatten().split(100_000)
    assert fingerprint(tensor) != fingerprint(torch.cat([half[1], half[0]]))


def test_what_is_not_a_number() -> None:
    """It equals itself here: two ranks with it are no different."""
    tensor = torch.tensor([1.0, float("nan"), 2.0])
    assert fingerprint(tensor) == fingerprint(tensor.clone())
    assert fingerprint(tensor) != fingerprint(torch.tensor([1.0, float("nan"), 3.0]))


@pytest.mark.parametrize(
    "other", [{}, {"step": 2}, {"step": 1, "moments": [torch.ones(2), torch.zeros(2)]}, {"step": 1, "moments": None}]
)
def test_the_state_of_an_optimizer(other: Any) -> None:
    """Numbers and tensors in it count, the order of its names does not."""
    state = {"step": 1, "moments": [torch.ones(2), torch.ones(2)]}
    assert fingerprint(state) == fingerprint(dict(reversed(state.items())))
    assert fingerprint(state) != fingerprint(other)


@pytest.mark.parametrize("tensor", [torch.ones(2, device="meta"), torch.ones(2).to_sparse()], ids=["meta", "sparse"])
def test_what_cannot_be_looked_at(tensor: torch.Tensor) -> None:
    """It has no fingerprint, and does no harm."""
    assert fingerprint([torch.ones(2), tensor]) is None


def test_nothing_is_changed_or_copied() -> None:
    """A parameter is looked at in pieces, and its version stays."""
    parameter = torch.nn.Parameter(torch.ones(4, 1_000_000))
    with torch.profiler.profile(profile_memory=True) as profile:
        assert fingerprint([parameter]) is not None
    assert max((event.cpu_memory_usage for event in profile.events()), default=0) < 1_000_000
    assert parameter._version == 0
