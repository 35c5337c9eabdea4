"""What the ranks of one machine tell each other in memory that they share."""

from __future__ import annotations

import os
from contextlib import suppress

from nbsync.protocol.spec import WorkerSpec
from nbsync.worker.control.barrier import set_notes
from nbsync.worker.control.notes import PageNotes
from nbsync.worker.groups.ledger import Ledger
from nbsync.worker.groups.watch import CollectiveWatch


def share_pages(spec: WorkerSpec, watch: CollectiveWatch, life: int) -> None:
    """Let the ranks see who is in a barrier, and what the others have begun, without asking anybody.

    Args:
        life: which life of the process groups.
    """
    set_notes(None)  # what was noted in an earlier life means nothing
    watch.underway.ledger = None
    if spec.scratch:
        with suppress(OSError):  # e.g. a full disk: barriers ask the store instead, and less is compared
            set_notes(PageNotes(os.path.join(spec.scratch, "barrier"), spec.world_size, life))
            watch.underway.ledger = Ledger(os.path.join(spec.scratch, "ledger"), spec.world_size, spec.rank, life)
