"""`live`: the module's kernel with two idle workers."""

from __future__ import annotations

import pytest

from notebooks import Notebook


@pytest.fixture
def live(notebook: Notebook) -> Notebook:
    """The module's kernel with a session of two ranks that answer."""
    notebook.run("%nbsync start -n 2").ok()
    if notebook.run("%%distributed\nrank").texts != ["[0] 0", "[1] 1"]:  # an earlier test ended a rank
        notebook.run("%nbsync restart").ok()
    return notebook
