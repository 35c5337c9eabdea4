"""The garbage collector of a rank: paused now and then, and yet as the user's code wants it."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator

import pytest

from nbsync.worker.collector import Collector
from notebooks import Notebook

_BEFORE = (700, 10, 10)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """In place for the test."""
    threshold = gc.get_threshold()
    for name in ("get_threshold", "set_threshold"):
        monkeypatch.setattr(gc, name, getattr(gc, name))
    gc.set_threshold(*_BEFORE)
    collector = Collector()
    collector.install()
    yield collector
    gc.enable()
    gc.set_threshold(*threshold)


def _collects() -> bool:
    """Whether many new objects are a reason to."""
    before = _collections()
    new = [[i] for i in range(2 * _BEFORE[0])]
    return bool(new) and _collections() > before


def _collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_a_pause(collector: Collector) -> None:
    """It collects nothing, and is not seen by code that turns the collector off for a while, and on again if it was."""
    assert _collects()
    collector.pause()
    assert not _collects()
    assert (gc.isenabled(), gc.get_threshold()) == (True, _BEFORE)
    collector.resume()
    assert _collects()
    assert (gc.isenabled(), gc.get_threshold()) == (True, _BEFORE)


@pytest.mark.parametrize("is_wanted", [True, False])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    "choose",
    [
        lambda is_on: (gc.enable if is_on else gc.disable)(),
        lambda is_on: (ctypes.pythonapi.PyGC_Enable if is_on else ctypes.pythonapi.PyGC_Disable)(),
        lambda is_on: gc.set_threshold(500 if is_on else 0),
    ],
    ids=["in Python", "in C", "by its number"],
)
@pytest.mark.parametrize("is_paused", [True, False])
def test_what_is_chosen_lasts(
    collector: Collector, choose: Callable[[bool], None], before: bool, is_wanted: bool, is_paused: bool
) -> None:
    """Whatever held before, in a pause and between two."""
    choose(before)
    if is_paused:
        collector.pause()
    choose(is_wanted)
    chosen = gc.isenabled(), gc.get_threshold()
    for _ in range(2):
        collector.resume()
        assert (gc.isenabled(), gc.get_threshold()) == chosen
        assert _collects() == is_wanted
        collector.pause()
        assert (gc.isenabled(), gc.get_threshold()) == chosen


def test_a_pause_makes_nothing_new(collector: Collector) -> None:
    """Or else that would let Python collect, in the thread that is to collect nothing."""
    for _ in range(10):
        collector.pause()
        collector.resume()
        new, before = [(i, i, i) for i in range(3000)], _collections()  # now none that was used is kept for the next
        gc.set_threshold(1)
        collector.pause()
        assert _collections() == before
        gc.set_threshold(*_BEFORE)
        del new


def test_a_child_collects(collector: Collector) -> None:
    """A process that is forked in a pause has no helper thread, which would end it."""
    collector.pause()
    pid = os.fork()
    if not pid:
        os._exit(not _collects())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_functions_that_the_notebook_had_before(fresh_notebook: Notebook) -> None:
    """A rank that turns the collector off leaves it off."""
    fresh_notebook.run("from gc import disable, isenabled\n%load_ext nbsync\n%nbsync start -n 2").ok()
    cell = "%%distributed\nimport time\ndisable()\nseen = []\nfor _ in range(30):\n    time.sleep(0.01)\n"
    assert fresh_notebook.run(f"{cell}    seen.append(isenabled())\nany(seen)").ok().texts == ["[0-1] False"]
    assert fresh_notebook.run("%%distributed\nisenabled()").ok().texts == ["[0-1] False"]
