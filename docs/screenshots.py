"""Makes the pictures of the live view in docs/images: `make screenshots`. Needs Chromium."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

from lab import Lab, LabPage, chromium  # the same driver as the tests'

IMAGES = Path(__file__).parent / "images"
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
TRAIN = """%%distributed
import time
from tqdm.auto import tqdm

for epoch in tqdm(range(3), desc="epochs"):
    bar = tqdm(range(500), desc=f"train {epoch}", leave=False)
    for step in bar:
        time.sleep(0.01 + 0.004 * rank)
        bar.set_postfix(loss=f"{2 / (1 + step + 500 * epoch) ** 0.4:.3f}")"""
BARRIER = """%%distributed
import time

if rank == 1:
    time.sleep(20)  # say, it still writes its checkpoint
world.wait_for_everyone("checkpoint written")"""
FAILED = """%%distributed
from tqdm.auto import tqdm

for step in tqdm(range(500), desc="train"):
    loss = torch.tensor(float(step))
    if rank == 1 and step == 311:
        raise ValueError("loss is nan at step 311")
    dist.all_reduce(loss)"""
MANY = """%%distributed
import random, time
from tqdm.auto import tqdm

pace = random.Random(rank).uniform(0.02, 0.05)
if rank == 17:
    raise ValueError("loss is nan")
if rank % 7 == 3:
    world.wait_for_everyone("checkpoint written")
for step in tqdm(range(200), desc="train"):
    time.sleep(pace)"""
#: name: number of ranks, the cell, what must be there, and how long to wait then, in milliseconds.
SHOTS = {
    "running": (2, TRAIN, "train 0", 2500),
    "barrier": (2, BARRIER, "rank 1 missing", 3000),
    "failed": (2, FAILED, "ValueError", 500),
    "64-ranks": (64, MANY, "train", 6000),
}


def take(lab: Lab, browser: Browser, name: str, theme: str) -> None:
    """One picture: the cell with its view."""
    ranks, cell, sign, wait = SHOTS[name]
    lab.write(f"{name}-{theme}.ipynb", [f"%load_ext nbsync\n%nbsync start -n {ranks}", cell])
    page = browser.new_page(viewport={"width": 1040, "height": 900}, device_scale_factor=1.5)
    lab_page = LabPage(lab, page, f"{name}-{theme}.ipynb")
    lab_page.command("application:toggle-left-area")
    lab_page.command("apputils:change-theme", {"theme": THEMES[theme]})
    lab_page.wait_for_kernel()
    lab_page.run_cell()
    lab_page.wait_for_kernel()
    lab_page.run_cell()
    _wait(lab_page, sign)
    page.wait_for_timeout(wait)
    page.locator(".jp-CodeCell").nth(1).screenshot(path=IMAGES / f"{name}-{theme}.png")
    lab_page.command("kernelmenu:shutdown", wait=False)
    page.wait_for_timeout(500)
    page.close()


def _wait(lab_page: LabPage, sign: str) -> None:
    lab_page.page.wait_for_function(
        "sign => document.querySelectorAll('.jp-CodeCell')[1].innerText.includes(sign)"
        " && document.querySelectorAll('.jp-CodeCell')[1].querySelector('.nbsync')",
        arg=sign,
    )


def main() -> None:
    """All of them, or those named on the command line."""
    IMAGES.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        lab = Lab(Path(folder))
        try:
            browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            for name in sys.argv[1:] or SHOTS:
                for theme in THEMES:
                    take(lab, browser, name, theme)
            browser.close()
        finally:
            lab.close()


if __name__ == "__main__":
    main()
