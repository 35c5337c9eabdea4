"""Rank specs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbsync.errors import UsageError
from nbsync.kernel.ranks import parse_ranks
from nbsync.protocol.words import format_ranks, ranks_do


@pytest.mark.parametrize(
    ("spec", "ranks"),
    [
        ("0", (0,)),
        ("0,2", (0, 2)),
        ("0-3", (0, 1, 2, 3)),
        ("0,2-3", (0, 2, 3)),
        ("3,1,3,0-1", (0, 1, 3)),
        (" 0 , 2 - 3 ", (0, 2, 3)),
        ("0 2", (0, 2)),
        ("0  2 -  3 last", (0, 2, 3)),
        ("2-2", (2,)),
        ("main", (0,)),
        ("local_main", (0,)),
        ("last", (3,)),
        ("all", (0, 1, 2, 3)),
        ("main,last", (0, 3)),
        ("last,1", (1, 3)),
    ],
)
def test_spec(spec: str, ranks: tuple[int, ...]) -> None:
    """Each form of spec, and any mixture, names sorted ranks without repeats."""
    assert parse_ranks(spec, 4) == ranks


@pytest.mark.parametrize(
    "spec",
    [
        "",
        ",",
        "0,",
        "4",
        "0-4",
        "3-1",
        "-1",
        "1-",
        "0, ,1",
        "first",
        "Main",
        "0;1",
        "1.0",
        "²",
        "0-999999999",
        "9" * 5000,
    ],
)
def test_bad_spec_is_explained(spec: str) -> None:
    """A bad spec raises a UsageError that says what came, what is accepted and which ranks exist."""
    with pytest.raises(UsageError) as caught:
        parse_ranks(spec, 4)
    message = str(caught.value)
    assert repr(spec) in message
    assert "ranks 0-3" in message
    assert all(word in message for word in ("main", "local_main", "last", "all", "0-3", "0,2"))


def test_bad_spec_in_a_world_of_one() -> None:
    """A world of one says that it has only rank 0."""
    with pytest.raises(UsageError, match="only rank 0"):
        parse_ranks("1", 1)


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ((), ""),
        ((5,), "5"),
        ((0, 1), "0-1"),
        ((0, 2), "0,2"),
        ((0, 1, 2, 3), "0-3"),
        ((0, 2, 3, 4), "0,2-4"),
        ((3, 1, 2, 2), "1-3"),
    ],
)
def test_format(ranks: tuple[int, ...], text: str) -> None:
    """Neighbouring ranks are written as a range, others in a list."""
    assert format_ranks(ranks) == text


@given(st.sets(st.integers(0, 99), min_size=1))
def test_format_then_parse_is_the_identity(ranks: set[int]) -> None:
    """What format_ranks writes, parse_ranks reads."""
    assert parse_ranks(format_ranks(ranks), 100) == tuple(sorted(ranks))


def test_what_ranks_do() -> None:
    """A sentence about one rank, or about several."""
    assert ranks_do([1], "has finished") == "rank 1 has finished"
    assert ranks_do([0, 1], "has finished") == "ranks 0-1 have finished"
    assert ranks_do([0, 2, 3], "raised ValueError") == "ranks 0,2-3 raised ValueError"
