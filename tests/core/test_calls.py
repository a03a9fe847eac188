"""Actor calls at their caller: order, restarts, retries, handles."""

from __future__ import annotations

from owner_rig import W1, W2, W3, Rig, failed

from miniray.core.calls import ALIVE, DEAD, DOUBT_S, RESTARTING


def alive_actor(**options: object) -> Rig:
    """A rig whose actor `a` lives at W1."""
    rig = Rig()
    rig.actor("a", **options)
    rig.news("a", ALIVE, W1)
    return rig


def test_calls_wait_for_the_address_and_leave_in_order() -> None:
    rig = Rig()
    rig.actor("a")
    rig.submit("one", actor="a")
    rig.submit("two", actor="a")
    assert rig.effects() == []
    rig.news("a", ALIVE, W1)
    assert rig.effects() == ["push one to w1", "push two to w1"]


def raises(rig: Rig, name: str) -> list[str]:
    """The call raises, and its caller wants another attempt. What is sent then."""
    record = rig.records[name]
    rig.owner.replied(rig.now, record.remote, record.call, 1.0, [failed()], again=True)
    return rig.pushes()


def test_a_call_that_runs_again_comes_before_those_that_wait_for_it() -> None:
    rig = alive_actor()
    rig.submit("one", actor="a", retries=1)
    rig.now += 1.0
    rig.submit("two", "one", actor="a")
    assert rig.pushes() == ["push one to w1"]
    assert raises(rig, "one") == ["push one to w1"]
    rig.reply("one")
    assert rig.pushes() == ["push two to w1"]


def test_calls_that_run_again_after_a_restart_keep_their_order() -> None:
    rig = alive_actor()
    for name in ("one", "two"):
        rig.submit(name, actor="a", retries=5)
        rig.now += 1.0
    rig.submit("three", "two", actor="a")
    rig.effects()
    rig.owner.calls.clients[rig.actors["a"].id].state = RESTARTING
    assert raises(rig, "two") == [] and raises(rig, "one") == []
    rig.news("a", ALIVE, W2, restarts=1)
    assert rig.pushes() == ["push one to w2", "push two to w2"]


def test_the_last_retry_waits_through_every_report_of_the_restart() -> None:
    rig = alive_actor()
    rig.submit("call", actor="a", retries=1)
    rig.effects()
    rig.dies(W1)
    for cause in ("restarting", "still restarting"):
        rig.news("a", RESTARTING, restarts=1, cause=cause)
    assert rig.value("call") is None
    rig.news("a", ALIVE, W2, restarts=1)
    assert rig.pushes() == ["push call to w2"]


def test_a_call_goes_straight_to_a_living_actor() -> None:
    rig = alive_actor()
    rig.submit("one", actor="a")
    assert rig.effects() == ["push one to w1"]
    rig.reply("one")
    assert rig.value("one") == ("value", b"1")


def test_an_unresolved_argument_at_the_head_holds_later_calls_back() -> None:
    rig = alive_actor()
    rig.submit("x")
    rig.effects()
    rig.submit("first", "x", actor="a")
    rig.submit("second", actor="a")
    assert rig.effects() == []
    rig.grant(1, W2)
    rig.reply("x")
    assert rig.effects()[-2:] == ["push first to w1", "push second to w1"]


def test_calls_behind_the_head_do_not_overtake_it_when_their_arguments_come_first() -> None:
    rig = alive_actor()
    rig.submit("x")
    rig.submit("y", lane="other")
    rig.submit("first", "x", actor="a")
    rig.submit("second", "y", actor="a")
    rig.grant(2, W3)
    rig.effects()
    rig.reply("y")
    assert not rig.pushes()


def test_an_actor_out_of_order_does_not_wait_for_the_head() -> None:
    rig = alive_actor(out_of_order=True)
    rig.submit("x")
    rig.effects()
    rig.submit("first", "x", actor="a")
    rig.submit("second", actor="a")
    assert rig.effects() == ["push second to w1"]


def test_a_call_whose_argument_fails_is_not_sent_and_frees_those_behind_it() -> None:
    rig = alive_actor()
    rig.submit("x")
    rig.submit("doomed", "x", actor="a")
    rig.submit("next", actor="a")
    rig.grant(1, W2)
    rig.effects()
    rig.reply("x", failed("boom"))
    assert rig.value("doomed") == ("error", "boom")
    assert rig.effects() == ["push next to w1"]


def test_a_call_to_a_dead_actor_fails_at_once_with_the_cause() -> None:
    rig = alive_actor()
    rig.news("a", DEAD, cause="killed by its owner")
    rig.submit("late", actor="a")
    assert rig.value("late") == ("error", "killed by its owner")


def test_death_fails_what_is_in_flight_and_what_is_queued() -> None:
    rig = alive_actor()
    rig.submit("x")
    rig.submit("sent", actor="a")
    rig.submit("queued", "x", actor="a")
    rig.news("a", DEAD, cause="crashed")
    assert rig.value("sent") == rig.value("queued") == ("error", "crashed")
    assert rig.owner.unfinished == 1


def test_calls_that_wait_for_one_another_all_fail_with_the_actor() -> None:
    rig = Rig()
    rig.actor("a")
    rig.submit("one", actor="a")
    rig.submit("two", "one", actor="a")
    rig.news("a", DEAD, cause="never created")
    assert rig.value("one") == rig.value("two") == ("error", "never created")
    assert rig.owner.unfinished == 0


def test_after_the_process_died_calls_wait_for_the_gcs_to_decide() -> None:
    rig = alive_actor()
    rig.submit("sent", actor="a")
    rig.dies(W1)
    rig.effects()
    rig.submit("later", actor="a")
    assert rig.effects() == [] and rig.value("sent") is None
    rig.news("a", DEAD, cause="it had no restarts left")
    assert rig.value("sent") == rig.value("later") == ("error", "it had no restarts left")


def test_a_restart_fails_calls_in_flight_that_may_not_be_retried() -> None:
    rig = alive_actor()
    rig.submit("sent", actor="a")
    rig.news("a", RESTARTING, restarts=1, cause="restarting")
    assert rig.value("sent") == ("error", "restarting")


def test_while_an_actor_restarts_only_calls_that_may_be_retried_wait() -> None:
    rig = alive_actor()
    rig.dies(W1)
    rig.submit("early", actor="a", retries=0)
    rig.submit("patient", actor="a", retries=1)
    assert rig.effects() == [], "the GCS has not said what becomes of the actor"
    rig.news("a", RESTARTING, restarts=1, cause="restarting")
    rig.submit("late", actor="a", retries=0)
    assert rig.value("early") == rig.value("late") == ("error", "restarting")
    rig.effects()
    rig.news("a", ALIVE, W2, restarts=1)
    assert rig.effects() == ["push patient to w2"]


def test_calls_that_wait_for_one_another_all_fail_with_a_restart() -> None:
    rig = alive_actor()
    rig.dies(W1)
    rig.submit("first", actor="a")
    rig.submit("second", "first", actor="a")
    rig.news("a", RESTARTING, restarts=1, cause="restarting")
    assert rig.value("first") == rig.value("second") == ("error", "restarting")


def test_a_restart_sends_retriable_calls_again_first_and_in_order() -> None:
    rig = alive_actor()
    rig.submit("one", actor="a", retries=1)
    rig.submit("fatal", actor="a", retries=0)
    rig.submit("two", actor="a", retries=1)
    rig.dies(W1)
    rig.submit("three", actor="a", retries=1)
    rig.effects()
    rig.news("a", RESTARTING, restarts=1, cause="restarting")
    rig.news("a", ALIVE, W2, restarts=1)
    assert rig.effects() == ["push one to w2", "push two to w2", "push three to w2"]
    assert rig.value("fatal") == ("error", "restarting")
    assert [rig.records[name].attempt for name in ("one", "two", "three")] == [1, 1, 0]


def test_news_of_the_new_address_alone_is_as_good_as_news_of_the_restart() -> None:
    rig = alive_actor()
    rig.submit("one", actor="a", retries=1)
    rig.effects()
    rig.news("a", ALIVE, W2, restarts=1)
    assert rig.effects() == ["push one to w2"]


def test_news_of_an_earlier_life_is_ignored() -> None:
    rig = alive_actor()
    rig.news("a", RESTARTING, restarts=1)
    rig.news("a", ALIVE, W1, restarts=0)
    assert rig.actors["a"].state == RESTARTING
    rig.submit("call", actor="a")
    assert rig.effects() == []


def test_late_news_that_a_dead_process_lives_is_ignored() -> None:
    rig = alive_actor()
    rig.dies(W1)
    rig.news("a", ALIVE, W1)
    rig.submit("call", actor="a")
    assert rig.effects() == []


def test_an_exception_may_be_retried_and_not_on_a_dead_actor() -> None:
    rig = alive_actor()
    record = rig.submit("call", actor="a", retries=2)
    rig.effects()
    rig.owner.submission.replied(rig.now, record.remote, record.call, 1.0)
    assert rig.owner.retry(rig.now, record)
    assert rig.effects() == ["push call to w1"]
    rig.owner.submission.replied(rig.now, record.remote, record.call, 1.0)
    rig.news("a", DEAD, cause="gone")
    rig.owner.retry(rig.now, record)
    rig.effects()
    assert rig.value("call") == ("error", "gone")


def test_a_queued_call_can_be_cancelled_and_does_not_hold_others_back() -> None:
    rig = alive_actor()
    rig.submit("x")
    rig.submit("head", "x", actor="a")
    rig.submit("next", actor="a")
    rig.effects()
    assert rig.owner.cancelled(rig.now, rig.records["head"], "cancelled")
    assert rig.effects() == ["push next to w1"] and rig.value("head") == ("error", "cancelled")


def test_what_a_dead_actor_may_have_stored_is_freed_with_the_result() -> None:
    rig = alive_actor()
    rig.submit("call", actor="a")
    rig.news("a", DEAD, cause="crashed")
    rig.effects()
    rig.drop("call")
    assert rig.effects() == ["free call on n1"]


# ---- handles


def test_the_end_of_the_last_handle_ends_the_actor_only_after_queued_calls() -> None:
    rig = alive_actor()
    rig.submit("x")
    rig.submit("sent", actor="a")
    rig.submit("queued", "x", actor="a")
    rig.effects()
    rig.owner.calls.handles_gone(rig.actors["a"])
    rig.reply("sent")
    assert rig.effects() == []
    rig.grant(1, W2)
    rig.reply("x")
    rig.effects()
    rig.reply("queued")
    assert rig.effects() == ["handle of a gone"]


def test_the_end_of_an_idle_actors_handles_is_told_at_once_and_once() -> None:
    rig = alive_actor()
    rig.owner.calls.handles_gone(rig.actors["a"])
    assert rig.effects() == ["handle of a gone"]
    rig.owner.calls.consider(rig.actors["a"])
    assert rig.effects() == []


def test_handles_are_counted_as_references_to_one_object() -> None:
    rig = alive_actor()
    token = rig.put("token")
    token.more().stands_for = rig.actors["a"]
    rig.owner.ownership.borrow_added(token.id, W3)
    rig.drop("token")
    assert rig.effects() == ["watch w3"]
    rig.owner.ownership.borrow_dropped(token.id, W3)
    assert rig.effects() == ["handle of a gone"]


def test_calls_under_way_hold_an_actor_that_another_process_made() -> None:
    rig = Rig()
    rig.actor("a", owned=False)
    rig.news("a", ALIVE, W1)
    rig.actors["a"].token = rig.borrowed("token", W3)
    rig.submit("one", actor="a")
    rig.submit("two", actor="a")
    rig.drop("token")
    rig.reply("one")
    assert rig.knows("token")
    rig.reply("two")
    assert not rig.knows("token")


def test_handles_of_others_and_of_detached_actors_end_nothing() -> None:
    rig = Rig()
    rig.actor("borrowed", owned=False)
    rig.actor("detached", detached=True)
    for name in ("borrowed", "detached"):
        rig.owner.calls.handles_gone(rig.actors[name])
    assert rig.effects() == []


def test_nobody_is_told_of_the_handles_of_a_dead_actor() -> None:
    rig = alive_actor()
    rig.news("a", DEAD)
    rig.owner.calls.handles_gone(rig.actors["a"])
    assert rig.effects() == []


def test_calls_that_a_restart_gives_up_together_may_depend_on_one_another() -> None:
    rig = Rig()
    rig.actor("actor")
    rig.news("actor", "ALIVE", W1)
    rig.dies(W1)
    rig.submit("a", actor="actor")
    rig.submit("b", "a", actor="actor")
    rig.submit("c", actor="actor", retries=1)
    rig.news("actor", "RESTARTING", restarts=1)
    assert rig.value("a") == rig.value("b") == ("error", "cause") and rig.value("c") is None
    rig.news("actor", "ALIVE", W2, restarts=1)
    assert rig.pushes() == ["push c to w2"]


def test_an_actor_that_lives_though_its_process_was_said_to_be_gone_is_reached_anew() -> None:
    rig = alive_actor(max_task_retries=1)
    rig.submit("once", actor="a", retries=0)
    rig.submit("again", actor="a", retries=1)
    rig.effects()
    rig.dies(W1)
    rig.submit("later", actor="a", retries=0)
    rig.news("a", ALIVE, W1)
    assert rig.effects() == [], "these news may be older than its death"
    rig.wait(DOUBT_S)
    assert rig.effects() == ["what became of a?"]
    rig.news("a", ALIVE, W1, cause="unreachable")
    assert rig.value("once") == ("error", "unreachable")
    assert rig.effects()[-2:] == ["push again to w1", "push later to w1"]
    assert rig.records["again"].call == 3, "an old answer to call 1 or 2 is not taken for its own"
    assert rig.owner.next_deadline() is None


def test_an_actor_in_doubt_is_asked_for_until_somebody_knows() -> None:
    rig = alive_actor()
    rig.dies(W1)
    for _ in range(3):
        rig.wait(DOUBT_S)
        assert rig.effects() == ["what became of a?"]
    rig.news("a", DEAD)
    assert rig.owner.next_deadline() is None
