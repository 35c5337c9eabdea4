"""The live view in a real kernel: bars of every flavour, barriers, and what is left of them in the cell."""

from __future__ import annotations

import html
import re

import pytest

from notebooks import Notebook, Outcome


def view_of(outcome: Outcome) -> str:
    """The HTML of the view that the cell ends with, as text without tags."""
    (bundle,) = [bundle for bundle in outcome.displays if "nbsync" in bundle.get("text/html", "")]
    assert set(bundle) == {"text/html", "text/plain"}, "a saved notebook must not look for a widget"
    return html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", bundle["text/html"], flags=re.S))


@pytest.mark.parametrize("source", ["tqdm", "tqdm.auto", "tqdm.notebook", "nbsync"])
def test_tqdm(live: Notebook, source: str) -> None:
    """Bars move while the cell runs, leave their last state, and write no text of their own."""
    outcome = live.run(
        f"%%distributed\nimport time\nfrom {source} import tqdm\n"
        "for i in tqdm(range(20), desc=f'epoch {rank}'): time.sleep(0.05)\nprint('after')"
    ).ok()
    assert (outcome.stdout, outcome.stderr) == ("[0-1] after\n", "")
    last = outcome.displays[0]["text/plain"].splitlines()
    for rank in (0, 1):
        assert any(line.startswith(f"[{rank}] epoch {rank}: 100%|") and "20/20" in line for line in last), last
    between = [bundle["text/plain"] for bundle in outcome.history]
    assert any(re.search(r"\[0\] epoch 0: +[1-9]\d?%", text) for text in between), between
    assert "done" in view_of(outcome)


def test_write_between_the_steps(live: Notebook) -> None:
    """tqdm.write between the steps of a bar gives whole lines, and the bar is not torn."""
    outcome = live.run(
        "%%on_rank 0\nfrom tqdm import tqdm\nfor i in tqdm(range(3), desc='b'): tqdm.write(f'step {i}')"
    ).ok()
    assert outcome.stdout == "[0] step 0\n[0] step 1\n[0] step 2\n"
    assert "b 100% 3/3" in " ".join(view_of(outcome).split())


def test_nested_bars(live: Notebook) -> None:
    """Of bars within bars, those that are not to stay go."""
    outcome = live.run(
        "%%on_rank 0\nfrom tqdm.auto import tqdm\n"
        "for i in tqdm(range(3), desc='outer'):\n    for j in tqdm(range(3), desc='inner', leave=False): pass"
    ).ok()
    view = view_of(outcome)
    assert "outer" in view
    assert "inner" not in view
    assert outcome.stderr == ""
