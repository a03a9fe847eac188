"""What an owner says of its own tasks and objects: why they are not done, who holds them."""

from __future__ import annotations

from types import SimpleNamespace

from owner_rig import ME, W1, W2, W3, Rig, failed, stored

from miniray._proto import common_pb2 as pb
from miniray.core import ids, why


def links(rig: Rig, name: str) -> list[str]:
    return why.chain(rig.owner, rig.entries[name], rig.now)


def told(rig: Rig, key: bytes) -> str:
    """An explanation on one line."""
    found = why.explain(rig.owner, rig.now, key)
    return " < ".join([found.sentence, *found.chain])


def test_a_chain_runs_from_what_is_wanted_to_what_it_waits_for() -> None:
    rig = Rig()
    rig.submit("a")
    rig.submit("b", "a")
    rig.submit("c", "b")
    rig.owner.submission.lease_pending(1, "waiting for GPU: 1 needed, at most 0 free on n1")
    assert links(rig, "c") == [
        f"task c waits for argument {rig.entries['b'].id.hex()}",
        f"task b waits for argument {rig.entries['a'].id.hex()}",
        "task a waits for a worker", "waiting for GPU: 1 needed, at most 0 free on n1",
    ]  # fmt: skip


def test_the_head_is_asked_about_the_group_in_which_a_task_waits() -> None:
    rig = Rig()
    group = bytes(range(18))
    strategy = pb.SchedulingStrategy(bundle=pb.BundleChoice(placement_group_id=group))
    rig.template("f").strategy = strategy
    rig.submit("a")
    assert why.explain(rig.owner, rig.now, rig.entries["a"].id).next == group
    rig.grant(1, W1)
    assert why.explain(rig.owner, rig.now, rig.entries["a"].id).next == rig.entries["a"].task.id


def test_a_long_chain_is_cut_and_says_so() -> None:
    rig = Rig()
    rig.submit("t0")
    for number in range(1, 40):
        rig.submit(f"t{number}", f"t{number - 1}")
    found = links(rig, "t39")
    assert len(found) == why.LINKS + 1 and found[-1] == "and so on"


def test_a_task_that_runs_says_where_and_since_when() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    for name in "ab":
        rig.submit(name)
    rig.grant(1, W1)
    rig.now += 3.0
    place = W1[1].hex()[:12]
    (only,) = links(rig, "a")
    assert only == f"task a runs, or is next, on worker {place} of node {W1[0].hex()[:12]} since 3.0 s"
    assert links(rig, "b") == [
        f"task b is next on worker {place} since 3.0 s", "behind 1 task of this process"]


def test_a_task_whose_argument_is_elsewhere_says_what_is_pulled() -> None:
    rig = Rig()
    rig.put("x", node=W3[0])
    rig.submit("a", "x")
    rig.grant(1, W1)
    pulled = links(rig, "a")[1]
    assert pulled == (
        f"its argument {rig.entries['x'].id.hex()}, 1000 bytes, is pulled there from node {W3[0].hex()[:12]}")


def test_calls_say_what_becomes_of_their_actor_and_what_is_before_them() -> None:
    rig = Rig()
    actor = rig.actor("actor")
    actor.reason = "no room"
    rig.submit("slow", function="g")
    rig.submit("first", "slow", actor="actor")
    rig.submit("second", actor="actor", function="m")
    assert links(rig, "second") == ["task second waits for its actor, which is PENDING_CREATION (no room)"]
    rig.news("actor", "ALIVE", W1)
    missing = rig.entries["slow"].id.hex()
    assert links(rig, "second") == [
        "task second waits for an earlier call of this process, first", f"that waits for argument {missing}"]
    rig.grant(1, W2)
    rig.reply("slow")
    assert links(rig, "second") == [
        "task second was sent to its actor and has not been answered since 0.0 s",
        "behind 1 call of this process",
    ]


def test_a_borrowed_object_names_the_worker_that_has_not_answered() -> None:
    rig = Rig()
    rig.borrowed("theirs", W2)
    assert links(rig, "theirs") == [f"its owner, worker {W2[1].hex()[:12]}, has not answered yet"]


def test_a_ready_object_says_where_it_is_and_who_holds_it() -> None:
    rig = Rig()
    entry = rig.put("x", node=ME[0])
    rig.owner.ownership.borrow_added(entry.id, W2)
    text = told(rig, entry.id)
    assert f"is ready: 1000 bytes in the store of {ME[0].hex()[:12]}" in text
    assert "held by 1 reference of this process" in text
    assert f"held by worker {W2[1].hex()[:12]} of node {W2[0].hex()[:12]}" in text


def test_the_story_of_a_task_has_its_failed_attempts_and_its_times() -> None:
    rig = Rig()
    rig.submit("a", retries=2)
    rig.grant(1, W1)
    rig.now = 1.0
    rig.dies(W1, SimpleNamespace(message="killed by SIGKILL"))
    rig.now = 2.0
    rig.grant(2, W2)
    tid = rig.records["a"].id
    assert rig.owner.story(tid) == [
        "0.000 submitted", "1.000 attempt 1 failed: killed by SIGKILL",
        f"2.000 sent to worker {W2[1].hex()[:12]}, attempt 2",
    ]  # fmt: skip
    assert "has not ended: it was submitted 2.0 s ago < task a (attempt 2) runs" in told(rig, tid)
    rig.reply("a", failed(SimpleNamespace(message="division by zero")))
    assert told(rig, tid).endswith("failed < division by zero")
    assert told(rig, rig.entries["a"].id).endswith(
            "is an error < task a (010000000000) failed in attempt 2 < division by zero")


def test_a_lost_object_has_its_loss_in_its_story() -> None:
    rig = Rig()
    rig.submit("a", retries=3)
    rig.grant(1, W1)
    rig.reply("a", stored())
    entry = rig.entries["a"]
    assert rig.owner.location_removed(rig.now, entry.id, W1[0])
    assert rig.owner.rebuild(rig.now, entry) is None
    assert rig.owner.story(entry.id) == ["0.000 every copy is lost: its task runs again"]
    assert any("runs again" in line for line in rig.owner.story(rig.records["a"].id))


def test_nothing_is_said_of_what_is_not_known() -> None:
    rig = Rig()
    for key in (b"", bytes(ids.TASK_ID_SIZE), bytes(ids.OBJECT_ID_SIZE), bytes(ids.ACTOR_ID_SIZE)):
        assert not why.explain(rig.owner, rig.now, key).kind
