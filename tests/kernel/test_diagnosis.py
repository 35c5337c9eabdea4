"""Whether ranks can go on, judged from two looks at where they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nbsync.kernel.supervision.stuck import diagnose
from nbsync.protocol.reports import Where

_WAITS = Where(1, 1, "Cell In[1], line 2", "all_reduce", number=1, cpu=1.0, queued=1.0)
_BACKWARD = replace(_WAITS, waiting_in="backward", number=None)
_RECEIVES = replace(_WAITS, waiting_in="recv", number=None, peer=0)


@pytest.mark.parametrize(
    "change", [{"cpu": 1.2}, {"queued": 1.2}, {"queued": 0.8}, {"line": "Cell In[1], line 3"}, {"number": 2}]
)
def test_a_rank_that_moves(change: dict[str, object]) -> None:
    """It has come further, has computed, or would have if a processor had been free."""
    before = {0: _WAITS, 1: _BACKWARD}
    assert diagnose(before, before, {}, 2) is not None
    assert diagnose(before, {0: _WAITS, 1: replace(_BACKWARD, **change)}, {}, 2) is None  # type: ignore[arg-type]


def test_a_message_in_a_backward_pass() -> None:
    """It has the name of the pass, as a collective in C++ has: still the ranks are not in the same operation."""
    world = {0: _BACKWARD, 1: replace(_BACKWARD, peer=0)}
    verdict = diagnose(world, world, {}, 2)
    assert verdict is not None
    assert "rank 1 waits in backward for rank 0" in verdict.told


def test_a_rank_with_another_thread() -> None:
    """It may yet do what somebody waits for."""
    world = {0: _WAITS, 1: replace(_RECEIVES, is_alone=False)}
    verdict = diagnose(world, world, {}, 2)
    assert verdict is not None
    assert verdict.doubt == (1,)
    assert "rank 1 waits in recv for rank 0" in verdict.told
