"""Numbers of bars as they can be drawn. Pure.

A bar counts whatever the user's code gives it: a loss that has become nan, a total that was a guess, a count past it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from nbsync.protocol.reports import Bar

MOST = 1e15  # of steps, seconds, and steps a second: what is above is drawn as this


def bounded(bar: Bar) -> Bar:
    """The bar itself, or one with numbers that are finite and not absurd: no number is taken for none."""
    n = _bounded(bar.n, -MOST) or 0
    total = _bounded(bar.total, 0)
    elapsed = _bounded(bar.elapsed, 0) or 0.0
    rate = _bounded(bar.rate, 1 / MOST)
    time = _bounded(bar.time, -MOST) or 0.0
    divisor = _bounded(bar.unit_divisor, 2) or 1000
    numbers = (n, total, elapsed, rate, time, divisor)
    if numbers == (bar.n, bar.total, bar.elapsed, bar.rate, bar.time, bar.unit_divisor):
        return bar
    return replace(bar, n=n, total=total, elapsed=elapsed, rate=rate, time=time, unit_divisor=divisor)


def _bounded(value: float | None, least: float) -> float | None:
    if value is None or value < least or (isinstance(value, float) and math.isnan(value)):
        return None
    return MOST if value > MOST else value
