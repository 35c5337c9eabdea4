"""The future of a `Work`: who waits for it, or is called when it is there, has waited for the `Work`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from nbsync.worker.groups.underway import Begun, Underway
from nbsync.worker.replacing import replace_function

#: What must be there to watch them, as names in torch.
NEEDS = ("distributed.Work.get_future", "_C.Future.wait", "_C.Future.value", "_C.Future.then", "_C._collect_all")


class FutureWatch:
    """Has them waited for, and compared, as every `Work` is.

    Args:
        wait: as `CollectiveWatch.wait`.
        on_future: told what a future was given out of.
    """

    def __init__(
        self,
        wait: Callable[[Any, Callable[[], Any]], Any],
        on_future: Callable[[Begun], None],
        underway: Underway,
    ) -> None:
        self._wait, self._on_future, self._underway = wait, on_future, underway

    def install(self) -> None:
        """Replace the methods of torch's futures, and of `Work` the one that gives them."""
        replace_function(dist.Work, "get_future", self._get_future)
        for method in ("wait", "value"):
            replace_function(torch._C.Future, method, self._wait_for)
        replace_function(torch._C.Future, "then", self._then)
        replace_function(torch._C, "_collect_all", self._collect_all)

    def _get_future(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def get_future(work: Any) -> Any:
            begun = self._underway.known(work)
            self._on_future(begun)
            return self._underway.also(original(work), begun)

        return get_future

    def _wait_for(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def wait(future: Any) -> Any:
            if not self._underway.knows(future):  # the user's own
                return original(future)
            return self._wait(future, lambda: original(future))

        return wait

    def _then(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def then(future: Any, callback: Callable[[Any], Any]) -> Any:
            if not self._underway.knows(future):
                return original(future, callback)
            begun = self._underway.known(future)

            def compare_and_call(done: Any) -> Any:
                self._underway.compare(begun)
                return callback(done)

            return self._underway.also(original(future, compare_and_call), begun)

        return then

    def _collect_all(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def collect_all(futures: Sequence[Any]) -> Any:
            begun = [self._underway.known(future) for future in futures if self._underway.knows(future)]

            def compare(done: Any) -> Any:
                self._underway.compare(*begun)
                return done.value()

            collected = original(futures)
            return collected.then(compare) if begun else collected

        return collect_all
