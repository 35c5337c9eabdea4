"""Executes a notebook from a fresh kernel: `python notebooks/run.py SOURCE TARGET`."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config

ACCURACY = re.compile(r"test accuracy (\d\.\d+)")
CELL_TIMEOUT = 120.0


def main(arguments: list[str] | None = None) -> int:
    """Execute, save what came of it in any case, and return the exit status."""
    parser = argparse.ArgumentParser(description="Execute a notebook from a fresh kernel.")
    parser.add_argument("source", type=Path, help="the notebook")
    parser.add_argument("target", type=Path, help="where to save it with its outputs")
    options = parser.parse_args(arguments)

    notebook = nbformat.read(options.source, as_version=4)
    started = time.monotonic()
    try:
        execute(notebook, options.source.parent, progress=True)
        failure = None
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        failure = error
    tidy(notebook)
    options.target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, options.target)

    print()
    if failure is not None:
        print(failure, file=sys.stderr)
    else:
        for number, accuracy in accuracies(notebook):
            print(f"test accuracy {accuracy} (cell {number})")
        print(f"{time.monotonic() - started:.0f} s")
    print(f"{'as far as it came' if failure else 'executed notebook'}: {options.target}")
    return 1 if failure else 0


def execute(notebook: nbformat.NotebookNode, folder: Path, *, progress: bool = False) -> None:
    """Run all cells of `notebook` in a fresh kernel whose working directory is `folder`.

    Raises:
        CellExecutionError: a cell raised, and is not tagged `raises-exception`.
        CellTimeoutError: a cell took longer than CELL_TIMEOUT seconds.
        DeadKernelError: the kernel's process ended.
    """
    clear(notebook)
    report = Report(notebook) if progress else None
    with TemporaryDirectory() as sockets:  # in place of ports, which ipykernel warns of
        ipc = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        NotebookClient(
            notebook,
            kernel_name="python3",
            kernel_manager_class=AsyncKernelManager,
            config=Config({"AsyncKernelManager": ipc}),
            timeout=CELL_TIMEOUT,
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
            on_cell_execute=report and report.begin,
            on_cell_executed=report and report.end,
        ).execute()


def clear(notebook: nbformat.NotebookNode) -> None:
    """Forget earlier outputs, so that what the notebook shows comes from this run."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Leave out what no reader sees: displays that ended empty, and the state of widgets that are not shown."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if "data" not in output or any(output.data.values())]


def accuracies(notebook: nbformat.NotebookNode) -> list[tuple[int, str]]:
    """The test accuracies that the notebook's outputs show, each with the number of its cell."""
    return [
        (cell.execution_count, accuracy)
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream"
        for accuracy in ACCURACY.findall(output.text)
    ]


class Report:
    """Prints one line per code cell: its number, the seconds it took, its first line."""

    def __init__(self, notebook: nbformat.NotebookNode) -> None:
        code = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        self._numbers = {index: number for number, index in enumerate(code, 1)}
        self._started = 0.0

    def begin(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        """The cell starts."""
        number = f"{self._numbers[cell_index]:2}/{len(self._numbers)}"
        print(f"{number}  {cell.source.splitlines()[0][:60]:60}", end="", flush=True)
        self._started = time.monotonic()

    def end(self, cell: nbformat.NotebookNode, cell_index: int, **reply: Any) -> None:
        """The cell has ended, or failed."""
        failed = reply["execute_reply"]["content"]["status"] == "error"
        expected = "raises-exception" in cell.metadata.get("tags", ())
        word = "" if not failed else "  raises, as it should" if expected else "  failed"
        print(f"{time.monotonic() - self._started:6.1f} s{word}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
