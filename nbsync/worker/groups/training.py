"""What the user trains with, and what it needs when a run has cut it short or the groups begin a new life."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence

from torch._C._distributed_c10d import Store

from nbsync.worker.groups import pipelines
from nbsync.worker.groups.flat import FlatKeeper
from nbsync.worker.groups.models import ModelKeeper
from nbsync.worker.groups.sharded import ShardKeeper
from nbsync.worker.groups.steps import StepKeeper


class Training:
    """The DDP, FSDP1 and FSDP2 models, optimizers and pipeline schedules of this process.

    Attributes:
        is_uneven: a run has cut something short here, so that all ranks must heal.
    """

    def __init__(self) -> None:
        self.is_uneven = False
        self._models, self._sharded, self._flat = ModelKeeper(), ShardKeeper(), FlatKeeper()
        self._steps = StepKeeper(self._flat.parameters, self._models.places)

    def install(self) -> None:
        """Take note of what is made from now on."""
        for keeper in (self._models, self._flat, self._steps):
            keeper.install()

    def end_run(self, well: bool) -> None:
        """After each run but a heal: see to what it has cut short. Waits for nobody."""
        try:
            for keeper in (self._sharded, self._flat, self._steps):
                keeper.end_run(well)
            cut = any((self._sharded.are_uneven, self._flat.are_uneven, self._steps.are_torn))
            left = not well and (self._models.has_unfinished() or pipelines.are_in_use())
            self.is_uneven = self.is_uneven or cut or left
        except Exception:  # by the insides of torch or of a user's object: the rank and its state are worth more
            print("nbsync: not all models could be looked after when the run ended", file=sys.stderr)
            traceback.print_exc()

    def changes(self) -> Iterator[tuple[str, int]]:
        """Numbers that are the same on all ranks while all is well."""
        yield from self._models.changes()
        yield from self._steps.made()

    def tell(self, store: Store, rank: int) -> None:
        """Tell the other ranks how all stands here, before they heal together."""
        for keeper in (self._models, self._sharded, self._flat, self._steps):
            keeper.tell(store, rank)

    def agree(self, store: Store, rank: int, ranks: Sequence[int], groups: Mapping[str, Sequence[int]]) -> None:
        """Bring all of it to the same state on all ranks, and name what cannot be.

        Args:
            groups: the names of the groups that all their members know, with those.
        """
        self._models.agree(store, groups)
        self._sharded.agree(store, ranks)
        self._flat.agree(store, ranks)
        self._steps.agree(store, ranks, rank)
        pipelines.begin_anew()

    def healed(self) -> None:
        """The groups live again."""
        self.is_uneven = False
