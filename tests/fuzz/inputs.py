"""The targets by name, their corpora, and seeded inputs made of them."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
TARGETS = {
    **dict.fromkeys(("head", "node"), "machines"),
    **dict.fromkeys(("frame", "circuit", "task_events", "environment", "metrics"), "parsers"),
    **dict.fromkeys(("join_string", "archive", "request_head"), "parsers"),
}
"""Name -> module."""

_loaded: dict[str, Callable[[bytes], None]] = {}


def load() -> None:
    """Import all targets."""
    for name, module in TARGETS.items():
        _loaded[name] = getattr(importlib.import_module(f"tests.fuzz.{module}"), name)


def run(target: str, data: bytes) -> None:
    """One input. Whatever it raises is a finding."""
    if not _loaded:
        load()
    try:
        _loaded[target](data)
    except BaseException:
        print(f"{target}: {data.hex()}")
        raise


def corpus(target: str) -> list[bytes]:
    """The kept inputs of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]


def stream(target: str, seed: int) -> Iterator[bytes]:
    """The corpus, then mutations of it and random bytes, for ever; the same for the same seed."""
    rng = random.Random(seed)
    kept = corpus(target)
    yield from kept
    while True:
        if kept and rng.random() < 0.7:
            yield _mutated(rng, rng.choice(kept), kept)
        else:
            yield rng.randbytes(rng.choice((8, 60, 300, 1500)))


def _mutated(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(changed))
        how = rng.randrange(5)
        if how == 0:
            del changed[at : at + rng.randint(1, 8)]
        elif how == 1:
            changed[at:at] = rng.randbytes(rng.randint(1, 8))
        elif how == 2:
            changed[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\0\0\0\x80", b"\xff\xff\xff\x7f"))
        elif how == 3 and changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        else:
            other = rng.choice(others)
            changed[at:] = other[rng.randint(0, len(other)) :]
    return bytes(changed)
