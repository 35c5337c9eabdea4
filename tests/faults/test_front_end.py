"""Rows 48 and 49: a front end that means harm, and one that goes away in the middle of a cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worlds import GUARD, Ranks

from notebooks import Notebook, Outcome, is_view

_WIDGET = "application/vnd.jupyter.widget-view+json"
_EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
_HOSTILE: list[Any] = [
    {},
    "no mapping",
    {"method": "update"},
    {"method": "update", "state": {"value": {"a": [1]}, "description": 5, "layout": "IPY_MODEL_none", "children": "x"}},
    {"method": "update", "state": {"__class__": "os.system", "comm": None, "keys": []}, "buffer_paths": [["value"]]},
    {"method": "update", "state": {"value": "x" * 5_000_000, "tooltip": ["x"] * 100_000}},
    {"method": "custom", "content": {"event": ["click"]}},
    {"method": "custom", "content": "click" * 1000},
    {"method": "request_states"},
    {"method": "eval", "content": "__import__('os')._exit(3)"},
]
MEGABYTE = 1 << 20
LOOKED = 3.0  # seconds: one, and what a busy machine takes


def _prove_widgets(notebook: Notebook) -> None:
    """Answer the probe, as a front end does that runs widgets."""
    outcome = notebook.run("%%distributed\nimport time; time.sleep(1.5)").ok()
    for opened in outcome.comms:
        answer = {"method": "update", "state": {"width": "1px"}, "buffer_paths": []}
        notebook.send("comm_msg", {"comm_id": opened["comm_id"], "data": answer})


def test_row_48_hostile_widget_messages(fresh_notebook: Notebook) -> None:
    """Whatever is sent to the view's widgets, or to new ones: the run goes on, and kernel and ranks are unharmed."""
    notebook, pair = fresh_notebook, Ranks(fresh_notebook, 2)
    pair.mark()
    _prove_widgets(notebook)
    notebook.start("%%distributed\nimport time\nfor i in range(30): time.sleep(0.1)\n'unharmed'")
    notebook.wait_for_output(_WIDGET, GUARD)
    comms = [opened["comm_id"] for opened in notebook.so_far.comms]
    assert comms
    with notebook.subshell() as subshell:
        for data in _HOSTILE:
            for comm in [*comms, "nobody's"]:
                notebook.send("comm_msg", {"comm_id": comm, "data": data}, subshell)
            for target in ("jupyter.widget", "jupyter.widget.control", "os.system"):
                notebook.send("comm_open", {"comm_id": f"evil-{target}", "target_name": target, "data": data}, subshell)
        for comm in comms:
            notebook.send("comm_close", {"comm_id": comm, "data": {}}, subshell)
    outcome = notebook.wait(GUARD).ok()
    assert "[0-1] 'unharmed'" in outcome.texts
    pair.assert_whole()


def test_row_48_what_ranks_tell_is_text(pair: Ranks) -> None:
    """Names of bars and barriers, lines and errors are shown as text, never as part of the page."""
    outcome = pair.run(
        f"evil = {_EVIL!r}\nfrom tqdm import tqdm\nfor i in tqdm(range(8), desc=evil): time.sleep(0.1)\n"
        "world.wait_for_everyone(evil)\nif rank == 1: raise ValueError(evil)"
    )
    outcome.failed("ValueError")
    views = [bundle["text/html"] for bundle in outcome.history if is_view(bundle)]
    assert views
    assert "&lt;script&gt;" in views[-1]
    assert not [html for html in views if "<script" in html or "<img" in html]


def test_row_49_front_end_comes_back(pair: Ranks) -> None:
    """The ranks work on while nobody looks; a page that is opened meanwhile has the view within a second."""
    pair.begin("from tqdm import tqdm\nfor i in tqdm(range(60), desc='epoch'): time.sleep(0.1)\ncame_to = i")
    pair.notebook.reload()
    pair.notebook.wait_for(_sees_view, LOOKED)
    pair.notebook.wait(GUARD)
    assert pair.run("came_to").ok().texts == ["[0-1] 59"]
    pair.assert_whole()


def _sees_view(shown: Outcome) -> bool:
    """As a display, or in the widget that the page has found again."""
    told = [message["data"].get("state", {}).get("value", "") for message in shown.comms]
    return any(is_view(bundle) for bundle in [*shown.history, *({"text/html": html} for html in told)])


def test_row_49_nobody_reads(pair: Ranks) -> None:
    """Output that no front end takes does not heap up in the kernel, nor stop the ranks."""
    notebook = pair.notebook
    pair.begin("for i in range(400):\n    print('x' * 250_000)\n    time.sleep(0.01)\ncame_to = i")
    before = _resident(notebook.pid)
    notebook.reload()
    notebook.wait(60)
    assert _resident(notebook.pid) - before < 64 * MEGABYTE
    assert pair.run("came_to").ok().texts == ["[0-1] 399"]
    pair.assert_whole()


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
