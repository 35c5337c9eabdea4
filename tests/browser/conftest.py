"""One JupyterLab and one browser for all tests of a module."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from lab import Lab, LabPage, chromium
from playwright.sync_api import Browser, sync_playwright


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium, which CI must have")
        pytest.skip("there is no Chromium: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_notebook(lab: Lab, browser: Browser) -> Iterator[Callable[[str], LabPage]]:
    """Opens a notebook of the server in a page of its own."""
    pages = []

    def open_page(name: str) -> LabPage:
        pages.append(browser.new_page(viewport={"width": 1200, "height": 900}))
        return LabPage(lab, pages[-1], name)

    yield open_page
    for page in pages:
        page.close()
