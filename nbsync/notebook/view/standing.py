"""How each rank stands at a moment, in one word and one line. Pure."""

from __future__ import annotations

from collections import Counter

from nbsync.kernel.state import Phase, RankState, Snapshot
from nbsync.protocol.words import describe_ranks

#: From the worst to the best: the first that a rank has is the state of the whole run.
WORDS = ("dead", "failed", "interrupted", "released", "waiting", "running", "starting", "done", "idle")
SIGNS = {
    "dead": "✖",
    "failed": "✖",
    "interrupted": "◼",
    "released": "◻",
    "waiting": "◔",
    "running": "▶",
    "starting": "…",
    "done": "✔",
    "idle": "·",
}


def standing(state: RankState, snapshot: Snapshot) -> str:
    """One of `WORDS`."""
    if state.phase is Phase.DEAD:
        return "dead"
    if state.rank not in snapshot.in_run:
        return "idle"
    if state.ending is not None:
        return state.ending.value
    if state.phase is Phase.STARTING:
        return "starting"
    return "waiting" if any(state.rank in g.arrived for g in snapshot.waiting) else "running"


def overall(snapshot: Snapshot) -> str:
    """The state of the run: what goes on, or else how it ended."""
    words = {standing(state, snapshot) for state in snapshot.ranks if state.rank in snapshot.in_run}
    if "running" in words or "waiting" in words:
        return "running" if "running" in words else "waiting"
    return next((word for word in WORDS if word in words), "done")


def counts(snapshot: Snapshot) -> str:
    """E.g. "500 running, 12 waiting"."""
    found = Counter(standing(state, snapshot) for state in snapshot.ranks)
    return ", ".join(f"{found[word]} {word}" for word in WORDS if found[word])


def activity(state: RankState, snapshot: Snapshot) -> str:
    """What the rank does, or why it does not."""
    word = standing(state, snapshot)
    if word == "dead":
        return state.note
    if word == "done":
        return f"after {state.answered - snapshot.began:.1f} s" if snapshot.began else ""
    if state.error:
        return state.error
    if word == "idle" or state.place is None:
        return "does not run this cell" if word == "idle" else ""
    inside = next((g for g in snapshot.waiting if state.rank in g.arrived), None)
    seconds = snapshot.now - state.place.since
    where = f"at {state.place.line}, {seconds:.0f} s" if state.place.line else ""
    if inside is None:
        return where
    missing = f" for {describe_ranks(inside.missing)}" if inside.missing else ""
    return f"waits in {inside.name}{missing}"


def is_worth_keeping(snapshot: Snapshot) -> bool:
    """Whether the end of the run has anything to tell that the cell does not tell anyway."""
    words = {standing(state, snapshot) for state in snapshot.ranks if state.rank in snapshot.in_run}
    return bool(words - {"done"} or snapshot.passed or any(state.bars for state in snapshot.ranks))


def is_notable(state: RankState, snapshot: Snapshot) -> bool:
    """Whether the rank is to be called out among many: it failed, ended, or most of the others wait for it."""
    if standing(state, snapshot) in ("dead", "failed"):
        return True
    return any(len(g.missing) < len(g.arrived) and state.rank in g.missing for g in snapshot.waiting)
