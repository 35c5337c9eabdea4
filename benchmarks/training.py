"""What comparing collectives between ranks adds to training: the quickstart's step, with and without."""

from __future__ import annotations

from kernels import Kernel
from report import Row, at_most_times

STEPS = 22  # of one epoch of the quickstart on 2 ranks
LIMIT, AIM = 1.15, 1.05  # times the epoch that does not compare

_SETUP = """
import statistics, time
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import nbsync


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 4 * 4, 10),
    )


def epoch(world, model, optimizer, steps):
    '''An epoch of the quickstart: the steps, then the mean loss over the ranks and a look at the trigger.'''
    images, labels = torch.rand(64, 1, 8, 8), torch.randint(10, (64,))
    world.wait_for_everyone()
    start, total = time.perf_counter(), 0.0
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    world.reduce(total, "mean")
    world.check_trigger()
    return time.perf_counter() - start


sessions = {compare: nbsync.Session(2, compare_collectives=compare) for compare in (True, False)}
for session in sessions.values():
    session.run_cell(
        "model = DistributedDataParallel(small_cnn())\\n"
        "optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)"
    )
"""


def training(repeats: int) -> Row:
    """One epoch of the quickstart's training, in two sessions by turns."""
    series: dict[str, list[float]] = {"comparing": [], "not comparing": []}
    with Kernel("import torch", _SETUP) as kernel:
        for number in range(2 + 2 * repeats):
            for name, compare in (("comparing", True), ("not comparing", False)):
                cell = f"taken = epoch(world, model, optimizer, {STEPS})"
                kernel.run(f"sessions[{compare}].run_cell({cell!r})")
                shown = kernel.run(f"print(sessions[{compare}].pull('taken', ranks=0)[0])")
                if number >= 2:
                    series[name].append(float(shown.stdout))
    check = at_most_times(
        "comparing", series["comparing"], "not comparing", series["not comparing"], limit=LIMIT, aim=AIM
    )
    return Row("training", f"an epoch of {STEPS} steps of the quickstart, 2 ranks", series, [check])
