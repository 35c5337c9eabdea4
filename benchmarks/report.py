"""The table: medians with their range, and for each row whether it reached its target."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

Samples = Sequence[float]

_ENOUGH_FOR_P99 = 100


@dataclass(frozen=True)
class Check:
    """One target of a row, what was measured, and whether that reaches it."""

    text: str
    met: bool

    def __str__(self) -> str:
        return f"{'met   ' if self.met else 'MISSED'}  {self.text}"


@dataclass(frozen=True)
class Row:
    """One kind of work, done by several tools in turn.

    Attributes:
        series: the seconds of each repeat, by the tool's name.
        checks: the targets; none where no target was set.
    """

    name: str
    title: str
    series: Mapping[str, Samples]
    checks: Sequence[Check] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The row in plain data, with every sample."""
        return {
            "name": self.name,
            "title": self.title,
            "series": {tool: list(samples) for tool, samples in self.series.items()},
            "checks": [{"text": check.text, "met": check.met} for check in self.checks],
        }

    def __str__(self) -> str:
        tools = [f"  {tool:<34}{_summary(samples)}" for tool, samples in self.series.items()]
        checks = [f"  {check}" for check in self.checks] or ["  no target"]
        return "\n".join([f"{self.name}: {self.title}", *tools, *checks])


def at_most(what: str, samples: Samples, limit: float) -> Check:
    """The median takes `limit` seconds at most."""
    median = statistics.median(samples)
    return Check(f"{what}: at most {_duration(limit)}, is {_duration(median)}", median <= limit)


def at_most_times(what: str, mine: Samples, other: str, others: Samples, *, limit: float, aim: float) -> Check:
    """The median takes at most `limit` times another tool's. On a busy machine the fastest repeats say more."""
    ratio, best = (pick(mine) / pick(others) for pick in (statistics.median, min))
    text = f"{what}: at most {limit:g} of {other} (aim {aim:g}), is {ratio:.2f} (fastest repeats: {best:.2f})"
    return Check(text, ratio <= limit)


def at_most_above(what: str, mine: Samples, other: str, others: Samples, *, limit: float) -> Check:
    """The median takes at most `limit` seconds more than another one."""
    more, best = (pick(mine) - pick(others) for pick in (statistics.median, min))
    text = f"{what}: at most {_duration(limit)} above {other}, is {_duration(more)}"
    return Check(f"{text} (fastest repeats: {_duration(best)})", more <= limit)


def heading() -> str:
    """The machine, the versions, and what the columns mean."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "accelerate", "ipykernel"))
    cores = len(os.sched_getaffinity(0))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    columns = f"  {'':<34}{'median':>10}  {'min - max':>23}  {'p99':>10}  {'n':>4}"
    return f"Python {platform.python_version()}, {packages}; {cores} cores, load {load}\n\n{columns}"


def summary(rows: Sequence[Row]) -> str:
    """The last line: how many targets were met, and which not."""
    checks = [check for row in rows for check in row.checks]
    missed = [row.name for row in rows if not all(check.met for check in row.checks)]
    text = f"{sum(check.met for check in checks)} of {len(checks)} targets met"
    return f"{text}; missed in: {', '.join(missed)}" if missed else text


def _summary(samples: Samples) -> str:
    spread = f"{_duration(min(samples))} - {_duration(max(samples))}"
    p99 = _duration(_percentile(samples, 0.99)) if len(samples) >= _ENOUGH_FOR_P99 else ""
    return f"{_duration(statistics.median(samples)):>10}  {spread:>23}  {p99:>10}  {len(samples):>4}"


def _percentile(samples: Samples, share: float) -> float:
    return sorted(samples)[math.ceil(share * len(samples)) - 1]


def _duration(seconds: float) -> str:
    if abs(seconds) >= 1:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.1f} ms" if abs(seconds) >= 0.001 else f"{1000 * seconds:.3f} ms"
