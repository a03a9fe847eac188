"""The owner machine as a whole: dependencies, failures, cancellation, lost objects."""

from __future__ import annotations

import pytest
from owner_rig import ME, W1, W2, W3, Rig, failed, stored

from miniray.core.lineage import RECORD_BYTES
from miniray.core.tasks import PUSHED, WAITING

N2 = W3[0]


# ---- dependencies


def test_a_task_waits_for_the_values_of_its_arguments() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    rig.submit("a")
    rig.submit("b", "a")
    rig.grant(1, W1)
    assert rig.pushes() == ["push a to w1"]
    rig.reply("a")
    assert rig.effects() == ["push b to w1"]


def test_a_chain_flows_one_by_one_on_one_lease() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    names = [f"t{number}" for number in range(5)]
    rig.submit(names[0])
    for before, name in zip(names, names[1:]):
        rig.submit(name, before)
    rig.grant(1, W1)
    for name in names:
        rig.reply(name)
    assert rig.pushes() == [f"push {name} to w1" for name in names]


def test_an_argument_given_twice_is_awaited_twice_and_resolved() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    rig.submit("a")
    rig.submit("b", "a", "a")
    rig.grant(1, W1)
    rig.effects()
    rig.reply("a")
    assert rig.effects() == ["push b to w1"]


def test_a_failed_argument_fails_the_task_without_running_it() -> None:
    rig = Rig()
    rig.submit("a")
    rig.submit("b", "a")
    rig.grant(1, W1)
    rig.effects()
    rig.reply("a", failed("boom"))
    assert rig.value("b") == ("error", "boom") and rig.owner.unfinished == 0


def test_an_argument_that_has_failed_before_fails_the_task_at_once() -> None:
    rig = Rig()
    rig.submit("a")
    rig.grant(1, W1)
    rig.reply("a", failed("boom"))
    rig.submit("b", "a")
    assert rig.value("b") == ("error", "boom")


def test_a_failure_runs_down_a_chain_of_any_length() -> None:
    rig = Rig()
    rig.owner.check = lambda: None  # quadratic otherwise
    rig.submit("t0")
    for number in range(1, 3000):
        rig.submit(f"t{number}", f"t{number - 1}")
    rig.grant(1, W1)
    rig.reply("t0", failed("boom"))
    assert rig.value("t2999") == ("error", "boom") and rig.owner.unfinished == 0


def test_the_first_error_of_several_arguments_counts() -> None:
    rig = Rig()
    rig.submit("a")
    rig.submit("b")
    rig.submit("c", "a", "b")
    rig.grant(1, W1)
    rig.grant(2, W2)
    rig.reply("b", failed("second argument"))
    rig.reply("a", failed("first argument"))
    assert rig.value("c") == ("error", "second argument")


def test_a_getter_is_woken_when_its_object_is_ready() -> None:
    rig = Rig()
    rig.submit("a")
    rig.owner.await_entry(rig.entries["a"], "getter")
    rig.grant(1, W1)
    rig.effects()
    rig.reply("a")
    assert rig.effects() == ["wake getter for a"]


def test_several_returns_are_settled_one_by_one() -> None:
    rig = Rig()
    rig.submit("a", returns=2)
    rig.grant(1, W1)
    rig.reply("a", failed("one"), stored())
    assert rig.value("a") == ("error", "one") and rig.value("a.2") == ("stored", None)


def test_why_names_the_argument_that_is_missing() -> None:
    rig = Rig()
    rig.submit("a")
    rig.submit("b", "a")
    why = rig.owner.why(rig.entries["b"])
    assert why.startswith("task b waits for argument") and "task a waits for a worker" in why


# ---- cancellation


def test_a_queued_task_is_cancelled_at_once() -> None:
    rig = Rig()
    rig.submit("a")
    rig.effects()
    assert rig.owner.cancelled(rig.now, rig.records["a"], "cancelled")
    assert rig.effects() == ["withdraw 1"] and rig.value("a") == ("error", "cancelled")


def test_a_task_that_waits_for_arguments_is_cancelled_at_once() -> None:
    rig = Rig()
    rig.submit("a")
    rig.submit("b", "a")
    assert rig.owner.cancelled(rig.now, rig.records["b"], "cancelled")
    rig.grant(1, W1)
    rig.reply("a")
    assert rig.value("b") == ("error", "cancelled") and rig.owner.unfinished == 0


def test_a_pushed_task_must_be_cancelled_at_its_worker() -> None:
    rig = Rig()
    rig.submit("a")
    rig.grant(1, W1)
    assert not rig.owner.cancelled(rig.now, rig.records["a"], "cancelled")
    rig.reply("a", failed("cancelled there"))
    assert rig.value("a") == ("error", "cancelled there")


def test_a_cancelled_task_is_never_retried() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    rig.submit("a", retries=3)
    rig.submit("b", retries=3)
    rig.grant(1, W1)
    for name in "ab":
        rig.owner.cancelled(rig.now, rig.records[name], "cancelled")
    rig.dies(W1, "killed")
    assert rig.value("a") == rig.value("b") == ("error", "cancelled")


def test_cancelling_what_has_ended_changes_nothing() -> None:
    rig = Rig()
    rig.submit("a")
    rig.grant(1, W1)
    rig.reply("a")
    assert rig.owner.cancelled(rig.now, rig.records["a"], "cancelled")
    assert rig.value("a") == ("value", b"1")


# ---- retries of exceptions


def test_an_exception_is_retried_only_when_asked_for() -> None:
    rig = Rig()
    record = rig.submit("a", retries=1)
    rig.grant(1, W1)
    rig.effects()
    rig.owner.replied(rig.now, record.remote, record.call, 1.0, [failed()], again=True)
    assert rig.effects() == ["push a to w1"] and record.attempt == 1
    rig.owner.replied(rig.now, record.remote, record.call, 1.0, [failed("last")], again=True)
    assert rig.value("a") == ("error", "last")


def raises(rig: Rig, name: str) -> list[str]:
    """It raises; what was sent at once."""
    record = rig.records[name]
    rig.owner.replied(rig.now, record.remote, record.call, 1.0, [failed()], again=True)
    return rig.pushes()


def test_what_raises_again_and_again_runs_after_longer_and_longer_pauses() -> None:
    rig = Rig()
    record = rig.submit("a", retries=8)
    rig.grant(1, W1)
    rig.effects()
    assert raises(rig, "a") == ["push a to w1"], "the first time at once"
    pauses = []
    for _ in range(6):
        assert raises(rig, "a") == [] and record.state == WAITING
        paused_at = rig.now
        while record.state != PUSHED:
            rig.wait(rig.owner.next_deadline() - rig.now)
            if record.lane.requests:    # the lease was given back meanwhile
                rig.grant(next(iter(record.lane.requests)), W1)
        rig.effects()
        pauses.append(round(rig.now - paused_at, 3))
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]


def test_a_task_that_pauses_before_it_runs_again_can_be_cancelled() -> None:
    rig = Rig()
    rig.submit("a", retries=8)
    rig.grant(1, W1)
    rig.effects()
    raises(rig, "a")
    raises(rig, "a")
    assert rig.owner.cancelled(rig.now, rig.records["a"], "cancelled")
    assert rig.value("a") == ("error", "cancelled") and rig.owner.unfinished == 0
    rig.wait(5.0)
    assert not rig.pushes()


# ---- copies


def stored_task(rig: Rig, name: str, *arguments: str, node_worker: object = W1, retries: int = 3) -> None:
    """Task `name` has run and its result is in a store."""
    rig.template("f", cost_us=10.0)
    rig.submit(name, *arguments, retries=retries)
    requests = list(rig.lane().requests)
    if requests:
        rig.grant(requests[0], node_worker)
    rig.reply(name, stored())
    rig.effects()


def lost(rig: Rig, name: str, node: bytes = ME[0]) -> bool:
    """The copy of `name` on `node` is gone. True when the object is being made again."""
    return not why_not_rebuilt(rig, name, node)


def why_not_rebuilt(rig: Rig, name: str, node: bytes = ME[0]) -> str:
    """The copy of `name` on `node` is gone: why it stays lost, "" when it is being made again."""
    entry = rig.entries[name]
    assert rig.owner.location_removed(rig.now, entry.id, node), "another copy is left"
    refusal = rig.owner.rebuild(rig.now, entry)
    if refusal is not None:
        rig.owner.lost(entry, "lost")   # the shell's duty: it knows the words
    rig.owner.check()
    return refusal.reason if refusal is not None else ""


def test_losing_one_of_several_copies_loses_nothing() -> None:
    rig = Rig()
    stored_task(rig, "a")
    entry = rig.entries["a"]
    rig.owner.location_added(entry.id, N2)
    assert not rig.owner.location_removed(rig.now, entry.id, ME[0])
    assert entry.locations == [N2]


def test_a_lost_object_is_made_again_by_its_task() -> None:
    rig = Rig()
    stored_task(rig, "a")
    assert lost(rig, "a")
    assert rig.effects() == ["push a to w1"] and rig.value("a") is None
    rig.reply("a", stored())
    assert rig.value("a") == ("stored", None) and rig.records["a"].retries_left == 2


def test_a_queued_task_waits_again_for_an_argument_that_was_lost() -> None:
    rig = Rig()
    stored_task(rig, "a")
    rig.submit("blocker", function="g")
    rig.submit("b", "a", lane="other")
    rig.actor("actor")
    rig.submit("call", "a", actor="actor")
    rig.effects()
    assert lost(rig, "a")
    rig.grant(next(iter(rig.lane("other").requests)), W2)
    rig.news("actor", "ALIVE", W3)
    assert not [line for line in rig.pushes() if "push b" in line or "push call" in line]
    rig.reply("blocker")
    rig.reply("a", stored())
    assert "push call to w3" in rig.effects() and rig.records["b"].unresolved == 0


def result_of_a_call(retries: int) -> Rig:
    """An actor on W1 has answered `call` with an object in a store."""
    rig = Rig()
    rig.actor("actor")
    rig.news("actor", "ALIVE", W1)
    rig.submit("call", actor="actor", retries=retries)
    rig.reply("call", stored())
    rig.effects()
    return rig


def test_put_objects_and_results_of_actors_without_retries_cannot_be_made_again() -> None:
    rig = result_of_a_call(retries=0)
    rig.put("p", node=ME[0])
    assert why_not_rebuilt(rig, "p") == "PUT"
    assert why_not_rebuilt(rig, "call") == "RETRIES_DISABLED"


def test_a_call_with_retries_runs_again_for_its_lost_result_once_the_actor_is_back() -> None:
    rig = result_of_a_call(retries=2)
    rig.dies(W1)
    rig.news("actor", "RESTARTING", cause="killed")
    assert lost(rig, "call") and not rig.pushes()
    rig.news("actor", "ALIVE", W2, restarts=1)
    assert rig.pushes() == ["push call to w2"]
    rig.reply("call", stored())
    assert rig.value("call")[0] == "stored" and rig.records["call"].attempt == 1


def test_a_lost_result_of_a_dead_actor_is_the_actors_death() -> None:
    rig = result_of_a_call(retries=-1)
    rig.dies(W1)
    rig.news("actor", "DEAD", cause="killed for good")
    assert lost(rig, "call")
    assert rig.value("call") == ("error", "killed for good") and rig.owner.unfinished == 0


def test_what_raised_is_known_when_nobody_holds_its_result_any_more() -> None:
    rig = Rig()
    record = rig.submit("a")
    rig.grant(1, W1)
    rig.reply("a", failed("boom"))
    rig.drop("a")
    assert record.error == "boom"


def test_a_lost_object_is_not_made_again_without_an_attempt_left() -> None:
    rig = Rig()
    stored_task(rig, "a", retries=0)
    assert why_not_rebuilt(rig, "a") == "RETRIES_DISABLED"
    stored_task(rig, "b", retries=1)
    assert lost(rig, "b")
    rig.reply("b", stored())
    assert why_not_rebuilt(rig, "b") == "MAX_ATTEMPTS_EXCEEDED"


def test_arguments_freed_meanwhile_are_made_again_first() -> None:
    rig = Rig()
    stored_task(rig, "a")
    stored_task(rig, "b", "a")
    rig.drop("a")
    assert rig.effects() == ["free a on n1"] and not rig.knows("a")
    assert lost(rig, "b")
    assert rig.effects() == ["push a to w1"]
    rig.reply("a", stored())
    assert rig.effects() == ["push b to w1"]
    rig.reply("b", stored())
    assert rig.effects() == ["free a on n1"], "the argument is not needed any more"
    assert rig.owner.unfinished == 0


def test_a_whole_chain_of_freed_arguments_is_made_again() -> None:
    rig = Rig()
    stored_task(rig, "a")
    for before, name in ("ab", "bc", "cd"):
        stored_task(rig, name, before)
        rig.drop(before)
    rig.effects()
    assert lost(rig, "d")
    for name in "abcd":
        assert rig.effects()[0] == f"push {name} to w1"
        rig.reply(name, stored())


def test_inline_arguments_stay_as_long_as_they_may_be_needed_again() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    rig.submit("a")
    rig.grant(1, W1)
    rig.reply("a")
    stored_task(rig, "b", "a")
    rig.drop("a")
    assert rig.knows("a")
    assert lost(rig, "b")
    assert rig.effects() == ["push b to w1"]
    rig.reply("b", stored())
    rig.drop("b")
    assert len(rig.owner.directory) == 0


@pytest.mark.parametrize("kind", ["put", "no retries"])
def test_an_argument_that_nobody_can_make_stays_as_long_as_what_was_made_of_it(kind: str) -> None:
    rig = Rig()
    if kind == "put":
        rig.put("p", node=ME[0])
    else:
        stored_task(rig, "p", retries=0)
    stored_task(rig, "b", "p")
    rig.drop("p")
    assert rig.effects() == [] and rig.knows("p")
    assert lost(rig, "b")
    assert rig.effects() == ["push b to w1"]
    rig.reply("b", stored())
    rig.drop("b")
    assert len(rig.owner.directory) == 0
    assert sorted(effect[:6] for effect in rig.effects()) == ["free b", "free p"]


def test_lineage_goes_with_the_last_object_that_needs_it() -> None:
    rig = Rig()
    stored_task(rig, "a")
    stored_task(rig, "b", "a")
    rig.drop("a")
    assert rig.entries["a"].task is rig.records["a"], "b may need it again"
    rig.drop("b")
    assert rig.entries["a"].task is None and rig.records["b"].held is None
    assert len(rig.owner.directory) == 0


def test_a_borrowed_argument_that_was_let_go_cannot_be_made_here() -> None:
    rig = Rig()
    entry = rig.borrowed("b", W2)
    rig.owner.settle(rig.now, entry, stored(), W2)
    stored_task(rig, "a", "b")
    rig.drop("b")
    assert why_not_rebuilt(rig, "a") == "BORROWED"


def limited(tasks: int) -> Rig:
    """An owner that remembers so many tasks without arguments at most."""
    rig = Rig()
    rig.owner.lineage.limit_bytes = tasks * RECORD_BYTES
    return rig


def test_beyond_the_limit_the_oldest_tasks_are_forgotten() -> None:
    rig = limited(2)
    for name in "abc":
        stored_task(rig, name)
    assert rig.owner.lineage.forgotten == 1 and rig.owner.lineage.bytes == 2 * RECORD_BYTES
    assert why_not_rebuilt(rig, "a") == "LINEAGE_EVICTED"
    assert lost(rig, "b") and lost(rig, "c")
    assert rig.owner.lineage.bytes == 0, "what runs is not remembered but known"


def test_a_forgotten_task_lets_go_of_its_arguments() -> None:
    rig = limited(2)
    stored_task(rig, "a")
    stored_task(rig, "b", "a")
    rig.drop("a")
    stored_task(rig, "c")
    assert rig.entries["a"].task is None, "a was remembered for b alone, and can itself not be made"
    assert why_not_rebuilt(rig, "b") == "LINEAGE_EVICTED"
    stored_task(rig, "d")
    assert rig.records["b"].held is None and rig.owner.lineage.bytes == 2 * RECORD_BYTES


def test_what_is_remembered_counts_inline_arguments_and_ends_with_the_objects() -> None:
    rig = Rig()
    rig.owner.lineage.argument_bytes = lambda record: 50
    rig.put("small")
    rig.entries["small"].size = 7
    stored_task(rig, "a", "small")
    assert rig.owner.lineage.bytes == RECORD_BYTES + 57
    rig.drop("small")
    assert rig.knows("small")
    rig.drop("a")
    assert rig.owner.lineage.bytes == 0 and len(rig.owner.directory) == 0


def test_no_lineage_is_kept_for_results_that_cannot_get_lost() -> None:
    rig = Rig()
    stored_task(rig, "a")
    rig.submit("b", "a")
    rig.reply("b")
    rig.drop("a")
    assert rig.entries["a"].task is None and rig.records["b"].held is None


def test_an_object_lost_while_its_task_runs_again_waits_for_that_run() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    rig.submit("a", returns=2, retries=1)
    rig.grant(1, W1)
    rig.reply("a", stored(), stored())
    rig.effects()
    assert lost(rig, "a") and lost(rig, "a.2")
    assert rig.effects() == ["push a to w1"]
    rig.reply("a", stored(), stored())
    assert rig.value("a") == rig.value("a.2") == ("stored", None)


def test_a_second_run_leaves_no_copy_of_a_return_that_was_freed() -> None:
    rig = Rig()
    rig.submit("a", returns=2, retries=1)
    rig.grant(1, W1)
    rig.reply("a", stored(), stored())
    rig.drop("a.2")
    assert lost(rig, "a")
    rig.effects()
    rig.reply("a", stored(), stored())
    assert rig.effects() == ["free a.2 on n1"]


def test_copies_that_a_dead_attempt_may_have_left_are_freed_with_the_object() -> None:
    rig = Rig()
    rig.submit("a", retries=1)
    rig.grant(1, W3)
    rig.dies(W3)
    rig.grant(2, W1)
    rig.reply("a", stored())
    rig.effects()
    rig.drop("a")
    assert rig.effects() == ["free a on n1 n2"]


def test_the_books_are_empty_at_the_end() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    rig.submit("a")
    rig.submit("b", "a")
    rig.grant(1, W1)
    rig.reply("a", stored())
    rig.reply("b", failed("boom"))
    for name in "ab":
        rig.drop(name)
    rig.wait(1.0)
    assert rig.owner.dump() == {"objects": {}, "unfinished": 0, "queued": 0, "leases": 0, "actors": {}}
