"""The pages in docs/ are true: the reference is that of the code, examples run, tables are complete."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import accelerate
import pytest
from test_readme import FENCE, by_rank, plain_notebook, shown

import nbsync
from notebooks import Notebook

__all__ = ["plain_notebook"]  # a fixture

DOCS = Path(__file__).parent.parent / "docs"
WITH_EXAMPLES = [
    "nbsync.kernel.launcher",
    "nbsync.kernel.session",
    "nbsync.worker.control.logs",
    "nbsync.worker.control.world",
]


def public() -> Iterator[tuple[str, Any]]:
    """Every public function, and every public method of the public classes, by its name in the reference."""
    for name in sorted(set(nbsync.__all__) - {"tqdm"}):
        value = getattr(nbsync, name)
        yield name, value
        if inspect.isclass(value):
            ours = [cls for cls in value.__mro__ if cls.__module__.startswith("nbsync")]
            for method in sorted({n for cls in ours for n in vars(cls) if not n.startswith("_")}):
                yield f"{name}.{method}", next(vars(cls)[method] for cls in ours if method in vars(cls))


def test_the_reference_is_up_to_date() -> None:
    """`make docs` would write the page as it is."""
    spec = importlib.util.spec_from_file_location("build_api", DOCS / "build_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "api.md").read_text() == module.render(), "`make docs` brings it up to date"


def test_the_reference_has_every_public_name() -> None:
    """What can be imported is described, in one page."""
    headings = set(re.findall(r"^##+ `(\w+(?:\.\w+)?)`$", (DOCS / "api.md").read_text(), re.MULTILINE))
    inherited = {"WorkerDied.summary"}  # the page has it once
    assert {name for name, _ in public()} - inherited <= headings
    assert {name.partition(".")[0] for name in headings} == set(nbsync.__all__)


@pytest.mark.parametrize(("name", "value"), [pytest.param(*pair, id=pair[0]) for pair in public()])
def test_docstrings_are_complete(name: str, value: Any) -> None:
    """Each has one, and it speaks of every argument."""
    text = inspect.getdoc(value)
    assert text
    if isinstance(value, property | staticmethod) or (inspect.isclass(value) and issubclass(value, BaseException)):
        return
    target = getattr(value, "__func__", value)
    names = [p for p in inspect.signature(target).parameters if p not in ("self", "cls", "args", "kwargs")]
    assert [parameter for parameter in names if not re.search(rf"\b{parameter}\b", text)] == []


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_run(module: str) -> None:
    """And show what they say that they show."""
    results = doctest.testmod(import_module(module), optionflags=doctest.ELLIPSIS)
    assert results.attempted > 0
    assert results.failed == 0


def first_cells(page: str) -> set[str]:
    """The names in the first cells of a page's tables."""
    rows = [line.split("|")[1] for line in (DOCS / page).read_text().splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)", row)}


@pytest.mark.parametrize("cls", [accelerate.PartialState, accelerate.Accelerator], ids=lambda cls: cls.__name__)
def test_every_name_of_accelerates_process_control_is_in_the_table(cls: type) -> None:
    """Of `PartialState` all names, of `Accelerator` those that are about processes and not about training."""
    names = {name for name in dir(accelerate.PartialState) if not name.startswith("_")}
    names |= set(inspect.signature(accelerate.notebook_launcher).parameters)
    if cls is accelerate.Accelerator:
        names = {name for name in dir(cls) if hasattr(nbsync.World, name) and not name.startswith("_")}
    assert names - first_cells("accelerate.md") == set()


def test_the_links_lead_somewhere() -> None:
    """Files that the pages link to are there."""
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (DOCS / link).exists(), f"{page.name}: {link}"


_ROW = re.compile(r"<table><tr><td>(.*?)</td><td>(.*?)</td></tr></table>", re.DOTALL)


def right_hand_sides() -> list[tuple[str, str]]:
    """The nbsync cells of the page for those who come from elsewhere, each with the output below it."""
    page = (DOCS / "coming-from.md").read_text()
    fences = [fence for _, right in _ROW.findall(page) for fence in FENCE.findall(right)]
    return [
        (text, following[1] if following[0] == "text" else "")
        for (language, text), following in zip(fences, [*fences[1:], ("", "")], strict=True)
        if language == "python"
    ]


@pytest.mark.slow
def test_coming_from_elsewhere(plain_notebook: Notebook) -> None:
    """Every right-hand side runs, from top to bottom in one notebook, and shows what stands below it."""
    cells = right_hand_sides()
    assert len(cells) == 13
    for code, expected in cells:
        outcome = plain_notebook.run(code).ok()
        if expected:
            assert by_rank(shown(outcome)) == by_rank(expected), code


def test_both_sides_are_the_same_program() -> None:
    """Every tool is there, with the lines that do the work on both sides."""
    rows = _ROW.findall((DOCS / "coming-from.md").read_text())
    assert len(rows) == 5
    for left, right in rows:
        for line in ("error = weight[0] * x + weight[1] - (3 * x + 1)", "torch.linspace(-1, 1, 64)[rank::"):
            assert line in left
            assert line in right
