"""torch tensors through the object store: memory out of band, never through torch's own pickle.

A CPU tensor comes back on the very bytes of the object: from the store that is shared memory
mapped read-only, so writing into it ends the process (as with any constant memory); clone() what
is to be changed. Inline values are copied and may be written. Values keep dtype, shape and
requires_grad; a tensor that is not contiguous comes back contiguous.

A CUDA tensor is copied to the host and back to a device of the receiver; a receiver without one
gets a clear error. Imported only in processes that have torch.
"""

from __future__ import annotations

import pickle
from typing import Any

COPY_BELOW = 64 * 1024
"""Tensors smaller than this (bytes) are copied on arrival: cheap, and then they may be written."""


def reduce_tensor(pickler: Any, tensor: Any) -> Any:
    """The reducer of `torch.Tensor` (exact type)."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return NotImplemented
    data = tensor.detach()
    device = ""
    if data.device.type != "cpu":
        device = data.device.type
        data = data.cpu()
    data = data.resolve_conj().resolve_neg().contiguous()
    raw = data.reshape(-1).view(torch.uint8).numpy()
    dtype = str(tensor.dtype).removeprefix("torch.")
    buffer = pickle.PickleBuffer(raw) if raw.nbytes else b""
    return rebuild_tensor, (buffer, dtype, tuple(tensor.shape), tensor.requires_grad, device)


def rebuild_tensor(buffer: Any, dtype: str, shape: tuple[int, ...], requires_grad: bool, device: str) -> Any:
    """The tensor that `reduce_tensor` described, on `buffer` itself where that is safe."""
    import warnings

    import torch

    kind = getattr(torch, dtype)
    if not len(buffer):
        tensor = torch.empty(shape, dtype=kind)
    else:
        if len(buffer) < COPY_BELOW or _is_inline(buffer):
            buffer = bytearray(buffer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "the buffer is not writable": known
            tensor = torch.frombuffer(buffer, dtype=kind).reshape(shape)
    if device:
        tensor = _to_device(tensor, device)
    return tensor.requires_grad_() if requires_grad else tensor


def _is_inline(buffer: Any) -> bool:
    """True when the bytes are an ordinary Python object, which must never be changed under it."""
    return isinstance(memoryview(buffer).obj, (bytes, bytearray))


def _to_device(tensor: Any, device: str) -> Any:
    import torch

    accelerator = getattr(torch, device, None)
    if accelerator is None or not accelerator.is_available():
        raise RuntimeError(
            f"the tensor lives on a {device} device and this worker has none: ask for one with num_gpus, "
            "or call .cpu() before it is returned, passed or put"
        )
    return tensor.to(device)
