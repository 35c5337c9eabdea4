"""The C++ libraries that torch consists of and stands on, for what Python has no name for."""

from __future__ import annotations

import ctypes
import functools
import os

import torch


@functools.cache
def cpp_library() -> ctypes.CDLL:
    """The library of C++ itself. A call of one of its functions lets go of the GIL.

    Raises:
        OSError: there is none of this name, so torch was built with another one.
    """
    return ctypes.CDLL("libstdc++.so.6")


@functools.cache
def torch_library(name: str) -> ctypes.CDLL:
    """The library `name`, e.g. "torch_cpu". A call of one of its functions lets go of the GIL.

    Raises:
        OSError: this build of torch has none of that name.
    """
    return ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", f"lib{name}.so"))
