"""What a kernel's end leaves for the next one to tell: whose workers were ended because their kernel was killed.

The guard leaves a note beside the kernel's connection file, which the next kernel of the same notebook has too.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_note: Path | None = None


def leave_notes_beside(connection_file: Path) -> None:
    """From now on, a note can be left for the next kernel with this connection file; others' that none follows go."""
    global _note
    for other in connection_file.parent.glob("nbsync-*.note"):
        if not other.with_name(other.stem.removeprefix("nbsync-") + ".json").exists():
            other.unlink(missing_ok=True)
    _note = connection_file.with_name(f"nbsync-{connection_file.stem}.note")  # not *.json, which clients look for


def note() -> Path | None:
    """Where a note can be left; None where no kernel comes after this one."""
    return _note


def take_note() -> str | None:
    """What is to be told, once, of the kernel that was here before; None if nothing is."""
    text = ""
    if _note is not None:
        with suppress(OSError):  # there is none
            text = _note.read_text()
            _note.unlink()
    count = len(text.split())
    if not count:
        return None
    workers = "its worker was" if count == 1 else f"its {count} workers were"
    return (
        f"previous workers cleaned: the kernel before this one was killed, and {workers} ended; "
        "what was in their memory is lost"
    )
