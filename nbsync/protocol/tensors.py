"""How tensors are pickled: their memory lies beside the pickle.

They are sent from CPU memory: a CUDA tensor arrives as a CPU tensor, so that the kernel never initialises CUDA.
"""

from __future__ import annotations

import pickle
import sys
from importlib import import_module
from typing import Any


def reduce_tensor(obj: Any) -> Any:
    """How a tensor or its storage is pickled; NotImplemented for anything else, and where torch does it well."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return NotImplemented
    kind = type(obj)  # a proxy's `__class__` may raise
    if issubclass(kind, torch.Tensor) and obj.device.type not in ("cpu", "meta"):
        if isinstance(obj, torch.nn.Parameter):
            return torch.nn.Parameter(obj.detach().cpu(), obj.requires_grad).__reduce_ex__(5)
        return obj.cpu().__reduce_ex__(5)
    if issubclass(kind, torch.storage.TypedStorage):
        return _rebuild_typed, (obj._untyped_storage, obj.dtype)
    if issubclass(kind, torch.UntypedStorage) and obj.device.type == "cpu":
        return _rebuild_storage, (obj.nbytes(), *_storage_buffer(torch, obj))
    return NotImplemented


def _storage_buffer(torch: Any, storage: Any) -> list[pickle.PickleBuffer]:
    if not storage.nbytes():
        return []
    return [pickle.PickleBuffer(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())]


def _rebuild_typed(untyped: Any, dtype: Any) -> Any:
    torch = _torch()
    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)


def _rebuild_storage(nbytes: int, buffer: Any = None) -> Any:
    torch = _torch()
    if not nbytes:
        return torch.UntypedStorage(0)
    return torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()


def _torch() -> Any:
    return import_module("torch")
