"""tqdm in a worker writes text: a rank has no widgets of its own."""

from __future__ import annotations

import sys


def use_text_bars() -> None:
    """Make the notebook flavour of tqdm, as `tqdm.auto` chose it in the kernel, behave like the plain one.

    The class itself is changed, since the user's code and libraries hold references to it.
    """
    notebook = sys.modules.get("tqdm.notebook")
    if notebook is None:
        return
    bar = notebook.tqdm_notebook
    for name in ("__init__", "__iter__", "update", "close", "clear", "reset", "display", "status_printer", "colour"):
        if name in vars(bar):
            delattr(bar, name)
