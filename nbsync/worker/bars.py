"""tqdm in a worker writes text: a rank has no widgets of its own."""

from __future__ import annotations

import tqdm.notebook  # in the kernel already, where the fork copies it from


def use_text_bars() -> None:
    """Make the notebook flavour of tqdm, as `tqdm.auto` chose it in the kernel, behave like the plain one.

    The class itself is changed, since the user's code and libraries hold references to it.
    """
    bar = tqdm.notebook.tqdm_notebook
    for name in (
        "__init__",
        "__iter__",
        "update",
        "close",
        "clear",
        "reset",
        "display",
        "status_printer",
        "colour",
    ):
        if name in vars(bar):
            delattr(bar, name)
    # Nested bars move the cursor up and down; here they take turns on one line.
    tqdm.std.tqdm.moveto = lambda self, n: None
