"""Everybody's training code, unchanged, in a launched function and in cells: the real libraries on two real ranks."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import pytest
from accelerate.test_utils.scripts import test_notebook as accelerates_own

from notebooks import Notebook

PROGRAMS = Path(__file__).parent / "programs"
LIMIT = 100.0

#: Each program with what `result` is on every rank.
RESULTS = {
    "accelerate_training": "3.0",
    "data_parallel": "(3, 1)",
    "sharded": "10.0",
    "transformers_trainer": "1.0",
    "lightning_fabric": "True",
    "lightning_trainer": "(True, 3.0)",
    "remote_calls": "1.0",
}
IMPORTS = """
import datasets, lightning, torch, torchmetrics, transformers
import torch.distributed.checkpoint, torch.distributed.fsdp, torch.distributed.tensor.parallel
from accelerate import Accelerator, PartialState
from transformers import BertForSequenceClassification, Trainer
from nbsync import notebook_launcher
"""


@pytest.fixture
def libraries(notebook: Notebook) -> Notebook:
    """A kernel that has imported all of them: that takes longer than all the programs, so it is done once."""
    notebook.run(IMPORTS, timeout=LIMIT).ok()
    return notebook


@pytest.mark.parametrize("name", RESULTS)
def test_in_a_launched_function(libraries: Notebook, name: str) -> None:
    """On fresh workers, where the program makes the process group, or its library does."""
    body = textwrap.indent(program(name), "    ")
    code = f"def program():\n{body}\n    return result\n\nnotebook_launcher(program, num_processes=2)"
    cell = libraries.run(code, timeout=LIMIT).ok()
    assert cell.stdout.splitlines()[-1] == f"[{RESULTS[name]}, {RESULTS[name]}]"


@pytest.mark.parametrize("name", RESULTS)
def test_in_a_cell(libraries: Notebook, name: str) -> None:
    """On the workers of the session, whose process group exists already; twice, as one does in a notebook."""
    for _ in range(2):
        cell = libraries.run(f"%%distributed -n 2\n{program(name)}\nresult", timeout=LIMIT).ok()
        assert cell.texts[-1:] == [f"[0-1] {RESULTS[name]}"]


def test_the_tables_of_transformers(libraries: Notebook) -> None:
    """They are shown by rank 0 alone: all ranks have the same numbers."""
    shown = libraries.run(f"%%distributed -n 2\n{program('transformers_trainer')}", timeout=LIMIT).ok()
    tables = [data["text/html"] for kind, data in shown.outputs if kind == "display" and "Training Loss" in str(data)]
    assert len(tables) == 2  # of the training, and of the evaluation after it
    assert all(">[0]<" in table for table in tables)


def test_stacks_after_lightning(libraries: Notebook) -> None:
    """Lightning's Trainer takes handlers away that were set in C; the next cell has those of nbsync again."""
    libraries.run(f"%%distributed -n 2\n{program('lightning_trainer')}", timeout=LIMIT).ok()
    cell = "import os, signal\nfrom nbsync.protocol.handlers import handled_signals"
    cell += "\n[number in handled_signals(os.getpid()) for number in (signal.SIGSEGV, signal.SIGUSR2)]"
    assert libraries.run(f"%%distributed\n{cell}").ok().texts == ["[0-1] [True, True]"]


def test_a_rank_has_no_prompt(notebook: Notebook) -> None:
    """Libraries that are imported on the ranks only do not take them for an interactive session."""
    cell = notebook.run("%%distributed -n 2\nimport sys\nhasattr(sys, 'ps1')").ok()
    assert cell.texts[-1:] == ["[0-1] False"]
    assert notebook.run("import sys; hasattr(sys, 'ps1')").texts[-1:] == ["True"]


def test_accelerates_own_launches(libraries: Notebook) -> None:
    """The functions of Accelerate's test of its notebook launcher, with only the import of the launcher changed.

    Besides the type of the error: with Accelerate it is torchelastic's, here the rank's own.
    """
    text = inspect.getsource(accelerates_own)
    for old, new in (
        ("from accelerate import PartialState, notebook_launcher", "from nbsync import notebook_launcher"),
        ("raises(ChildFailedError", "raises(RuntimeError"),
        ('__name__ == "__main__"', "False"),
    ):
        assert old in text
        text = text.replace(old, new)
    setup = 'import os; os.environ["ACCELERATE_NUM_PROCESSES"] = "2"\nfrom accelerate import PartialState\n'
    libraries.run(setup + text, timeout=LIMIT).ok()
    for call in ("can_initialize", "clean_cuda_fork", "static_rdzv_backend", "c10d_rdzv_backend"):
        cell = libraries.run(f"test_{call}()", timeout=LIMIT).ok()
        assert call == "clean_cuda_fork" or "[0-1] Num processes: 2\n" in cell.stdout
    assert "restart 1 of 3" in libraries.run("test_fault_tolerant(3)", timeout=LIMIT).ok().stderr
    assert libraries.run("test_monitoring()", timeout=LIMIT).ok().seconds < 20


def program(name: str) -> str:
    return (PROGRAMS / f"{name}.py").read_text()


def test_every_program_is_run() -> None:
    """No file of the folder is forgotten."""
    assert {path.stem for path in PROGRAMS.glob("*.py")} == set(RESULTS)
