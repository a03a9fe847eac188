"""Owners tell raylets whose pulls do not get on where copies come and go, and forget them in every case."""

from __future__ import annotations

import pytest

from miniray.core import subscribers
from miniray.core.subscribers import FREED, TOLD_MOST
from tests.core.owner_rig import ME, Rig, address, inline, stored

N1, N2, N3 = ME[0], address(2, 0)[0], address(3, 0)[0]


def with_task() -> Rig:
    """`a` was made by a task and is in the store of n1; n3 pulls it and has heard so."""
    rig = Rig()
    rig.submit("a", retries=3)
    rig.grant(1)
    rig.reply("a", stored())
    rig.effects()
    subscribe(rig, "a")
    assert rig.effects() == ["tell n3 of a: at n1"]
    return rig


def subscribe(rig: Rig, name: str, node: bytes = N3) -> None:
    rig.owner.subscribers.subscribed(rig.entries[name].id, node)


def lose(rig: Rig, name: str, node: bytes) -> None:
    """The copy on `node` is gone, and the shell does as the machine says."""
    entry = rig.entries[name]
    if rig.owner.location_removed(rig.now, entry.id, node):
        refusal = rig.owner.rebuild(rig.now, entry)
        if refusal is not None:
            rig.owner.lost(entry, refusal.reason)


def test_copies_that_come_and_go_are_told_of() -> None:
    rig = with_task()
    oid = rig.entries["a"].id
    rig.owner.location_added(oid, N2)
    assert rig.effects() == ["tell n3 of a: at n2"]
    rig.owner.location_added(oid, N2)
    assert rig.effects() == [], "it is known"
    lose(rig, "a", N1)
    assert rig.effects() == ["tell n3 of a: not at n1"]
    rig.owner.location_added(oid, N3)
    assert rig.effects() == [] and not rig.owner.subscribers.of, "its own copy ends the subscription"


def test_an_object_that_is_lost_and_made_again_is_told_of_the_moment_it_is_there() -> None:
    rig = with_task()
    lose(rig, "a", N1)
    assert rig.effects() == ["tell n3 of a: not at n1", "tell n3 of a: nowhere", "push a to w1"]
    subscribe(rig, "a", N2)
    assert rig.effects() == ["tell n2 of a: nowhere"], "who asks in between waits as well"
    rig.reply("a", stored())
    assert "tell n3 n2 of a: at n1" in rig.effects()


@pytest.mark.parametrize("how", ["freed", "failed", "small"])
def test_subscribers_hear_when_there_will_be_no_copy(how: str) -> None:
    rig = with_task()
    if how == "freed":
        rig.drop("a")
        over = FREED
    elif how == "failed":
        rig.records["a"].retries_left = 0
        lose(rig, "a", N1)
        over = "it has failed"
    else:
        lose(rig, "a", N1)
        rig.reply("a", inline())    # made anew, it is small
        over = "its owner has the value itself"
    assert f"tell n3 of a: over: {over}" in rig.effects() and not rig.owner.subscribers.of


def test_who_subscribes_too_late_is_told_so() -> None:
    rig = Rig()
    rig.put("small")
    subscribe(rig, "small")
    rig.put("a", node=N1)
    rig.drop("a")
    subscribe(rig, "a")
    assert rig.effects() == ["tell n3 of small: over: its owner has the value itself",
                             "free a on n1", f"tell n3 of a: over: {FREED}"]
    assert not rig.owner.subscribers.of


def test_a_subscription_ends_with_the_pull_and_with_its_node() -> None:
    rig = with_task()
    oid = rig.entries["a"].id
    rig.owner.subscribers.ended(oid, N3)
    rig.owner.location_added(oid, N2)
    assert rig.effects() == []
    subscribe(rig, "a")
    subscribe(rig, "a")     # after the two have lost their link: everything is told again
    assert rig.effects() == ["tell n3 of a: at n1 n2"] * 2
    rig.dies((N3, b""))     # the raylet of n3 has ended
    assert not rig.owner.subscribers.of
    lose(rig, "a", N2)
    assert rig.effects() == []


def test_of_many_copies_a_few_are_told_of_and_replaced_as_they_go() -> None:
    rig = with_task()
    entry = rig.entries["a"]
    for number in range(50):
        rig.owner.location_added(entry.id, address(100 + number, 0)[0])
    news = list(rig.owner.out)
    assert len(news) == TOLD_MOST - 1
    rig.owner.out.clear()
    lose(rig, "a", N1)
    (told,) = rig.owner.out
    assert told.removed == [N1] and told.added == [entry.locations[-1]]
    rig.owner.out.clear()


def test_subscriptions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribers, "SUBSCRIPTIONS_KEPT", 3)
    rig = Rig()
    for number in range(5):
        rig.put(f"p{number}", node=N1)
        subscribe(rig, f"p{number}", N2)
        rig.effects()
    assert list(rig.owner.subscribers.of) == [rig.entries[f"p{number}"].id for number in (2, 3, 4)]
