"""How many threads a worker computes with, and on which processors."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

_PARALLEL = 1 << 16  # elements: enough for torch to share them among two threads


_pools: Any = None  # of libraries that are loaded; what a fork inherits need not be looked for in each rank


def look_for_pools() -> None:
    """Find the BLAS libraries of this process, if threadpoolctl is there to find them: a few milliseconds."""
    global _pools
    if "numpy" in sys.modules and find_spec("threadpoolctl") is not None:
        _pools = import_module("threadpoolctl").ThreadpoolController()


def use_threads(count: int) -> None:
    """Let torch, and a BLAS library that is loaded already, use so many threads, and try them.

    If a pool of threads did not survive the fork it hangs here, where that is noticed.
    """
    torch.set_num_threads(count)
    torch.ones(_PARALLEL).add_(1)
    if _pools is None:
        look_for_pools()
    if _pools is not None:  # numpy's own is deaf to OMP_NUM_THREADS once it is loaded
        for library in _pools.lib_controllers:
            if library.user_api == "blas":
                _limit(library, count)


def _limit(library: Any, count: int) -> None:
    """Let a BLAS library use so many threads.

    OpenBLAS, when it is asked for that, first starts anew the threads that the fork did not copy, and each of them
    spins for 30 to 100 ms: on every rank, in the middle of its start. So its variable is set where fewer are wanted.
    """
    has_own_pool = library.internal_api == "openblas" and library.threading_layer == "pthreads"
    if has_own_pool and count < (library.num_threads or 0):
        with suppress(ValueError):  # another build, which hides it
            ctypes.c_int.in_dll(library.dynlib, "blas_cpu_number").value = count
    if library.num_threads != count:
        library.set_num_threads(count)


def bind_near_gpu(gpu: int, how: str) -> None:
    """Bind all threads of this process to the processors near a GPU, as torchrun does.

    Args:
        how: "node", "socket", "exclusive" or "core-complex"; see `torch.numa.binding.AffinityMode`.
    """
    binding: Any = import_module("torch.numa.binding")
    options = binding.NumaOptions(affinity_mode=binding.AffinityMode(how))
    binding._maybe_apply_numa_binding_to_current_process(gpu_index=gpu, numa_options=options)
