"""Text that ranks have sent, made safe for a page: escaped, and cut where it is longer than anybody reads."""

from __future__ import annotations

from html import escape

LONGEST = 160  # characters


def safe(text: str, longest: int = LONGEST) -> str:
    """The text as HTML of at most `longest` characters that show. Control characters become spaces."""
    short = text if len(text) <= longest else text[: longest - 1] + "…"
    return escape(short if short.isprintable() else "".join(c if c.isprintable() else " " for c in short))
