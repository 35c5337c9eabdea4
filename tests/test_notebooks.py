"""Every notebook in notebooks/, executed as `make demo` executes it, and as it is committed."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from notebooks import alive, poll, processes, without_colours

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LIMIT = 110.0  # seconds for a whole notebook, on a busy machine; it takes 20 on two idle cores
MARK = "NBSYNC_TEST_NOTEBOOK"

_UNWANTED = {
    "a path of this machine": re.compile(r"/(?:work|root|home|tmp|usr|opt|var)/"),
    "a warning": re.compile(r"warning", re.IGNORECASE),
    "a process id": re.compile(r"\bpids?\b", re.IGNORECASE),
    "an address": re.compile(r"\b0x[0-9a-f]{6,}"),
}


@dataclass(frozen=True)
class Executed:
    """What `notebooks/run.py` did."""

    name: str
    returncode: int
    report: str
    cells: list[nbformat.NotebookNode]
    left: list[str]


def run(source: Path, folder: Path) -> Executed:
    """Execute a copy of `source` in `folder`, in a process group of its own that is killed at the limit."""
    copy, target, temporary = folder / source.name, folder / "build" / source.name, folder / "tmp"
    copy.write_bytes(source.read_bytes())
    temporary.mkdir()
    own = {
        "TMPDIR": str(temporary),
        "IPYTHONDIR": str(folder / "ipython"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"),  # torch leaves it where it is
    }
    mark = secrets.token_hex(8)
    process = subprocess.Popen(
        [sys.executable, FOLDER / "run.py", copy, target],
        env=os.environ | own | {MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        report, _ = process.communicate(timeout=LIMIT)
    finally:
        _kill_group(process)
    assert target.exists(), report
    poll(lambda: not _marked(mark), limit=1.0)
    left = [*_marked(mark), *(path.name for path in temporary.iterdir())]
    return Executed(source.name, process.returncode, report, code_cells(target), left)


def _kill_group(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _marked(mark: str) -> list[str]:
    """The processes that were started by this run, however far down."""
    return [f"process {p.pid} ({p.name})" for p in alive(p for p in processes() if _carries(p.pid, mark))]


def _carries(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def shown(cell: nbformat.NotebookNode) -> str:
    """Everything that a reader sees below the cell, as text."""
    parts: list[str] = []
    for output in cell.outputs:
        parts += output.get("traceback", [])
        parts.append(output.get("text", ""))
        parts += [str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return without_colours("\n".join(parts))


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def executed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """The notebook, executed once for all tests below."""
    return run(request.param, tmp_path_factory.mktemp(request.param.stem))


@pytest.mark.slow
def test_it_runs_from_a_fresh_kernel(executed: Executed) -> None:
    """All cells run in order, each once; the report says where the executed notebook lies."""
    assert executed.returncode == 0, executed.report
    assert [cell.execution_count for cell in executed.cells] == list(range(1, len(executed.cells) + 1))
    assert f"executed notebook: {executed.name}" in re.sub(r": /.*/", ": ", executed.report)


@pytest.mark.slow
def test_nothing_is_left(executed: Executed) -> None:
    """Neither a process nor a temporary file stays."""
    assert executed.left == []


@pytest.mark.slow
def test_it_learns(executed: Executed) -> None:
    """Every test accuracy shown is at least 0.95; the quickstart shows two, and so does the report."""
    pattern = re.compile(r"test accuracy (\d\.\d+)")
    accuracies = [float(text) for cell in executed.cells for text in pattern.findall(shown(cell))]
    assert [float(text) for text in pattern.findall(executed.report)] == accuracies
    assert all(accuracy >= 0.95 for accuracy in accuracies)
    if executed.name == "quickstart.ipynb":
        assert len(accuracies) == 2


@pytest.mark.slow
def test_the_recipes_do_what_they_say(executed: Executed) -> None:
    """What must happen once happened once: counted downloads, uploads and batches; and all ranks saw the trigger."""
    if executed.name != "process_control.ipynb":
        pytest.skip("it has no recipes")
    everything = "\n".join(shown(cell) for cell in executed.cells)
    for text in (
        "uploaded once\nand once more\n",
        "2 downloads, by two cells on two ranks",
        "2 batches of 100 for 200 sentences and two ranks",
        "4 batches of 50",
        "[0-1] (True, False)",
        "[0-1] (True, 0.001, 4)",
        "also-said-once!",
        "[0] (10, 1.0)",
        "[(100, None), (100, 'stopped at step 25')]",
    ):
        assert text in everything, text


@pytest.mark.slow
def test_the_committed_outputs_are_there(executed: Executed) -> None:
    """What shows something when it is executed shows something in the committed notebook, and vice versa."""
    committed = code_cells(FOLDER / executed.name)
    assert [cell.source for cell in committed] == [cell.source for cell in executed.cells]
    assert [cell.execution_count for cell in committed] == [cell.execution_count for cell in executed.cells]
    for old, new in zip(committed, executed.cells, strict=True):
        assert bool(shown(old).strip()) == bool(shown(new).strip()), old.source


@pytest.mark.slow
def test_fresh_outputs_are_presentable(executed: Executed) -> None:
    """No output shows a path, a warning, a process id or an address."""
    assert_presentable(executed.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_presentable(path: Path) -> None:
    """The same of the notebook as it is committed."""
    assert_presentable(code_cells(path))


def assert_presentable(cells: list[nbformat.NotebookNode]) -> None:
    found = [
        f"{what} below {cell.source.splitlines()[0]!r}: {match[0]}"
        for cell in cells
        for what, pattern in _UNWANTED.items()
        if (match := pattern.search(shown(cell)))
    ]
    assert not found


def test_a_failing_notebook_fails(tmp_path: Path) -> None:
    """A cell that raises ends the run with status 1; the notebook is saved as far as it came."""
    cells = [nbformat.v4.new_code_cell(code) for code in ("'before'", "1 / 0", "'behind'")]
    source = tmp_path / "failing.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source)
    (folder := tmp_path / "run").mkdir()

    executed = run(source, folder)

    assert executed.returncode == 1
    assert "ZeroDivisionError" in executed.report
    assert "before" in shown(executed.cells[0])
    assert "ZeroDivisionError" in shown(executed.cells[1])
    assert executed.cells[2].outputs == []
    assert executed.left == []
