"""Fixtures of the native tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from miniray._native import Store


@pytest.fixture
def store() -> Iterator[Store]:
    """A small store as its raylet sees it; whole, when the test is over."""
    store = Store.create(1 << 20)
    yield store
    store.check()
    store.close()
