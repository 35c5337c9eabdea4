"""The README's examples run, and show what it says that they show; its tables are complete."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooks import Notebook, Outcome

README = (Path(__file__).parent.parent / "README.md").read_text()

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VIEW = re.compile(r"\d+ ranks?, \w+")
_LABELLED = re.compile(r"\[(\d+)(?:-(\d+))?\](?: (.*))?")


def examples() -> list[tuple[str, str]]:
    """The README's notebook cells in order, each with the output that follows it."""
    fences = FENCE.findall(README)
    nothing = ("text", "")
    return [
        (text, following[1] if following[0] == "text" else "")
        for (language, text), following in zip(fences, [*fences[1:], nothing], strict=True)
        if language == "python"
    ]


def by_rank(text: str) -> dict[str, list[str]]:
    """The lines of each rank in their order, and those of no rank.

    In what order lines of different ranks come is chance, and so is whether a slow rank's are folded in time.
    """
    lines: dict[str, list[str]] = defaultdict(list)
    for line in text.rstrip("\n").splitlines():
        match = _LABELLED.fullmatch(line.rstrip())
        if match is None:
            lines["none"].append(line.rstrip())
            continue
        for rank in range(int(match[1]), int(match[2] or match[1]) + 1):
            lines[str(rank)].append(match[3] or "")
    return dict(lines)


def shown(outcome: Outcome) -> str:
    """What a reader sees below the cell, without the line that a view leaves of a cell that took its time."""
    if outcome.error is not None:
        return outcome.error.traceback
    parts = [what if isinstance(what, str) else what.get("text/plain", "") for _, what in outcome.outputs]
    return "\n".join(text for part in parts if (text := part.rstrip("\n")) and not _VIEW.fullmatch(text))


@pytest.fixture
def plain_notebook(tmp_path: Path) -> Iterator[Notebook]:
    """A kernel in which nothing has run, on a machine without GPUs."""
    env = {"CUDA_VISIBLE_DEVICES": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torch")}
    notebook = Notebook(tmp_path, env=env)
    try:
        yield notebook
    finally:
        notebook.shutdown()


def test_the_examples_show_what_the_readme_says(plain_notebook: Notebook) -> None:
    """All examples, in one notebook from the first to the last."""
    cells = examples()
    assert len(cells) >= 4
    for code, expected in cells:
        outcome = plain_notebook.run(code)
        assert (outcome.error is not None) == ("Traceback (most recent" in expected), shown(outcome)
        assert by_rank(shown(outcome)) == by_rank(expected), code


def test_a_complete_example_is_on_the_first_screen() -> None:
    """What is it, how is it installed, how does it look: within the first 60 lines."""
    start = "\n".join(README.splitlines()[:60])
    assert start.startswith("# nbsync\n\nDistributed PyTorch inside a Jupyter notebook")
    parts = ("make demo", "make test", "pip install .", "%load_ext nbsync", "%%distributed", "[0-1] y = 3.00")
    assert [part for part in parts if part not in start] == []


def test_the_name_of_the_distribution() -> None:
    """Nobody is told to install another project that is called nbsync."""
    assert not re.search(r"pip install nbsync\b(?!-torch)", README)
    assert "nbsync-torch" in README


def test_every_magic_is_described() -> None:
    """The table has all magics and all commands of `%nbsync`, with all their options, and no other option."""
    from nbsync.notebook import arguments
    from nbsync.notebook.magics import NbsyncMagics

    table = section("Magics")
    parsers = [getattr(arguments, name)() for kind in ("cell", "line") for name in NbsyncMagics.magics[kind]]
    commands = dict(subparsers(arguments.nbsync()))
    described = {parser.prog: parser for parser in parsers} | {f"%nbsync {name}": commands[name] for name in commands}
    rows = {name: next((row for row in table.splitlines() if f"`{name}" in row), "") for name in described}
    assert [name for name in rows if not rows[name]] == []
    options = {name: set(parser._option_string_actions) - {"-h", "--help"} for name, parser in described.items()}
    assert {name: missing for name in rows if (missing := {o for o in options[name] if o not in rows[name]})} == {}
    exist = {text for parser in described.values() for text in parser._option_string_actions}
    assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", table)) <= exist


def subparsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def test_every_name_of_world_is_described() -> None:
    """The table has all public names of `World`, and no other."""
    from nbsync import World

    names = {name for name in dir(World) if not name.startswith("_")}
    first_cells = [line.split("|")[1] for line in section("World").splitlines() if line.startswith("| `")]
    assert {name for cell in first_cells for name in re.findall(r"`(\w+)", cell)} == names


def test_every_public_name_of_the_session_exists() -> None:
    """What the README says that `Session` can do, it can."""
    from nbsync import Session

    sentence = next(line for line in README.splitlines() if line.startswith("`nbsync.Session` is"))
    for name in re.findall(r"`(\w+)`", sentence):
        assert hasattr(Session, name), name


def test_the_links_lead_somewhere() -> None:
    """Files that the README links to or names are there."""
    folder = Path(__file__).parent.parent
    for name in [*re.findall(r"\]\((?!http)([^)]+)\)", README), *re.findall(r"notebooks/\w+\.ipynb", README)]:
        assert (folder / name).exists(), name


def section(title: str) -> str:
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]
