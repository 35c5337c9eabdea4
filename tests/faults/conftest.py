"""`world_of(n)`: ranks of the module's kernel to be hit by faults, and a check that nothing is left over afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from worlds import Ranks, Worlds


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """torch's compiler keeps its cache elsewhere: what then stands in a kernel's TMPDIR was left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("torch")))
        yield


@pytest.fixture(scope="module")
def worlds(caches: None, shared_notebook: Any) -> Worlds:
    """The holder behind `world_of`."""
    return Worlds(shared_notebook.get)


@pytest.fixture
def world_of(worlds: Worlds) -> Iterator[Worlds]:
    """A function that gives a world of so many ranks. After the test the kernel must hold no more than before."""
    worlds.given = worlds.before = None
    yield worlds
    worlds.assert_clean()


@pytest.fixture
def pair(world_of: Worlds) -> Ranks:
    """A world of two ranks."""
    return world_of(2)
