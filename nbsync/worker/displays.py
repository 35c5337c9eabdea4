"""What a worker's code shows (the last expression of a cell, `display`), in plain data that any process can take."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

Bundle = tuple[dict[str, Any], dict[str, Any]]

_MOST_TEXT = 1_000_000  # characters of one text that are shown
_WIDGET = "application/vnd.jupyter.widget-view+json"  # its model lives in the rank, out of the browser's reach


def presentable(data: dict[str, Any]) -> dict[str, Any]:
    """A mime bundle in plain data, which any process can take."""
    shown = {
        str(kind): value if isinstance(value, str | bytes) else plain(value)
        for kind, value in data.items()
        if kind != _WIDGET
    }
    text = shown.get("text/plain")
    if isinstance(text, str) and len(text) > _MOST_TEXT:
        shown["text/plain"] = f"{text[:_MOST_TEXT]}... ({len(text) - _MOST_TEXT:,} more characters)"
    return shown


def plain(value: Any) -> Any:
    """The value as JSON has it, what JSON has not as its repr."""
    try:
        return json.loads(json.dumps(value, default=repr))
    except (TypeError, ValueError):  # keys that are no strings, a value that contains itself
        return repr(value)


class Hook(DisplayHook):  # type: ignore[misc]  # traitlets
    """Keeps the last expression for the cell's end; earlier ones (ast_node_interactivity="all") show at once."""

    def __init__(self, shell: InteractiveShell, show: Callable[..., None]) -> None:
        super().__init__(shell=shell, cache_size=shell.cache_size)
        self._show_bundle = show
        self._code = ""
        self._kept: Bundle | None = None
        self.do_full_cache = 0  # no Out[n]: it would keep every cell's result alive on every rank

    def begin(self, code: str) -> None:
        self._code, self._kept = code, None

    def set_parent(self, parent: Any) -> None:
        """`ipywidgets.Output`, which rich draws in, sets the kernel's current cell: here there is one always."""

    def take(self) -> Bundle | None:
        kept, self._kept = self._kept, None
        return kept

    def quiet(self) -> bool:
        return bool(self.semicolon_at_end_of_expression(self._code))

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        if self._kept is not None:
            self._show_bundle(*self._kept)
        self._kept = (presentable(format_dict), plain(md_dict or {}))

    def log_output(self, format_dict: dict[str, Any]) -> None:
        pass

    def finish_displayhook(self) -> None:
        self._is_active = False


class Publisher(DisplayPublisher):  # type: ignore[misc]  # traitlets
    """Hands on what user code displays; `clear` is told whether to wait for the next output."""

    def __init__(self, show: Callable[..., None], clear: Callable[[bool], None]) -> None:
        super().__init__()
        self._show_bundle, self._clear_output = show, clear

    def set_parent(self, parent: Any) -> None:
        """As that of `Hook`."""

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: str | None = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **kwargs: Any,
    ) -> None:
        self._show_bundle(data, metadata, (transient or {}).get("display_id"), update)

    def clear_output(self, wait: bool = False) -> None:
        self._clear_output(wait)
