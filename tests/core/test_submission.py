"""Stateless tasks at their owner: leases, pipelining by measured cost, bounces, worker death."""

from __future__ import annotations

from owner_rig import W1, W2, W3, Rig, failed

from miniray.core.submission import DEPTH, IDLE_S, LOOK_AHEAD, NEAR_LEAST, REQUESTS, WINDOW_US, places


def test_a_ready_task_asks_for_a_lease_and_runs_on_it() -> None:
    rig = Rig()
    rig.submit("a")
    assert rig.effects() == ["want lease 1 for cpu"]
    rig.grant(1, W1)
    assert rig.effects() == ["push a to w1"]
    rig.reply("a")
    assert rig.value("a") == ("value", b"1") and rig.owner.unfinished == 0


def test_a_lease_is_used_again_while_work_lasts() -> None:
    rig = Rig()
    rig.submit("a")
    rig.grant(1, W1)
    rig.reply("a")
    rig.effects()
    rig.submit("b")
    assert rig.effects() == ["push b to w1"]


def test_a_lane_asks_for_one_lease_per_long_task_up_to_the_limit() -> None:
    rig = Rig()
    for number in range(REQUESTS + 5):
        rig.submit(f"t{number}")
    assert len(rig.effects()) == REQUESTS


def test_short_tasks_ask_for_as_many_leases_as_their_expected_time_fills() -> None:
    rig = Rig()
    rig.template("f", cost_us=WINDOW_US / 10)
    for number in range(25):
        rig.submit(f"t{number}")
    assert len(rig.effects()) == 3


def test_tasks_of_unknown_cost_travel_alone() -> None:
    rig = Rig()
    for name in "abc":
        rig.submit(name)
    rig.effects()
    rig.grant(1, W1)
    assert rig.effects() == ["push a to w1"]


def test_the_first_measurement_opens_the_pipeline() -> None:
    rig = Rig()
    for name in "abcd":
        rig.submit(name)
    rig.grant(1, W1)
    rig.effects()
    rig.reply("a", spent_us=100.0)
    pushed = rig.pushes()
    assert pushed == ["push b to w1", "push c to w1", "push d to w1"]


def test_what_is_in_flight_stays_under_the_window_by_measured_cost() -> None:
    rig = Rig()
    rig.template("f", cost_us=WINDOW_US / 4)
    for number in range(20):
        rig.submit(f"t{number}")
    rig.effects()
    rig.grant(1, W1)
    assert rig.pushes() == [f"push t{n} to w1" for n in range(4)]


def test_no_lease_takes_more_than_the_depth_however_short_its_tasks() -> None:
    rig = Rig()
    rig.template("f", cost_us=1.0)
    for number in range(DEPTH + 10):
        rig.submit(f"t{number}")
    rig.grant(1, W1)
    assert sum(line.startswith("push") for line in rig.effects()) == DEPTH


def test_work_goes_to_the_least_loaded_lease() -> None:
    rig = Rig()
    rig.template("f", cost_us=WINDOW_US / 2)
    for number in range(6):
        rig.submit(f"t{number}")
    rig.effects()
    rig.grant(1, W1)
    rig.effects()
    rig.grant(2, W2)
    rig.reply("t0")
    assert rig.effects() == ["push t2 to w2", "push t3 to w2", "push t4 to w1"]


def test_the_mean_cost_follows_the_measurements_slowly() -> None:
    rig = Rig()
    rig.submit("a")
    rig.grant(1, W1)
    rig.reply("a", spent_us=100.0)
    rig.submit("b")
    rig.reply("b", spent_us=600.0)
    assert rig.template("f").cost_us == 200.0


def test_requests_that_nobody_needs_any_more_are_withdrawn() -> None:
    rig = Rig()
    rig.submit("a")
    rig.submit("b")
    rig.effects()
    rig.grant(1, W1)
    rig.reply("a", spent_us=10.0)
    assert rig.effects() == ["push a to w1", "push b to w1", "withdraw 2"]


def test_a_grant_that_nobody_waits_for_goes_straight_back() -> None:
    rig = Rig()
    rig.submit("a")
    rig.submit("b")
    rig.grant(1, W1)
    rig.reply("a", spent_us=10.0)
    rig.effects()
    rig.grant(2, W2, lease=7)
    assert rig.effects() == ["return lease 7"]
    assert not rig.lane().requests and list(rig.lane().leases) == [W1]


def test_a_grant_told_twice_is_not_given_back() -> None:
    rig = Rig()
    rig.submit("a")
    rig.grant(1, W1)
    rig.effects()
    rig.grant(1, W1)
    assert rig.effects() == [] and list(rig.lane().leases) == [W1]


def test_an_idle_lease_is_given_back_after_a_short_while() -> None:
    rig = Rig()
    rig.submit("a")
    rig.grant(1, W1)
    rig.reply("a")
    rig.effects()
    assert rig.owner.next_deadline() == IDLE_S
    rig.wait(IDLE_S / 2)
    assert rig.effects() == []
    rig.wait(IDLE_S)
    assert rig.effects() == ["return lease 1"] and rig.lane().idle


def test_idle_leases_of_all_lanes_are_given_back_at_once_when_they_shall_be() -> None:
    rig = Rig()
    rig.submit("a", lane="one")
    rig.submit("b", function="b", lane="other")
    rig.grant(1, W1)
    rig.grant(2, W2)
    rig.reply("a")
    rig.effects()
    rig.owner.submission.give_back_idle()
    assert rig.effects() == ["return lease 1"] and rig.lane("one").idle and not rig.lane("other").idle


def test_a_lease_with_work_in_flight_is_kept() -> None:
    rig = Rig()
    rig.submit("a")
    rig.grant(1, W1)
    rig.effects()
    assert rig.owner.next_deadline() is None
    rig.wait(10.0)
    assert rig.effects() == []


def test_a_lane_in_need_takes_back_what_other_lanes_hold_idle() -> None:
    rig = Rig()
    rig.submit("a", lane="cpu")
    rig.grant(1, W1)
    rig.reply("a")
    rig.effects()
    rig.submit("g", function="g", lane="gpu")
    assert rig.effects() == ["return lease 1", "want lease 2 for gpu"]


def test_a_reclaimed_idle_lease_is_returned_at_once() -> None:
    rig = Rig()
    rig.submit("a")
    rig.grant(1, W1)
    rig.reply("a")
    rig.effects()
    rig.owner.submission.lease_reclaimed(1, W1)
    assert rig.effects() == ["return lease 1"]


def test_a_reclaimed_lease_takes_nothing_more_and_is_returned_when_it_is_empty() -> None:
    rig = Rig()
    rig.template("f", cost_us=100.0)
    rig.submit("a")
    rig.grant(1, W1)
    rig.owner.submission.lease_reclaimed(1, W1)
    rig.effects()
    rig.submit("b")
    assert not rig.pushes()
    rig.reply("a")
    assert "return lease 1" in rig.effects()
    assert rig.lane().requests, "b is still to run: its lane must ask for a lease"


def test_a_bounce_is_no_attempt() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    rig.submit("a")
    rig.submit("b", retries=3)
    rig.grant(1, W1)
    rig.bounce("b")
    record = rig.records["b"]
    assert (record.attempt, record.retries_left, record.remote) == (0, 3, None)


def test_bounced_tasks_go_back_to_the_head_of_the_queue_in_order() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    for name in "abc":
        rig.submit(name)
    rig.grant(1, W1)
    rig.template("f").cost_us = WINDOW_US
    rig.submit("d")
    rig.bounce("b", "c")
    assert [record.name for record in rig.lane().queue] == ["b", "c", "d"]


def test_nothing_joins_a_worker_that_is_held_up() -> None:
    """Tasks behind one that blocks need another lease: it may be they that it waits for."""
    rig = Rig()
    rig.template("f", cost_us=10.0)
    rig.submit("blocks")
    rig.grant(1, W1)
    rig.effects()
    rig.submit("behind")
    assert rig.effects() == ["push behind to w1"]
    rig.bounce("behind")
    assert rig.effects() == ["want lease 2 for cpu"]
    rig.grant(2, W2)
    assert rig.effects() == ["push behind to w2"]


def test_a_task_does_not_wait_behind_one_alone_that_may_wait_for_it() -> None:
    """Nothing is bounced by a worker that has one task: nobody would hear that it is held up."""
    rig = Rig()
    rig.template("f", cost_us=WINDOW_US * 0.75)
    rig.submit("waits")
    rig.grant(1, W1)
    rig.effects()
    rig.submit("is waited for")
    assert rig.effects() == ["want lease 2 for cpu"]


def test_a_worker_that_was_held_up_takes_work_again_after_its_reply() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    rig.submit("slow")
    rig.submit("behind")
    rig.grant(1, W1)
    rig.bounce("behind")
    rig.effects()
    rig.reply("slow", spent_us=10.0)
    assert "push behind to w1" in rig.effects()


def test_a_refusal_hands_the_waiting_tasks_back_with_its_reason() -> None:
    rig = Rig()
    rig.submit("a")
    rig.owner.lease_refused(0.0, 1, "no node has 8 GPUs")
    rig.owner.check()
    assert rig.value("a") == ("error", "no node has 8 GPUs")


def test_a_pending_reason_is_shown_to_whoever_asks_why() -> None:
    rig = Rig()
    rig.submit("a")
    rig.owner.submission.lease_pending(1, "waits for {GPU: 1}")
    assert rig.owner.why(rig.entries["a"]).endswith("waits for {GPU: 1}")
    rig.grant(1, W1)
    assert rig.lane().reason == ""


# ---- worker death


def test_only_the_oldest_task_in_flight_counts_as_started() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    for name in ("running", "next", "last"):
        rig.submit(name, retries=0)
    rig.grant(1, W1)
    rig.effects()
    rig.dies(W1, "killed")
    assert rig.value("running") == ("error", "killed")
    assert rig.value("next") is None and rig.value("last") is None
    assert [record.attempt for record in rig.lane().queue] == [0, 0]
    assert rig.effects() == ["want lease 2 for cpu"]


def test_when_replies_may_be_lost_every_task_in_flight_counts_as_started() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    rig.submit("a", retries=0)
    rig.submit("b", retries=0)
    rig.submit("c", retries=1)
    rig.grant(1, W1)
    rig.effects()
    rig.dies(W1, "node died", replies_lost=True)
    assert rig.value("a") == rig.value("b") == ("error", "node died")
    assert rig.records["c"].attempt == 1 and list(rig.lane().queue) == [rig.records["c"]]


def test_a_started_task_is_retried_while_it_may_be() -> None:
    rig = Rig()
    rig.submit("a", retries=1)
    rig.grant(1, W1)
    rig.effects()
    rig.dies(W1)
    rig.effects()
    rig.grant(2, W2)
    assert rig.effects() == ["push a to w2"] and rig.records["a"].attempt == 1
    rig.dies(W2, "killed again")
    assert rig.value("a") == ("error", "killed again")


def test_minus_one_retries_for_ever() -> None:
    rig = Rig()
    rig.submit("a", retries=-1)
    for request in range(1, 6):
        rig.grant(request, W1)
        rig.dies(W1)
    assert rig.value("a") is None and rig.records["a"].attempt == 5


def test_a_worker_that_dies_before_it_started_anything_costs_no_attempt() -> None:
    rig = Rig()
    rig.submit("a", retries=0)
    rig.grant(1, W1)
    rig.dies(W1, started=False)
    assert rig.value("a") is None and rig.records["a"].attempt == 0


def test_tasks_that_wait_for_a_lease_are_not_forgotten_when_the_last_one_dies() -> None:
    rig = Rig()
    rig.template("f", cost_us=10.0)
    rig.submit("blocks", retries=0)
    rig.submit("behind")
    rig.grant(1, W1)
    rig.bounce("behind")
    rig.owner.submission.lease_refused(2)  # whatever became of the request
    rig.owner.submission.ready(0.0, rig.records["behind"])
    rig.dies(W1)
    assert rig.lane().requests


def test_an_idle_leased_worker_that_dies_is_forgotten_without_a_return() -> None:
    rig = Rig()
    rig.submit("a")
    rig.grant(1, W1)
    rig.reply("a")
    rig.effects()
    rig.dies(W1)
    rig.wait(1.0)
    assert rig.effects() == [] and rig.lane().idle and not rig.owner.remotes


def test_a_reply_for_a_call_that_is_not_in_flight_is_ignored() -> None:
    rig = Rig()
    rig.submit("a")
    rig.grant(1, W1)
    rig.reply("a", failed("first"))
    remote = rig.owner.remotes[W1]
    assert rig.owner.replied(0.0, remote, 1, 1.0, [failed("second")]) is None
    assert rig.value("a") == ("error", "first")


def test_a_lane_that_spreads_does_not_keep_an_idle_lease() -> None:
    rig = Rig()
    rig.lane().spreads = True
    rig.submit("a")
    rig.submit("b")
    rig.effects()
    rig.grant(1, W1)
    rig.reply("a")
    assert rig.effects()[:2] == ["push a to w1", "push b to w1"], "work that waits goes on"
    rig.reply("b")
    assert "return lease 1" in rig.effects()
    rig.submit("c")
    assert any(effect.startswith("want lease") for effect in rig.effects())


def place(rig: Rig, name: str, node: bytes) -> None:
    rig.put(name, node=node).size = NEAR_LEAST


def test_a_lease_takes_a_task_whose_arguments_are_there_before_older_ones_that_are_far() -> None:
    rig = Rig()
    place(rig, "here", W1[0])
    place(rig, "there", W3[0])
    rig.submit("far 1", "there")
    rig.submit("far 2", "there")
    rig.submit("near", "here")
    rig.grant(1, W1)
    assert rig.pushes() == ["push near to w1"]
    rig.grant(2, W3)
    assert rig.pushes() == ["push far 1 to w3"]
    rig.reply("near", spent_us=WINDOW_US)  # better far than idle
    assert rig.pushes() == ["push far 2 to w1"]


def test_small_arguments_and_lanes_that_spread_keep_their_order() -> None:
    for size, spreads in ((NEAR_LEAST - 1, False), (NEAR_LEAST, True)):
        rig = Rig()
        rig.lane().spreads = spreads
        place(rig, "here", W1[0])
        place(rig, "there", W3[0])
        rig.entries["there"].size = size
        rig.submit("far", "there")
        rig.submit("near", "here")
        rig.grant(1, W1)
        assert rig.pushes() == ["push far to w1"]


def test_the_oldest_task_is_passed_over_only_so_often() -> None:
    rig = Rig()
    place(rig, "here", W1[0])
    place(rig, "there", W3[0])
    rig.submit("far", "there")
    for number in range(LOOK_AHEAD + 5):
        rig.submit(f"near {number}", "here")
    rig.grant(1, W1)
    for number in range(LOOK_AHEAD - 1):
        rig.reply(f"near {number}", spent_us=WINDOW_US)
    assert "push far to w1" not in rig.pushes()
    rig.reply(f"near {LOOK_AHEAD - 1}", spent_us=WINDOW_US)
    assert rig.pushes() == ["push far to w1"]


def test_each_lease_is_asked_for_with_the_places_of_a_task_of_its_own() -> None:
    rig = Rig()
    place(rig, "here", W1[0])
    place(rig, "there", W3[0])
    rig.submit("a", "here")
    rig.submit("b", "there")
    found = [places(wanted.record) for wanted in rig.wanted]
    assert found == [{W1[0]: NEAR_LEAST}, {W3[0]: NEAR_LEAST}]
