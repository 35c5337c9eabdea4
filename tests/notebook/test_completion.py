"""What Tab offers after a magic, and in a cell of the ranks."""

from __future__ import annotations

import pytest

from notebooks import Notebook, poll

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


@pytest.fixture
def trained(live: Notebook) -> Notebook:
    """Two ranks with names that the notebook does not have."""
    cell = (
        "%%distributed\nmodel = torch.nn.Sequential(torch.nn.Linear(2, 2)); model.head = torch.nn.Linear(1, 1)\n"
        "if rank == 1: only_there = 1\n"
        "class Fragile:\n    def __getattr__(self, name): 1 / 0\n    @property\n    def value(self): 1 / 0\n"
        "    @property\n    def __dict__(self): 1 / 0\n"
        "fragile = Fragile()"
    )
    live.run(cell).ok()
    return live


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("%%distributed\nworld.gather_o", "gather_object"),
        ("%%distributed --timeout 5\nx = dist.monitored_b", "monitored_barrier"),
        ("%%distributed\nprint(model.head.wei", "weight"),
        ("%%distributed\nmodel.zero_g", "zero_grad"),
        ("%%main_process_first\nmod", "model"),
        ("%%on_rank last\nonly_", "only_there"),
        ("%%distributed --ranks 1, 0\nfragile.val", None),
        ("%%distributed\nonly_", None),
        ("%%on_rank 7\nonly_", None),
        ("%%distributed\nnever().wei", None),
        ("%%distributed\nmodel.never.wei", None),
        ("model.wei", None),
    ],
)
def test_names_on_the_ranks(trained: Notebook, text: str, match: str | None) -> None:
    """Variables of the first rank of the cell, and what its objects have; in other cells those of the notebook."""
    assert offers(trained, text)[0] == ([match] if match else [])
    assert trained.run("%%distributed\nrank").ok().texts == ["[0] 0", "[1] 1"]


def test_names_of_a_busy_rank(trained: Notebook) -> None:
    """It is not waited for."""
    trained.run("%%distributed --background\nimport time; time.sleep(600)").ok()
    assert poll(lambda: "ranks 0-1: busy" in trained.run("%nbsync status").stdout, 10)
    assert offers(trained, "%%distributed\nmodel.head.wei") == (["weight"], "wei")
    trained.run("%nbsync interrupt").ok()
    trained.run("%nbsync wait").failed("KeyboardInterrupt")
