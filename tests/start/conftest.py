"""`started`: a kernel whose workers were started by each of the methods in turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from started import GUARD, METHODS, NOTEBOOK, Started

from notebooks import Notebook


@pytest.fixture(scope="module", params=METHODS)
def shared_start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """The holder behind `started`."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    notebook = Notebook(folder, {"TORCHINDUCTOR_CACHE_DIR": str(folder)})
    try:
        (folder / "work" / "helper_module.py").write_text("state = []\ndef triple(x):\n    return 3 * x\n")
        notebook.run("%load_ext nbsync").ok()
        notebook.run(NOTEBOOK).ok()
        said = notebook.run(f"%nbsync start -n 2 --start-method {request.param}", GUARD).ok()
        yield Started(notebook, request.param, said.stdout + said.stderr)
    finally:
        notebook.shutdown()


@pytest.fixture
def started(shared_start: Started) -> Started:
    """A kernel with the variables of `NOTEBOOK` and two ranks that answer."""
    if shared_start.run("t = torch.ones(1); dist.all_reduce(t); t.item()").texts != ["[0-1] 2.0"]:
        shared_start.notebook.run("%nbsync restart", GUARD).ok()
    return shared_start
