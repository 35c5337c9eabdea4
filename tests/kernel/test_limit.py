"""When a run has had its time, by a clock that the test sets."""

from __future__ import annotations

from nbsync.kernel.supervision.limit import EVERY, GRACE_AFTER_FAILURE, TELL_LIMIT, TRIES, Limit


def test_no_limit() -> None:
    limit = Limit(None, 0.0)
    assert limit.deadline is None
    assert limit.late([0, 1], set(), 1e9) == ()


def test_a_time_limit_holds_for_all() -> None:
    """Also for a rank that has raised: it has had its time."""
    limit = Limit(5.0, 0.0)
    assert limit.late([0, 1], {1}, 4.9) == ()
    for turn in range(TRIES):
        assert limit.late([0, 1], {1}, 5.0 + turn * EVERY) == (0, 1)
        assert limit.late([0, 1], {1}, 5.0 + turn * EVERY + EVERY / 2) == ()
        assert not limit.is_exhausted([0, 1])
    assert limit.late([0], {1}, 5.0 + TRIES * EVERY) == (0,)
    assert limit.is_exhausted([0])
    assert not limit.is_exhausted([0, 1])


def test_a_failure_ends_those_that_go_on_and_waits_for_those_that_tell() -> None:
    limit = Limit(None, 0.0)
    limit.fail(2.0)
    limit.fail(9.0)  # only the first counts
    assert limit.late([0, 1], {1}, 2.0) == ()
    assert limit.late([0, 1], {1}, 2.0 + GRACE_AFTER_FAILURE) == (0,)
    assert limit.late([1], {1}, 2.0 + TELL_LIMIT - 0.1) == ()
    for turn in range(TRIES):
        assert not limit.is_exhausted([1])
        assert limit.late([1], {1}, 2.0 + TELL_LIMIT + turn * EVERY + 1.0) == (1,)


def test_a_rank_is_given_up_after_interrupts_of_its_own() -> None:
    """While another tells, one that goes on uses up its own."""
    limit = Limit(None, 0.0)
    limit.fail(0.0)
    while limit.late([0, 1], {1}, limit.deadline or 0.0) == (0,):
        pass
    assert limit.is_exhausted([0])
    assert not limit.is_exhausted([1])
