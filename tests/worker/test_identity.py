"""What runs on which rank."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import pytest

from nbsync.errors import UsageError
from nbsync.worker.control.world import World


def printed(call: Callable[[], Any]) -> str:
    with redirect_stdout(io.StringIO()) as out:
        call()
    return out.getvalue()


def test_print_is_once_per_node(run_ranks: Any) -> None:
    """Local rank 0 prints, with print's own arguments."""
    found = run_ranks(lambda: printed(lambda: World().print("a", 1, sep="-")), 4, local_size=2)
    assert found == ["a-1\n", "", "a-1\n", ""]


def test_decorators_choose_their_ranks(run_ranks: Any) -> None:
    """Each decorator runs its function, with arguments, on its own ranks; elsewhere the call gives None."""

    def rank_main() -> Any:
        w = World()
        decorators = [
            w.on_main_process,
            w.on_main_process(),
            w.on_local_main_process,
            w.on_local_main_process(),
            w.on_last_process,
            w.on_last_process(),
            w.on_process(process_index=1),
            w.on_local_process(local_process_index=1),
            w.on_local_process(local_process_idx=0),
        ]
        calls = [decorate(lambda a, b=0: a + b) for decorate in decorators]
        calls.append(w.on_process(lambda a, b=0: a + b, process_index=2))
        calls.append(w.on_local_process(lambda a, b=0: a + b, 1))
        results = [call(1, b=1) for call in calls]
        assert set(results) <= {2, None}
        return [result == 2 for result in results]

    by_rank = run_ranks(rank_main, 4, local_size=2)
    ranks = [[rank for rank in range(4) if ran[rank]] for ran in zip(*by_rank, strict=True)]
    assert ranks == [[0], [0], [0, 2], [0, 2], [3], [3], [1], [1, 3], [0, 2], [2], [1, 3]]


def test_a_decorated_function_keeps_its_name(plain: pytest.MonkeyPatch) -> None:
    """The name and docstring of a function survive each decorator, wherever it runs."""
    plain.setenv("RANK", "1")
    plain.setenv("WORLD_SIZE", "3")
    w = World()

    def save() -> None:
        """Saves."""

    for decorate in (w.on_main_process, w.on_last_process, w.on_process(process_index=1)):
        decorated: Any = decorate(save)
        assert (decorated.__name__, decorated.__doc__, decorated.__wrapped__) == ("save", "Saves.", save)


def test_decorators_decide_at_the_call(plain: pytest.MonkeyPatch) -> None:
    """A function decorated before the launch, as in a notebook, runs where it should after it."""
    calls = World().on_main_process(lambda: "ran")
    assert calls() == "ran"
    plain.setenv("RANK", "1")
    plain.setenv("WORLD_SIZE", "2")
    assert calls() is None


@pytest.mark.parametrize("index", [None, -1, 2])
def test_an_index_that_is_no_rank_is_an_error(plain: pytest.MonkeyPatch, index: int | None) -> None:
    """At the decoration, and with the valid numbers; Accelerate silently runs such a function nowhere."""
    plain.setenv("RANK", "0")
    plain.setenv("WORLD_SIZE", "4")
    plain.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=f"local_process_index is {index}: expected a number from 0 to 1"):
        World().on_local_process(print, index)
    with pytest.raises(UsageError, match=r"process_index is .*: expected a number from 0 to 3"):
        World().on_process(print, 4 if index == 2 else index)


def test_an_index_in_the_place_of_the_function_is_an_error(plain: pytest.MonkeyPatch) -> None:
    """`on_process(0)` says that the index needs its name."""
    with pytest.raises(UsageError, match="an index needs its name"):
        World().on_process(0, 0)  # type: ignore[arg-type]
