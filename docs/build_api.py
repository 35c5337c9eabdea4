"""Writes docs/api.md from the docstrings of the public names: `python docs/build_api.py`, or `make docs`."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path
from typing import Any, cast

import griffe
import griffe2md

import nbsync

PAGE = Path(__file__).parent / "api.md"
_FIRST = ("notebook_launcher", "Session", "session", "World", "get_logger", "tqdm")
_HEAD = """# API reference

Everything that `import nbsync` offers, from its docstrings. `make docs` writes this page; do not edit it.
The magics are described in the [README](../README.md#magics), names that differ from Accelerate's in
[accelerate.md](accelerate.md).
"""
_TQDM = """## `tqdm`

`tqdm.auto.tqdm`, as it is. In a worker its bars appear in the notebook, and so do those of every library's tqdm.
"""
_ANCHORS = {"session": "session-1"}  # beside `Session`
_CONFIG = {
    "heading_level": 2,
    "inherited_members": True,
    "show_root_full_path": False,
    "show_object_full_path": False,
    "show_root_members_full_path": False,
    "members_order": "source",
    "signature_crossrefs": False,
    "show_if_no_docstring": False,
    "filters": ["!^_"],
}


def render() -> str:
    """The whole page."""
    logging.getLogger("griffe").setLevel(logging.ERROR)  # it would note each of our shorter forms of "Raises"
    package = cast(griffe.Module, griffe.load("nbsync", docstring_parser="google"))
    names = [*_FIRST, *(name for name in nbsync.__all__ if name not in _FIRST)]
    parts = [_HEAD, f"{' · '.join(f'[`{name}`](#{_ANCHORS.get(name, name.lower())})' for name in names)}\n"]
    for name in names:
        parts.append(_TQDM if name == "tqdm" else _section(name, package))
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _section(name: str, package: griffe.Module) -> str:
    home = inspect.getmodule(getattr(nbsync, name))
    assert home is not None
    path = f"{home.__name__}.{name}".removeprefix("nbsync.")
    text: str = griffe2md.render_object_docs(cast(Any, package[path]), cast(Any, _CONFIG), format_md=False)
    return _readable(text, name, f"nbsync.{path}")


def _readable(text: str, name: str, path: str) -> str:
    """Links that lead nowhere become plain text, and those within the page lead to its headings."""
    text = re.sub(r"<code>(.*?)</code>", lambda m: f"`{_unlinked(m[1])}`", text, flags=re.DOTALL)
    own = rf"\[\*\*(\w+)\*\*\]\(#(?:{re.escape(path)}|[\w.]+)\.\w+\)"
    text = re.sub(own, lambda m: f"[`{m[1]}`](#{name.lower()}{m[1].lower()})", text)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if match := re.fullmatch(r"### `(?:[\w.]*\.)?(\w+)`", line):
            lines[number] = f"### `{name}.{match[1]}`"
        elif match := re.fullmatch(r"## `(?:[\w.]*\.)?(\w+)`", line):
            lines[number] = f"## `{match[1]}`"
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _unlinked(text: str) -> str:
    return re.sub(r"\[([\w.]+)\]\(#[^)]*\)", r"\1", text).replace("`", "").replace("\\", "")


if __name__ == "__main__":
    PAGE.write_text(render())
