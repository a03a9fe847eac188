"""Distributed reference counts: owners, borrowers, containment, and deaths of either."""

from __future__ import annotations

from owner_rig import ME, W1, W2, W3, Rig, failed, inline, stored


def running(rig: Rig, name: str, *arguments: str, **options: object) -> None:
    """Task `name` runs on W1."""
    rig.submit(name, *arguments, **options)
    requests = list(rig.lane().requests)
    if requests:
        rig.grant(requests[0], W1)
    rig.effects()


# ---- own objects


def test_an_object_lives_until_its_last_reference_dies() -> None:
    rig = Rig()
    entry = rig.put("x", node=ME[0])
    entry.local += 1
    rig.drop("x")
    assert rig.effects() == [] and rig.knows("x")
    rig.drop("x")
    assert rig.effects() == ["free x on n1"] and not rig.knows("x")


def test_an_inline_object_is_forgotten_without_a_message() -> None:
    rig = Rig()
    rig.put("x")
    rig.drop("x")
    assert rig.effects() == [] and not rig.knows("x")


def test_every_copy_is_freed_exactly_once() -> None:
    rig = Rig()
    entry = rig.put("x", node=ME[0])
    rig.owner.location_added(entry.id, W3[0])
    rig.drop("x")
    assert rig.effects() == ["free x on n1 n2"]
    rig.owner.ownership.consider(entry)
    assert rig.effects() == []


def test_a_copy_that_arrives_after_the_end_is_freed_at_once() -> None:
    rig = Rig()
    entry = rig.put("x", node=ME[0])
    rig.drop("x")
    rig.effects()
    rig.owner.location_added(entry.id, W3[0])
    assert rig.effects() == ["free x on n2"]


def test_a_task_keeps_its_arguments_until_its_reply() -> None:
    rig = Rig()
    rig.put("x", node=ME[0])
    rig.put("y", node=ME[0])
    running(rig, "t", "x", nested=("y",))
    rig.drop("x")
    rig.drop("y")
    assert rig.effects() == []
    rig.reply("t")
    assert rig.effects() == ["free x on n1", "free y on n1"]


def test_the_result_of_a_running_task_is_dropped_when_it_arrives_unwanted() -> None:
    rig = Rig()
    running(rig, "t")
    rig.drop("t")
    assert rig.knows("t")
    rig.reply("t", stored())
    assert rig.effects() == ["free t on n1"] and not rig.knows("t")


def test_what_a_value_contains_lives_as_long_as_the_value() -> None:
    rig = Rig()
    inner = rig.put("inner", node=ME[0])
    outer = rig.put("outer", node=ME[0])
    rig.owner.ownership.contains(outer, [inner])
    rig.drop("inner")
    assert rig.effects() == []
    rig.drop("outer")
    assert rig.effects() == ["free outer on n1", "free inner on n1"]


def test_values_may_be_nested_to_any_depth() -> None:
    rig = Rig()
    outer = rig.put("0")
    for depth in range(1, 3000):
        inner = rig.owner.directory.own(depth.to_bytes(28, "little"))
        rig.owner.ownership.contains(outer, [inner])
        outer = inner
    rig.drop("0")
    assert len(rig.owner.directory) == 0


# ---- at the owner: what borrowers do


def test_a_borrower_keeps_the_object_alive() -> None:
    rig = Rig()
    entry = rig.put("x", node=ME[0])
    rig.owner.ownership.borrow_added(entry.id, W1)
    rig.drop("x")
    assert rig.effects() == ["watch w1"]
    rig.owner.ownership.borrow_dropped(entry.id, W1)
    assert rig.effects() == ["free x on n1"]


def test_what_a_worker_retains_after_the_reply_stays_alive() -> None:
    rig = Rig()
    rig.put("x", node=ME[0])
    running(rig, "t", "x")
    rig.drop("x")
    rig.reply("t", retained=("x",))
    assert rig.effects() == ["watch w1"]
    rig.owner.ownership.borrow_dropped(rig.entries["x"].id, W1)
    assert rig.effects() == ["free x on n1"]


def test_a_failed_attempt_may_retain_references_too() -> None:
    rig = Rig()
    entry = rig.put("x", node=ME[0])
    running(rig, "t", nested=("x",), retries=1)
    record = rig.records["t"]
    rig.owner.replied(rig.now, record.remote, record.call, 1.0, [], [entry.id], again=True)
    assert entry.more().borrowers == {W1: 1} and record.attempt == 1


def test_a_process_entered_twice_must_let_go_twice() -> None:
    rig = Rig()
    entry = rig.put("x", node=ME[0])
    for _ in range(2):
        rig.owner.ownership.borrow_added(entry.id, W1)
    rig.drop("x")
    rig.owner.ownership.borrow_dropped(entry.id, W1)
    assert rig.effects() == ["watch w1"], "once"
    rig.owner.ownership.borrow_dropped(entry.id, W1)
    assert rig.effects() == ["free x on n1"]


def test_a_dead_borrower_is_struck_out() -> None:
    rig = Rig()
    entry = rig.put("x", node=ME[0])
    rig.owner.ownership.borrow_added(entry.id, W1)
    rig.owner.ownership.borrow_added(entry.id, W2)
    rig.drop("x")
    assert rig.effects() == ["watch w1", "watch w2"], "or nobody would say that they die"
    rig.dies(W1)
    assert rig.effects() == []
    rig.dies(W2)
    assert rig.effects() == ["free x on n1"]


def test_an_object_that_is_gone_cannot_be_borrowed() -> None:
    rig = Rig()
    entry = rig.put("x")
    rig.drop("x")
    assert not rig.owner.ownership.borrow_added(entry.id, W1)
    rig.owner.ownership.borrow_dropped(entry.id, W1)


# ---- at the borrower


def test_a_borrower_that_was_never_entered_lets_go_silently() -> None:
    rig = Rig()
    rig.borrowed("x", W1)
    rig.drop("x")
    assert rig.effects() == [] and not rig.knows("x")


def test_a_registered_borrower_tells_the_owner_when_it_lets_go() -> None:
    rig = Rig()
    entry = rig.borrowed("x", W1)
    rig.owner.ownership.borrow(entry)
    assert rig.effects() == ["tell w1 that me holds x"]
    rig.owner.ownership.borrow_acknowledged(entry.id, ME)
    rig.drop("x")
    assert rig.effects() == ["tell w1 we dropped x"] and not rig.knows("x")


def test_a_borrower_is_entered_once() -> None:
    rig = Rig()
    entry = rig.borrowed("x", W1)
    rig.owner.ownership.borrow(entry)
    rig.owner.ownership.borrow(entry)
    assert rig.effects() == ["tell w1 that me holds x"]


def test_the_drop_does_not_overtake_the_answer() -> None:
    rig = Rig()
    entry = rig.borrowed("x", W1)
    rig.owner.ownership.borrow(entry)
    rig.effects()
    rig.drop("x")
    assert rig.effects() == [] and rig.knows("x")
    rig.owner.ownership.borrow_acknowledged(entry.id, ME)
    assert rig.effects() == ["tell w1 we dropped x"]


def test_the_outer_value_is_held_until_the_inner_owner_has_answered() -> None:
    """The outer object holds the inner one at its owner: it must not go before we are in the books."""
    rig = Rig()
    outer = rig.put("outer", node=ME[0])
    inner = rig.borrowed("inner", W1)
    rig.owner.ownership.borrow(inner, outer)
    rig.effects()
    rig.drop("outer")
    assert rig.effects() == []
    rig.owner.ownership.borrow_acknowledged(inner.id, ME)
    assert rig.effects() == ["free outer on n1"]


def test_what_waits_for_a_dead_owner_is_released() -> None:
    rig = Rig()
    outer = rig.put("outer", node=ME[0])
    inner = rig.borrowed("inner", W1)
    rig.owner.ownership.borrow(inner, outer)
    assert not rig.owner.ownership.introduce(inner, W2, "reply")
    rig.effects()
    rig.drop("outer")
    rig.dies(W1)
    assert rig.effects() == ["free outer on n1", "wake reply for its owner"]


def test_an_unanswered_question_fails_with_its_owner() -> None:
    rig = Rig()
    entry = rig.borrowed("x", W1)
    rig.owner.await_entry(entry, "getter")
    assert rig.effects() == ["ask for x"]
    rig.dies(W1, "owner died")
    assert rig.effects() == ["wake getter for x"] and rig.value("x") == ("error", "owner died")


# ---- results with references inside


def test_the_references_in_a_result_are_held_by_the_result() -> None:
    rig = Rig()
    running(rig, "t")
    inner = rig.borrowed("inner", W1)
    inner.local = 0
    rig.reply("t", inline(contents=((inner.id, W1),)))
    assert rig.knows("inner") and rig.effects() == []
    rig.drop("t")
    assert rig.effects() == ["tell w1 we dropped inner"]


def test_the_references_in_an_error_are_held_by_it_and_by_the_errors_made_of_it() -> None:
    rig = Rig()
    running(rig, "t")
    rig.submit("behind", "t")
    rig.submit("last", "behind")
    inner = rig.borrowed("inner", W1)
    inner.local = 0
    rig.reply("t", failed(contents=((inner.id, W1),)))
    rig.effects()
    assert rig.value("last") == ("error", "raised")
    rig.drop("t")
    rig.drop("behind")
    assert rig.knows("inner") and rig.effects() == []
    rig.drop("last")
    assert rig.effects() == ["tell w1 we dropped inner"]


def test_the_references_in_an_error_that_nobody_gets_are_given_back() -> None:
    rig = Rig()
    running(rig, "t", retries=1)
    inner = rig.borrowed("inner", W1)
    inner.local = 0
    rig.reply("t", failed(contents=((inner.id, W1),)), again=True)
    assert "tell w1 we dropped inner" in rig.effects() and not rig.knows("inner")


def test_a_second_entry_in_the_books_is_given_back_at_once() -> None:
    rig = Rig()
    inner = rig.borrowed("inner", W1)
    inner.local = 0
    for name in ("one", "two"):
        running(rig, name)
        rig.reply(name, inline(contents=((inner.id, W1),)))
    assert rig.effects() == ["tell w1 we dropped inner"]
    rig.drop("one")
    assert rig.effects() == []
    rig.drop("two")
    assert rig.effects() == ["tell w1 we dropped inner"]


def test_a_reference_that_comes_home_needs_no_borrowing() -> None:
    rig = Rig()
    mine = rig.put("mine", node=ME[0])
    running(rig, "t", nested=("mine",))
    rig.drop("mine")
    rig.reply("t", inline(contents=((mine.id, ME),)))
    assert rig.effects() == []
    rig.drop("t")
    assert rig.effects() == ["free mine on n1"]


# ---- at the worker: before a reply leaves


def test_the_caller_is_entered_with_our_own_object_at_once() -> None:
    rig = Rig()
    entry = rig.put("x", node=ME[0])
    assert rig.owner.ownership.introduce(entry, W1, "reply")
    assert entry.more().borrowers == {W1: 1}


def test_the_caller_is_entered_with_a_third_owner_before_the_reply() -> None:
    rig = Rig()
    entry = rig.borrowed("x", W1)
    assert not rig.owner.ownership.introduce(entry, W2, "reply")
    assert rig.effects() == ["tell w1 that w2 holds x"]
    assert rig.owner.ownership.borrow_acknowledged(entry.id, W2) == ["reply"]


def test_every_introduction_is_told_and_answered_by_itself() -> None:
    rig = Rig()
    entry = rig.borrowed("x", W1)
    rig.owner.ownership.introduce(entry, W2, "first")
    rig.owner.ownership.introduce(entry, W2, "second")
    assert rig.effects() == ["tell w1 that w2 holds x"] * 2
    assert rig.owner.ownership.borrow_acknowledged(entry.id, W2) == ["first"]
    assert rig.owner.ownership.borrow_acknowledged(entry.id, W2) == ["second"]


def introduced(rig: Rig, oid: bytes, owner: tuple[bytes, bytes], by: tuple[bytes, bytes]) -> None:
    rig.owner.introduced(oid, owner, by)
    rig.owner.check()


def test_an_introduction_and_its_value_may_come_in_either_order() -> None:
    for told_first in (True, False):
        rig = Rig()
        running(rig, "t")
        oid = rig.borrowed("x", W2).id
        rig.entries["x"].local = 0
        if told_first:
            introduced(rig, oid, W2, by=W1)
        rig.reply("t", inline(contents=((oid, W2),)))
        if not told_first:
            introduced(rig, oid, W2, by=W1)
        rig.effects()
        rig.dies(W1)
        assert rig.effects() == [], "the value has come: it holds the object"
        rig.drop("t")
        assert rig.effects() == ["tell w2 we dropped x"]


def test_an_introduction_whose_value_died_with_its_sender_is_given_back() -> None:
    rig = Rig()
    running(rig, "t")
    oid = rig.borrowed("x", W2).id
    introduced(rig, oid, W2, by=W1)
    assert rig.effects() == []
    rig.dies(W1)
    assert "tell w2 we dropped x" in rig.effects()


def test_an_introduction_that_is_told_after_the_death_of_the_sender_is_given_back() -> None:
    rig = Rig()
    running(rig, "t")
    oid = rig.borrowed("x", W2).id
    rig.dies(W1)
    rig.effects()
    introduced(rig, oid, W2, by=W1)
    assert rig.effects() == ["tell w2 we dropped x"]


def test_a_value_told_of_late_keeps_its_entry_though_its_sender_has_died() -> None:
    rig = Rig()
    running(rig, "t")
    oid = rig.borrowed("x", W2).id
    rig.reply("t", inline(contents=((oid, W2),)))
    rig.dies(W1)
    rig.effects()
    introduced(rig, oid, W2, by=W1)
    assert rig.effects() == []
    rig.dies(W2)
    rig.owner.check()


def test_nobody_is_introduced_to_itself() -> None:
    rig = Rig()
    theirs, ours = rig.borrowed("theirs", W1), rig.put("ours")
    assert rig.owner.ownership.introduce(theirs, W1, "reply")
    assert rig.owner.ownership.introduce(ours, ME, "reply")
    assert rig.effects() == [] and ours.rare is None


def test_a_reply_names_the_callers_objects_that_are_still_held() -> None:
    rig = Rig()
    kept, gone = rig.borrowed("kept", W1), rig.borrowed("gone", W1)
    rig.drop("gone")
    assert rig.owner.ownership.outlived([kept, gone], W1, "reply") == 0
    assert rig.owner.ownership.retained([kept, gone], W1) == [kept.id]
    rig.drop("kept")
    assert rig.effects() == ["tell w1 we dropped kept"]


def test_a_reference_kept_only_inside_another_object_is_held_too() -> None:
    rig = Rig()
    entry = rig.borrowed("x", W1)
    rig.owner.ownership.contains(rig.put("outer"), [entry])
    rig.drop("x")
    assert rig.owner.ownership.retained([entry], W1) == [entry.id]


def test_a_third_owner_is_told_and_the_reply_waits_for_its_answer() -> None:
    rig = Rig()
    entry = rig.borrowed("x", W2)
    assert rig.owner.ownership.outlived([entry], W1, "reply") == 1
    assert rig.owner.ownership.retained([entry], W1) == []
    assert rig.effects() == ["tell w2 that me holds x"]
    assert rig.owner.ownership.borrow_acknowledged(entry.id, ME) == ["reply"]


def test_the_reply_waits_for_answers_that_were_asked_for_before() -> None:
    """References inside an argument's value are borrowed when the value is read."""
    rig = Rig()
    outer = rig.borrowed("outer", W1)
    inner = rig.borrowed("inner", W2)
    rig.owner.ownership.borrow(inner, outer)
    rig.drop("inner")
    assert rig.owner.ownership.outlived([inner], W1, "reply") == 1


def test_what_is_known_to_the_owner_already_is_not_named_again() -> None:
    rig = Rig()
    entry = rig.borrowed("x", W1)
    assert rig.owner.ownership.retained([entry, entry], W1) == [entry.id]
    assert rig.owner.ownership.retained([entry], W1) == []
