"""A check around the tests of this folder: this process is left without new children and listening sockets."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from notebooks import Proc, alive, family, listeners, poll


@pytest.fixture
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the test, no process that it started runs, and no port that it opened is held.

    A kernel or a shared session that the test uses is looked at when it ends.
    """
    if {"notebook", "fresh_notebook", "session"} & set(request.fixturenames):
        yield
        return
    me = os.getpid()
    children, ports = family(me), listeners([me])

    def left() -> tuple[list[Proc], set[str]]:
        gc.collect()
        return alive(family(me) - children), listeners([me]) - ports

    yield
    poll(lambda: left() == ([], set()), 1.0)
    assert left() == ([], set())
