"""`Lab`: a real JupyterLab, and a page of headless Chromium that uses it as a person does."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Page, expect

START_LIMIT = 60.0
LIMIT = 60_000.0  # milliseconds until something must have shown up
expect.set_options(timeout=LIMIT)
_NOTEBOOK = "window.jupyterapp.shell.currentWidget"


def chromium() -> str | None:
    """The browser of this machine, if there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Lab:
    """A JupyterLab server with everything it writes in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.files.mkdir()
        self._port = _free_port()
        places = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
        options = {
            "ServerApp.root_dir": self.files,
            "ServerApp.port": self._port,
            "IdentityProvider.token": "",
            "LabApp.news_url": "",
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        }
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
        with open(folder / "log", "w") as log:
            self._server = subprocess.Popen(
                [*command, *(f"--{name}={value}" for name, value in options.items())],
                env=os.environ | places | {"HOME": str(folder)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_until_up()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        """End the server and its kernels."""
        self._server.send_signal(signal.SIGTERM)
        try:
            self._server.wait(20)
        finally:
            self._server.kill()

    def write(self, name: str, cells: Sequence[str]) -> Path:
        """A notebook with these cells."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.files / name)
        return self.files / name

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.address}/api", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        self.close()
        raise AssertionError(f"JupyterLab did not start:\n{(self.folder / 'log').read_text()[-3000:]}")


class LabPage:
    """One open notebook."""

    def __init__(self, lab: Lab, page: Page, name: str) -> None:
        self.page = page
        page.set_default_timeout(LIMIT)
        page.goto(f"{lab.address}/lab/tree/{name}?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")

    def wait_for_kernel(self) -> None:
        """Return when the kernel is idle, with nothing left to run."""
        self.page.wait_for_function(f"{_NOTEBOOK}?.sessionContext?.session?.kernel?.status == 'idle'")
        self.page.wait_for_function("!document.querySelector('.jp-Notebook').innerText.includes('[*]:')")

    def run_cell(self) -> None:
        """Run the selected cell and go to the next, as Shift-Enter does. Does not wait for it."""
        self.command("notebook:run-cell-and-select-next", wait=False)

    def command(self, name: str, arguments: dict[str, Any] | None = None, *, wait: bool = True) -> None:
        """A command of JupyterLab, as its menu gives it."""
        call = "([name, arguments]) => window.jupyterapp.commands.execute(name, arguments)"
        self.page.evaluate(call if wait else f"(it) => {{ ({call})(it) }}", [name, arguments or {}])

    def press_interrupt(self) -> None:
        """The stop button in the notebook's toolbar."""
        self.page.click("[data-command='notebook:interrupt-kernel']")

    def output(self, cell: int) -> Any:
        """The output area of a cell, as a locator."""
        return self.page.locator(".jp-CodeCell").nth(cell).locator(".jp-OutputArea")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
