"""The records behind references: one value for ever, waiters, copies."""

from __future__ import annotations

import pytest
from owner_rig import W1

from miniray.core.directory import FAILED, INLINE, PENDING, STORED, UNKNOWN, Directory

OID = bytes(28)
NODE = b"n" * 28


def test_an_object_is_ready_once_it_has_a_value_a_location_or_an_error() -> None:
    for state in (INLINE, STORED, FAILED):
        directory = Directory()
        entry = directory.own(OID)
        assert not entry.ready
        entry.more().locations[NODE] = None
        directory.complete(entry, state, b"")
        assert entry.ready
        directory.check()


def test_a_second_value_is_ignored() -> None:
    directory = Directory()
    entry = directory.own(OID)
    directory.complete(entry, INLINE, b"first")
    assert directory.complete(entry, INLINE, b"second") == []
    assert directory.complete(entry, FAILED, "error") == []
    assert (entry.state, entry.value) == (INLINE, b"first")


def test_completion_hands_back_whoever_waited_once_and_in_order() -> None:
    directory = Directory()
    entry = directory.own(OID)
    for waiter in ("a", "b", "a"):
        directory.await_(entry, waiter)
    assert directory.complete(entry, INLINE, b"") == ["a", "b", "a"]
    assert entry.waiters is None


def test_nobody_waits_for_what_is_ready() -> None:
    directory = Directory()
    entry = directory.own(OID)
    directory.complete(entry, INLINE, b"")
    with pytest.raises(AssertionError):
        directory.await_(entry, "late")


def test_an_object_met_in_a_message_is_borrowed_and_unknown() -> None:
    directory = Directory()
    entry = directory.know(OID, W1)
    assert (entry.owner, entry.state) == (W1, UNKNOWN)
    assert directory.know(OID, W1) is entry


def test_a_lost_object_can_be_completed_anew() -> None:
    directory = Directory()
    entry = directory.own(OID)
    entry.more().locations[NODE] = None
    directory.complete(entry, STORED, None, 10)
    directory.reopen(entry)
    assert (entry.state, entry.locations) == (PENDING, [])
    directory.complete(entry, INLINE, b"again")
    assert entry.value == b"again"


def test_a_stored_object_without_a_copy_is_noticed() -> None:
    directory = Directory()
    directory.complete(directory.own(OID), STORED, None, 10)
    with pytest.raises(AssertionError, match="nowhere"):
        directory.check()
