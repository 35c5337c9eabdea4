"""The live view in JupyterLab, in a browser: what a person sees and presses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from lab import Lab, LabPage
from playwright.sync_api import expect

pytestmark = pytest.mark.timeout(240)

QUICKSTART = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"
START = "%load_ext nbsync\n%nbsync start -n 2"
LOOP = (
    "%%distributed\nimport time\nfrom tqdm.auto import tqdm\nfor i in tqdm(range({n}), desc='steps'): time.sleep(0.05)"
)
#: At some steps the ranks wait until what is there to be seen has been seen.
SEEN = (
    "%%distributed\nimport os, time\nfrom tqdm.auto import tqdm\nfor i in tqdm(range(60), desc='steps'):\n"
    "    time.sleep(0.05)\n    while i in (15, 30, 45) and not os.path.exists(f'seen{i}'): time.sleep(0.01)"
)
LATE = "%%distributed\nimport time\nif rank == 1: time.sleep({seconds})\nworld.wait_for_everyone('saving')"

#: The height of an output area, and how far rank 1 is, at one moment.
LOOK = """area => [area.getBoundingClientRect().height,
Number(area.querySelector('[aria-label="steps, rank 1"]').getAttribute('aria-valuenow'))]"""

OpenNotebook = Callable[[str], LabPage]


def test_bars_move(lab: Lab, open_notebook: OpenNotebook) -> None:
    """A bar moves while the cell runs; its last state stays; nothing of it jumps."""
    lab.write("bars.ipynb", [START, SEEN])
    lab_page = open_notebook("bars.ipynb")
    lab_page.wait_for_kernel()
    lab_page.run_cell()
    lab_page.run_cell()
    output = lab_page.output(1)
    expect(output.get_by_role("progressbar", name="steps, rank 1")).to_have_attribute("aria-valuemax", "60")
    heights, values = set(), [0]
    for step in (15, 30, 45):
        while values[-1] < step - 5:
            height, value = output.evaluate(LOOK)
            heights.add(height)
            values.append(value)
        (lab.files / f"seen{step}").touch()
    assert len(set(values)) > 3, values
    assert values == sorted(values)
    assert max(heights) - min(heights) < 4, heights
    lab_page.wait_for_kernel()
    expect(lab_page.output(1)).to_contain_text("100% 60/60")
    expect(lab_page.output(1).locator(".jupyter-widgets")).to_have_count(0)


def test_late_rank_is_named(lab: Lab, open_notebook: OpenNotebook) -> None:
    """A barrier tells who is in it, who is missing and what that one does; afterwards, how far they were apart."""
    lab.write("late.ipynb", [START, LATE.format(seconds=3)])
    lab_page = open_notebook("late.ipynb")
    lab_page.wait_for_kernel()
    lab_page.run_cell()
    lab_page.run_cell()
    output = lab_page.output(1)
    expect(output).to_contain_text(
        re.compile(
            r"saving: rank 1 missing \(rank 1 at Cell In\[2\], line 3, \d s\); "
            r"rank 0 waits [\d.]+ s at Cell In\[2\], line 4"
        )
    )
    lab_page.wait_for_kernel()
    expect(output).to_contain_text(re.compile(r"saving .* passed; rank 1 came [23]\.\d+ s after the first"))


def test_interrupt_button_of_jupyter(lab: Lab, open_notebook: OpenNotebook) -> None:
    """Jupyter's own button ends the cell on all ranks; the view says so, and the next cell works."""
    lab.write("interrupt.ipynb", [START, LATE.format(seconds=1000), "%%distributed\nrank + 40"])
    lab_page = open_notebook("interrupt.ipynb")
    lab_page.wait_for_kernel()
    lab_page.run_cell()
    lab_page.run_cell()
    expect(lab_page.output(1)).to_contain_text("rank 1 missing")
    lab_page.press_interrupt()
    lab_page.wait_for_kernel()
    expect(lab_page.output(1)).to_contain_text("interrupted")
    expect(lab_page.output(1)).to_contain_text("KeyboardInterrupt")
    lab_page.run_cell()
    expect(lab_page.output(2)).to_contain_text("[1] 41")


def test_buttons_of_the_view(lab: Lab, open_notebook: OpenNotebook) -> None:
    """Where the front end gives widgets a subshell, the view's own buttons work while the cell runs."""
    lab.write("buttons.ipynb", [START, LOOP.format(n=10_000)])
    lab_page = open_notebook("buttons.ipynb")
    lab_page.wait_for_kernel()
    lab_page.run_cell()
    lab_page.run_cell()
    output = lab_page.output(1)
    output.get_by_role("button", name="Stack").click()
    expect(output).to_contain_text("time.sleep(0.05)")
    output.get_by_role("button", name="Interrupt").click()
    lab_page.wait_for_kernel()
    expect(output).to_contain_text("KeyboardInterrupt")
    expect(output.get_by_role("button")).to_have_count(0)


def test_quickstart_saved_and_reopened(lab: Lab, open_notebook: OpenNotebook) -> None:
    """The quickstart runs; saved, and opened again without a kernel, it still shows the last views."""
    source = nbformat.read(QUICKSTART, as_version=4)
    for cell in source.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(source, lab.files / QUICKSTART.name)
    lab_page = open_notebook(QUICKSTART.name)
    lab_page.wait_for_kernel()
    lab_page.command("notebook:run-all-cells", wait=False)
    expect(lab_page.page.get_by_role("progressbar", name="epochs, ranks 0-1").first).to_be_visible()
    lab_page.wait_for_kernel()
    lab_page.command("docmanager:save")
    saved = nbformat.read(lab.files / QUICKSTART.name, as_version=4)
    bundles = [output["data"] for cell in saved.cells for output in cell.get("outputs", ()) if "data" in output]
    assert any("nbsync" in data.get("text/html", "") for data in bundles)
    assert not any(kind.endswith("widget-view+json") for data in bundles for kind in data)

    lab_page.command("kernelmenu:shutdown", wait=False)
    reopened = open_notebook(QUICKSTART.name)
    expect(reopened.page.get_by_role("progressbar", name="epochs, ranks 0-1").first).to_be_visible()
    expect(reopened.page.locator(".jp-Notebook")).not_to_contain_text("Error displaying widget")
