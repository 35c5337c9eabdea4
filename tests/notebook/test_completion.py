"""What Tab offers after a magic."""

from __future__ import annotations

import pytest

from notebooks import Notebook

ASK = """
def asked(text):
    reply = get_ipython().kernel.do_complete(text, len(text))
    return reply["matches"], text[reply["cursor_start"] : reply["cursor_end"]]
"""


def offers(notebook: Notebook, text: str) -> tuple[list[str], str]:
    """The completions of a cell with the cursor at its end, and the part of it that they replace."""
    notebook.run(ASK).ok()
    matches, replaced = eval(notebook.run(f"asked({text!r})").ok().texts[0])
    return matches, replaced


@pytest.mark.parametrize(
    ("text", "matches", "replaced"),
    [
        ("%nbsync st", ["start", "status", "stack", "stop"], "st"),
        ("x = 1\n%nbsync sta", ["start", "status", "stack"], "sta"),
        ("%nbsync view ", ["on", "off", "compact"], ""),
        ("%nbsync start -n 2 --st", ["--start-method"], "--st"),
        ("%nbsync start --refill --re", [], None),
        ("%nbsync restart --ranks l", ["local_main", "last"], "l"),
        ("%nbsync push --r", ["--ranks"], "--r"),
        ("%%distributed --", ["--help", "--ranks", "--timeout", "--background", "--push"], "--"),
        ("%%distributed --ranks 0 --t", ["--timeout"], "--t"),
        ("%%on_rank ", ["main", "local_main", "last", "all"], ""),
        ("%%on_rank 0 --p", ["--push"], "--p"),
        ("%%main_process_first --lo", ["--local"], "--lo"),
        ("%%distributed\n%nbsync stat", ["status"], "stat"),
    ],
)
def test_arguments_of_magics(notebook: Notebook, text: str, matches: list[str], replaced: str | None) -> None:
    """Commands, options and choices, and nothing beside them."""
    found = offers(notebook, text)
    assert found == (matches, replaced) if matches else "--refill" not in found[0]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("%%distributed\nnumb", "number_of_steps"),
        ("%%distributed\nx = number_of_steps.bit_l", "bit_length"),
        ("%%dist", "%%distributed"),
        ("%nbs", "%nbsync"),
        ("x % numb", "number_of_steps"),
    ],
)
def test_all_else_is_as_it_was(notebook: Notebook, text: str, match: str) -> None:
    """Names of magics, and variables in cells and lines."""
    notebook.run("number_of_steps = 3").ok()
    assert any(each.endswith(match) for each in offers(notebook, text)[0])


def test_unload_takes_it_away(fresh_notebook: Notebook) -> None:
    """Without the extension there is nothing to offer; loaded again, there is."""
    fresh_notebook.run("%unload_ext nbsync").ok()
    assert "status" not in offers(fresh_notebook, "%nbsync st")[0]
    fresh_notebook.run("%load_ext nbsync").ok()
    assert offers(fresh_notebook, "%nbsync stat") == (["status"], "stat")
