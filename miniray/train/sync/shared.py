"""Sums over the ranks of one machine, through memory that they share.

Loopback is a network: what goes through it costs system calls and four copies, in threads that want the cores
on which the ranks compute. Here each rank writes into a slot of its own and adds up all slots. Only the word
that a slot is full goes through the process group, so the death of a rank is noticed as in any other
operation of the group.

    turn 0   slot of rank 0 | slot of rank 1 | …       written, told, read
    turn 1   slot of rank 0 | slot of rank 1 | …       by turns: who is told of a turn has read the one before

All ranks add in the same order, so all get the same bits. The memory has no name; it goes with the ranks.
Limits: every rank reads all slots, so it is for a few ranks; CPU tensors.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

MOST_RANKS = 8
"""With more ranks a ring moves fewer bytes."""
_TURNS = 2
_TOKEN_BYTES = 16
_PAGE = mmap.PAGESIZE
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class _Offer:
    """Where rank 0 has the memory, and what stands at its beginning."""

    machine: str
    pid: int
    descriptor: int
    token: bytes


class SharedSum:
    """Adds up equally shaped tensors of all ranks. Make one with `made`."""

    def __init__(self, memory: mmap.mmap, values: int) -> None:
        self._rank, self._values = dist.get_rank(), values
        slots = torch.frombuffer(memory, dtype=torch.float32, offset=_PAGE)
        self._slots = slots.view(_TURNS, dist.get_world_size(), -1)
        self._turn = 0
        self._full = torch.zeros(1)

    @classmethod
    def made(cls, values: int) -> SharedSum | None:
        """For up to `values` float32 values at a time. Every rank must call this at the same time.

        None, on every rank, where the ranks cannot share memory, are too many, or do not use gloo.
        """
        size = dist.get_world_size()
        if not 1 < size <= MOST_RANKS or dist.get_backend() != "gloo":
            return None
        slot = -(-4 * values // _PAGE) * _PAGE
        memory = _shared(_PAGE + _TURNS * size * slot)
        return None if memory is None else cls(memory, values)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the sum of all ranks'; theirs must lie in memory as these do.

        Raises ValueError when they do not fit, and what the process group raises when a rank has died.
        """
        parts = [_as_it_lies(tensor) for tensor in tensors]
        sizes = [len(part) for part in parts]
        if sum(sizes) > self._values:
            raise ValueError(f"{sum(sizes)} values, where this was made for {self._values} at a time")
        slots = [slot[: sum(sizes)] for slot in self._slots[self._turn]]
        self._turn = (self._turn + 1) % _TURNS
        torch.cat(parts, out=slots[self._rank])
        dist.all_reduce(self._full)
        for part, first, second, *others in zip(parts, *(torch.split(slot, sizes) for slot in slots)):
            torch.add(first, second, out=part)
            for other in others:
                part.add_(other)


def _as_it_lies(tensor: Tensor) -> Tensor:
    """A flat view of a tensor's values in the order in which memory has them."""
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise ValueError(f"a tensor of {tensor.dtype} on {tensor.device}: float32 on the CPU is wanted")
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.view(-1)


def _shared(size: int) -> mmap.mmap | None:
    """Memory of all ranks; None, on all of them, if one cannot reach it."""
    descriptor, memory = -1, None
    offers: list[_Offer | None] = [None]
    try:
        if dist.get_rank() == 0:
            with contextlib.suppress(OSError):
                descriptor = os.memfd_create("miniray-sum", os.MFD_CLOEXEC)
                memory, offers[0] = _offered(descriptor, size)
        dist.broadcast_object_list(offers)
        if dist.get_rank() != 0:
            memory = _reached(offers[0], size)
        reached = torch.tensor(float(memory is not None))
        dist.all_reduce(reached, dist.ReduceOp.MIN)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return memory if reached.item() else None


def _offered(descriptor: int, size: int) -> tuple[mmap.mmap, _Offer]:
    os.ftruncate(descriptor, size)
    memory, token = mmap.mmap(descriptor, size), secrets.token_bytes(_TOKEN_BYTES)
    memory[:_TOKEN_BYTES] = token
    return memory, _Offer(_BOOT_ID.read_text(), os.getpid(), descriptor, token)


def _reached(offer: _Offer | None, size: int) -> mmap.mmap | None:
    """What is offered, if this process runs on the same machine and sees that one by the same number."""
    try:
        if offer is None or _BOOT_ID.read_text() != offer.machine:
            return None
        descriptor = os.open(f"/proc/{offer.pid}/fd/{offer.descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return None
    return memory if memory[:_TOKEN_BYTES] == offer.token else None
