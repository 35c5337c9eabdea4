"""The live view in a real kernel: bars of every flavour, barriers, and what is left of them in the cell."""

from __future__ import annotations

import html
import re
from contextlib import suppress
from queue import Empty

import pytest

from notebooks import Notebook, Outcome, is_view


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


def moments(outcome: Outcome) -> list[str]:
    """The text of each view that came while the cell ran."""
    return [re.sub(r"\s+", " ", view_text(bundle)) for bundle in outcome.history if is_view(bundle)]


def view_text(bundle: dict[str, str]) -> str:
    return html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", bundle["text/html"], flags=re.S))


def test_a_barrier_with_a_late_rank(live: Notebook) -> None:
    """The view names the missing rank and its line while the others wait, and the spread when they have met."""
    outcome = live.run(
        "%%distributed\nimport time\nif rank == 1:\n    time.sleep(1.5)\n"
        "world.wait_for_everyone('epoch')\ntime.sleep(0.3)"
    ).ok()
    during = [text for text in moments(outcome) if "epoch" in text and "missing" in text]
    assert any("rank 1 missing" in text and "line 4" in text for text in during), moments(outcome)
    assert re.search(r"epoch at Cell In\[\d+\], line 5.*rank 1.* 1\.[4-9]\d s", moments(outcome)[-1]), moments(outcome)[
        -1
    ]


def test_a_collective_that_blocks(live: Notebook) -> None:
    """A collective that blocks for more than a second shows who is missing, before anything is broken off."""
    outcome = live.run(
        "%%distributed\nimport time\nif rank == 1:\n    time.sleep(2.5)\ndist.all_reduce(torch.ones(1))"
    ).ok()
    assert any(re.search(r"all_reduce #\d+.*rank 1 missing", text) for text in moments(outcome)), moments(outcome)


def test_a_failed_rank_stays(live: Notebook) -> None:
    """The end of a cell that failed shows which rank raised what, and that the other was released."""
    outcome = live.run(
        "%%distributed\nimport time\nif rank == 1:\n    time.sleep(0.8)\n"
        "    raise ValueError('on purpose')\ndist.barrier()"
    )
    outcome.failed("ValueError")
    last = moments(outcome)[-1]
    assert re.search(r"rank 1 ✖ failed.*ValueError: on purpose at Cell In\[\d+\], line 5", last), last
    assert "rank 0 ◻ released" in last


def test_a_dead_rank_stays(live: Notebook) -> None:
    """So does one whose process ended, with how."""
    outcome = live.run("%%distributed\nimport os, time\ntime.sleep(0.7)\nif rank == 1: os.kill(os.getpid(), 9)")
    outcome.failed("WorkerDied")
    assert re.search(r"rank 1 ✖ dead.*SIGKILL", moments(outcome)[-1]), moments(outcome)[-1]


def test_view_off_and_compact(live: Notebook) -> None:
    """Off: bars are the ranks' text and there is no view at all. Compact: no row for each rank."""
    cell = "%%distributed\nimport time\nfrom tqdm import tqdm\nfor i in tqdm(range(7), desc='b'): time.sleep(0.1)"
    try:
        live.run("%nbsync view off").ok()
        outcome = live.run(cell).ok()
        assert moments(outcome) == []
        assert "b: 100%" in outcome.stderr
        live.run("%nbsync view compact").ok()
        outcome = live.run(cell).ok()
        assert outcome.stderr == ""
        assert "b 100%" in moments(outcome)[-1]
        assert "rank 0 ✔" not in moments(outcome)[-1]
    finally:
        live.run("%nbsync view on").ok()


def test_quick_cells_leave_no_view(live: Notebook) -> None:
    """Nobody wants to see where a rank was for a moment."""
    outcome = live.run("%%distributed\nprint('quick')").ok()
    assert (outcome.views, moments(outcome)) == ([], [])


def test_launcher_without_progress(live: Notebook) -> None:
    """`notebook_launcher(progress=False)` leaves bars as text, and shows no view."""
    setup = (
        "from nbsync import notebook_launcher\ndef work():\n    import time\n    from tqdm import tqdm\n"
        "    for i in tqdm(range(4), desc='b'): time.sleep(0.2)\n"
    )
    outcome = live.run(setup + "notebook_launcher(work, num_processes=2, progress=False);").ok()
    assert moments(outcome) == []
    assert "b: 100%" in outcome.stderr
    outcome = live.run(setup + "notebook_launcher(work, num_processes=2);").ok()
    assert "b 100% 4/4" in moments(outcome)[-1]
    assert outcome.stderr == ""


def test_clear_output_in_a_cell(live: Notebook) -> None:
    """The view comes back after the cell has cleared its output; there is one at the end."""
    outcome = live.run("""%%distributed
import time
from IPython.display import clear_output
from tqdm import tqdm
for i in tqdm(range(10), desc="b"):
    time.sleep(0.1)
    if i == 5: clear_output()
print("after")""").ok()
    assert outcome.stdout == "[0-1] after\n"
    assert "b 100%" in " ".join(view_of(outcome).split())


def test_nested_bars_at_the_end(live: Notebook) -> None:
    """The outer bar is there to the end, and of those in it the last with each name."""
    outcome = live.run("""%%distributed
from tqdm import tqdm
for e in tqdm(range(30), desc="epochs"):
    for i in tqdm(range(5), desc="train"): pass
    for i in tqdm(range(3), desc="eval"): pass""").ok()
    view = " ".join(view_of(outcome).split())
    for name, end in (("epochs", "30/30"), ("train", "5/5"), ("eval", "3/3")):
        assert view.count(f"{name} 100% {end}") == 2, view  # of each rank; what they have in common has other numbers
    assert view.count("and 58 more bars") == 2


def test_a_cell_in_the_background(live: Notebook) -> None:
    """Its view goes on in the cell that started it, while the next cells have none."""
    live.start("""%%distributed --background
import time
from tqdm import tqdm
for i in tqdm(range(12), desc="bg"): time.sleep(0.1)""")
    first = live._cell
    assert first is not None
    live.wait()
    live.start("import time; time.sleep(2); print('here')")
    second = live._cell
    assert second is not None
    while not second.ended:
        for get in (live._client.get_iopub_msg, live._client.get_shell_msg):
            with suppress(Empty):
                message = get(timeout=0.1)
                first.take(message)
                second.take(message)
    live._cell = None
    assert (second.outcome.stdout, moments(second.outcome)) == ("here\n", [])
    assert len(moments(first.outcome)) > 3
    assert "bg 100%" in moments(first.outcome)[-1]
    after = live.run("%%distributed\nprint('free again')").ok()
    assert ("free again" in after.stdout, moments(after)) == (True, [])


def test_bars_of_rich_come_through(live: Notebook) -> None:
    """Other libraries' bars are not ours to draw, but they show, and work."""
    outcome = live.run(
        "%%on_rank 0\nfrom rich.progress import track\nfor i in track(range(3), description='rich'): pass"
    ).ok()
    assert any("rich" in text and "100%" in text for text in outcome.texts), outcome.outputs


def test_bars_of_enlighten_come_through(live: Notebook) -> None:
    """So do those that are HTML of their own."""
    outcome = live.run("""%%on_rank 0
import enlighten
manager = enlighten.get_manager()
bar = manager.counter(total=3, desc="enlighten")
for i in range(3): bar.update(force=True)
bar.close()""").ok()
    assert any("enlighten 100%" in bundle.get("text/html", "") for bundle in outcome.history), outcome.history


def test_messages_from_nowhere_do_nothing(live: Notebook) -> None:
    """Malformed messages to the view's widgets, and to widgets that are not there, harm no cell."""
    live.run("%%distributed\nimport time; time.sleep(0.8)").ok()
    known = live.run("import ipywidgets\nprint(*ipywidgets.widgets.widget._instances)").ok().stdout.split()
    client = live._client
    for comm in [*known, "0" * 32]:
        for data in ({}, {"method": "update"}, {"method": "update", "state": {"width": 5, "nonsense": []}},
                     {"method": "custom", "content": None}, {"method": "<script>"}, []):  # fmt: skip
            client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": comm, "data": data}))
        client.shell_channel.send(client.session.msg("comm_msg", {}))
    outcome = live.run("%%distributed\nimport time\ntime.sleep(0.8)\nprint('alive')").ok()
    assert outcome.stdout == "[0-1] alive\n"
    assert "2 ranks" in moments(outcome)[0]


def test_a_front_end_that_goes_away(live: Notebook) -> None:
    """A cell whose front end is gone runs to its end; the next one finds everything in place."""
    live.start(
        "%%distributed\nimport time\nfor i in __import__('tqdm').tqdm(range(10)): time.sleep(0.1)\ndone = 'to the end'"
    )
    live.wait_for_output("nbsync")
    live._client.stop_channels()
    live._client = live._manager.client()
    live._client.start_channels()
    live._client.wait_for_ready(timeout=30)
    live._cell = None
    assert live.run("%%distributed\ndone").ok().texts == ["[0-1] 'to the end'"]


def test_barriers_with_and_without_a_timeout(live: Notebook) -> None:
    """A rank with a timeout sees the one that waits without, and passes; and it names one that does not come."""
    cell = (
        "%%distributed\nimport time\nfor turn in range(30):\n"
        "    world.wait_for_everyone('mixed', timeout=30 if rank == turn % 2 else None)\n'passed'"
    )
    assert live.run(cell).ok().texts[-1] == "[0-1] 'passed'"
    late = "%%distributed\nif rank == 0:\n    world.wait_for_everyone('late', timeout=0.3)"
    assert "rank 1 did not arrive at 'late'" in live.run(late).failed("BarrierTimeout").evalue
    assert live.run(cell).ok().texts[-1] == "[0-1] 'passed'"
