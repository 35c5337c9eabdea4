"""Fixtures: real kernels, and a check that no test leaves a process, a port or a file behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from notebooks import Notebook


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need a GPU are skipped where there is none."""
    if item.get_closest_marker("gpu") is not None and torch.cuda.device_count() == 0:
        pytest.skip("there is no GPU")


class _Shared:
    """A kernel that the tests of a module share; a new one takes its place when a test has broken it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._notebook: Notebook | None = None

    def get(self) -> Notebook:
        if self._notebook is not None and not (self._notebook.is_usable and self._notebook.is_alive):
            self.close()
        if self._notebook is None:
            self._started += 1
            self._notebook = Notebook(self._folder / str(self._started))
            self._notebook.run("%load_ext nbsync").ok()
        return self._notebook

    def close(self) -> None:
        if self._notebook is not None:
            notebook, self._notebook = self._notebook, None
            notebook.shutdown()


@pytest.fixture(scope="module")
def shared_notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Shared]:
    """The holder behind `notebook`."""
    shared = _Shared(tmp_path_factory.mktemp("kernel"))
    yield shared
    shared.close()


@pytest.fixture
def notebook(shared_notebook: _Shared) -> Notebook:
    """A kernel with the extension loaded, shared by the tests of a module."""
    return shared_notebook.get()


@pytest.fixture
def fresh_notebook(tmp_path: Path) -> Iterator[Notebook]:
    """A kernel of this test's own, with the extension loaded."""
    notebook = Notebook(tmp_path)
    try:
        notebook.run("%load_ext nbsync").ok()
        yield notebook
    finally:
        notebook.shutdown()
