"""The garbage collector of a rank: paused now and then, and yet as the user's code wants it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from nbsync.worker.collector import Collector


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """In place for the test. `is_on()` tells what the interpreter does."""
    for name in ("enable", "disable", "isenabled"):
        monkeypatch.setattr(gc, name, getattr(gc, name))
    collector = Collector()
    collector.install()
    yield collector
    gc.enable()
    collector.resume()


def test_a_pause_is_not_seen(collector: Collector) -> None:
    """Code that turns it off for a while, and on again if it was on, never leaves it off."""
    collector.pause()
    was_on = gc.isenabled()
    collector.resume()
    assert was_on
    assert collector._is_enabled()


@pytest.mark.parametrize("is_wanted", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_what_is_chosen_in_a_pause_lasts(collector: Collector, before: bool, is_wanted: bool) -> None:
    """Whatever held before."""
    (gc.enable if before else gc.disable)()
    collector.pause()
    (gc.enable if is_wanted else gc.disable)()
    collector.resume()
    assert gc.isenabled() == collector._is_enabled() == is_wanted


def test_what_is_chosen_at_the_end_of_a_pause_lasts(collector: Collector) -> None:
    """The main thread turns it off between the look at what it wants and the line that does so."""
    enable = collector._enable

    def too_late() -> None:
        collector._enable = enable
        gc.disable()
        enable()

    collector.pause()
    collector._enable = too_late
    collector.resume()
    assert not gc.isenabled()
    assert not collector._is_enabled()


def test_a_child_collects(collector: Collector) -> None:
    """A process that is forked in a pause has no helper thread, which would end it."""
    collector.pause()
    pid = os.fork()
    if not pid:
        os._exit(not collector._is_enabled())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
