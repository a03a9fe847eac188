"""Leases: resources first, then a worker; order, sharing, blocking, forwarding, and every kind of end."""

from __future__ import annotations

import pytest
from rig import JOB, NODE, PEER, UNIT, Rig, scheduling_class

from miniray._proto import common_pb2 as common
from miniray._proto import worker_pb2
from miniray.core import lease_queue

STRANGER = b"z" * 28


def cpu_free(rig: Rig) -> float:
    return rig.node.resources.available.get("CPU", 0) / UNIT


def test_a_lease_is_granted_and_its_worker_is_used_again() -> None:
    rig = Rig()
    driver = rig.driver()
    first, _second = rig.boot_all()
    rig.ask(driver)
    (grant,) = rig.grants(driver)
    assert grant.worker.node_id == NODE and cpu_free(rig) == 1
    rig.give_back(driver, grant.lease_id)
    assert cpu_free(rig) == 2
    rig.ask(driver)
    (again,) = rig.grants(driver)
    assert again.worker == grant.worker and again.lease_id != grant.lease_id
    assert not rig.starts
    assert rig.messages(grant.worker.worker_id, "assign_job")[0].job.job_id == JOB
    assert first


def test_requests_wait_in_order_and_are_told_why() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    first, second, third = (rig.ask(driver) for _ in range(3))
    (grant,) = rig.grants(driver)
    assert grant.request_id == first
    rig.advance(1.0)
    reasons = {m.request_id: m.pending_reason for m in rig.messages(driver, "lease_reply")}
    assert reasons.keys() == {second, third}
    assert "CPU: 1" in reasons[second] and "1 x f" in reasons[second]
    rig.advance(5.0)
    assert not rig.messages(driver, "lease_reply"), "an unchanged reason is not repeated"
    rig.give_back(driver, grant.lease_id)
    assert [g.request_id for g in rig.grants(driver)] == [second]


def test_what_no_node_can_ever_do_is_reported_at_once_and_stays_queued() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    request = rig.ask(driver, scheduling_class(GPU=2))
    (reply,) = rig.messages(driver, "lease_reply")
    assert reply.request_id == request and "GPU" in reply.pending_reason and not reply.HasField("failure")
    rig.peer(CPU=1, GPU=2)
    (forwarded,) = rig.to(PEER, "lease_request")
    assert forwarded.hops == 1 and forwarded.requester.worker_id == driver


def test_resending_a_request_is_harmless() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.boot_all()
    message = worker_pb2.LeaseRequest(request_id=9, scheduling_class=scheduling_class())
    rig.say(driver, lease_request=message)
    rig.say(driver, lease_request=message)
    first, second = rig.grants(driver)
    assert first.lease_id == second.lease_id and cpu_free(rig) == 1


def test_a_cancelled_request_leaves_the_queue() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    waiting = rig.ask(driver)
    rig.say(driver, lease_cancel=worker_pb2.LeaseCancel(request_id=waiting))
    rig.give_back(driver, rig.grants(driver)[0].lease_id)
    assert not rig.grants(driver)


def test_higher_priority_goes_first_then_deeper_tasks() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    (running,) = rig.grants(driver)
    low = rig.ask(driver, scheduling_class("low"))
    child = rig.ask(running.worker.worker_id, scheduling_class("child"))
    high = rig.ask(driver, scheduling_class("high", priority=5))
    rig.give_back(driver, running.lease_id)
    (grant,) = rig.grants(driver)
    assert grant.request_id == high
    # The first worker runs `high` now; its former children have a live requester still.
    rig.give_back(driver, grant.lease_id)
    assert [g.request_id for g in rig.grants(running.worker.worker_id)] == [child]
    assert low not in [g.request_id for g in rig.grants(driver)]


def test_a_blocked_worker_lends_its_cpu_and_takes_it_back() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    (parent,) = rig.grants(driver)
    rig.ask(parent.worker.worker_id, scheduling_class("child"))
    assert not rig.grants(parent.worker.worker_id)
    rig.say(parent.worker.worker_id, blocked=worker_pb2.WorkerBlocked(blocked=True))
    rig.boot_all()
    (child,) = rig.grants(parent.worker.worker_id)
    assert cpu_free(rig) == 0
    rig.say(parent.worker.worker_id, blocked=worker_pb2.WorkerBlocked(blocked=False))
    assert cpu_free(rig) == -1, "an unblocked worker runs on, even if that overdraws"
    rig.give_back(parent.worker.worker_id, child.lease_id)
    rig.give_back(driver, parent.lease_id)
    assert cpu_free(rig) == 1


def test_of_leases_that_hold_more_cpus_than_there_are_the_excess_is_asked_back() -> None:
    """Tasks that waited for the same thing wake together; their leases would go on from task to task."""
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    for _ in range(4):
        rig.ask(driver)
    woken = []
    for _ in range(4):
        rig.boot_all()
        (grant,) = rig.grants(driver)
        woken.append(grant)
        rig.say(grant.worker.worker_id, blocked=worker_pb2.WorkerBlocked(blocked=True))
    rig.advance(1.0)
    assert not rig.messages(driver, "lease_revoked")
    for grant in woken[1:]:
        rig.say(grant.worker.worker_id, blocked=worker_pb2.WorkerBlocked(blocked=False))
    assert cpu_free(rig) == -2
    rig.advance(1.0)
    revoked = [one.lease_id for one in rig.messages(driver, "lease_revoked")]
    assert revoked == [grant.lease_id for grant in woken[1:3]], "once each; one has its CPU"
    for lease_id in revoked:
        rig.give_back(driver, lease_id)
    assert cpu_free(rig) == 0
    rig.advance(1.0)
    assert not rig.messages(driver, "lease_revoked")


def test_recursion_to_depth_50_on_one_cpu_needs_one_worker_per_level() -> None:
    rig = Rig(CPU=1)
    requester = rig.driver()
    leases = []
    for _ in range(50):
        rig.ask(requester)
        rig.boot_all()
        (grant,) = rig.grants(requester)
        leases.append((requester, grant.lease_id))
        requester = grant.worker.worker_id
        rig.say(requester, blocked=worker_pb2.WorkerBlocked(blocked=True))
    assert len(rig.node.pool.workers) == 51
    for holder, lease_id in reversed(leases):
        rig.give_back(holder, lease_id)
    assert cpu_free(rig) == 1


def test_the_end_of_a_leased_worker_reaches_its_holder_and_the_gcs() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    (grant,) = rig.grants(driver)
    rig.say(grant.worker.worker_id, current_task=worker_pb2.CurrentTask(name="f"))
    rig.exit(grant.worker.worker_id)
    (gone,) = rig.messages(driver, "worker_gone")
    assert gone.address == grant.worker
    assert "SIGKILL" in gone.failure.message and "ran f" in gone.failure.message
    (failed,) = rig.to(b"head", "worker_failed")
    assert failed.address == grant.worker and not failed.intended
    assert failed.failure.kind == common.WORKER_DIED
    assert cpu_free(rig) == 2


def test_the_end_of_a_holder_ends_its_leases_workers() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    (parent,) = rig.grants(driver)
    rig.ask(parent.worker.worker_id)
    (child,) = rig.grants(parent.worker.worker_id)
    rig.exit(parent.worker.worker_id)
    (stop,) = rig.stops()
    assert stop.worker_id == child.worker.worker_id and stop.force
    assert cpu_free(rig) == 2


def test_a_driver_that_ends_takes_its_job_along() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    rig.ask(driver, scheduling_class(CPU=5))
    (grant,) = rig.grants(driver)
    rig.exit(driver, "driver has ended")
    assert [s.worker_id for s in rig.stops()] == [grant.worker.worker_id]
    (request,) = [r for r in rig.to(b"head", "request") if r.WhichOneof("body") == "job_finish"]
    assert request.job_finish.job_id == JOB and request.job_finish.failed
    rig.exit(grant.worker.worker_id)
    assert cpu_free(rig) == 2 and not rig.node.requests.known


def test_gpus_are_handed_out_by_number() -> None:
    rig = Rig(CPU=4, GPU=2)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver, scheduling_class(GPU=0.5))
    rig.ask(driver, scheduling_class(GPU=0.5))
    rig.ask(driver, scheduling_class(GPU=1))
    rig.boot_all()
    slots = [[(s.resource, s.index) for s in grant.slots] for grant in rig.grants(driver)]
    assert slots == [[("GPU", 0)], [("GPU", 0)], [("GPU", 1)]]


def test_a_worker_that_will_not_start_refuses_the_lease() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver, scheduling_class(env='{"py_executable":"/no/such/python"}'))
    start = rig.starts.pop()
    failure = common.Failure(kind=common.RUNTIME_ENV_FAILED, message="no such file", stderr_tail="tail")
    rig.node.worker_start_failed(rig.now, start.startup_token, failure)
    rig.settle()
    reply = rig.messages(driver, "lease_reply")[-1]
    assert reply.failure.kind == common.RUNTIME_ENV_FAILED and "no such file" in reply.failure.message
    assert cpu_free(rig) == 1


# ---- several nodes ----


def test_a_request_that_only_fits_elsewhere_is_forwarded_and_its_answer_passed_back() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.peer(CPU=4)
    request = rig.ask(driver, scheduling_class(CPU=3))
    (forwarded,) = rig.to(PEER, "lease_request")
    worker = common.Address(node_id=PEER, worker_id=b"x" * 28)
    rig.from_peer(lease_reply=worker_pb2.LeaseReply(
        request_id=request, requester=forwarded.requester, worker=worker, lease_id=77))
    (grant,) = rig.grants(driver)
    assert grant.worker == worker
    rig.say(driver, lease_return=worker_pb2.LeaseReturn(lease_id=77, node_id=PEER))
    assert rig.to(PEER, "lease_return")[0].lease_id == 77


def test_a_forwarded_request_is_served_and_ends_with_its_requester() -> None:
    rig = Rig()
    rig.driver()
    rig.boot_all()
    rig.peer()
    requester = common.Address(node_id=PEER, worker_id=b"y" * 28)
    rig.from_peer(lease_request=worker_pb2.LeaseRequest(
        request_id=5, requester=requester, scheduling_class=scheduling_class(), hops=1))
    (reply,) = rig.to(PEER, "lease_reply")
    assert reply.requester == requester and reply.worker.node_id == NODE
    gone = worker_pb2.WorkerGone(address=requester, failure=common.Failure(message="died"))
    rig.from_peer(worker_gone=gone)
    assert [s.worker_id for s in rig.stops()] == [reply.worker.worker_id]
    assert cpu_free(rig) == 2


def test_what_has_been_sent_on_too_often_goes_a_step_back_when_there_is_room_elsewhere() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver, scheduling_class(CPU=1))
    rig.peer(CPU=0)
    requester = common.Address(node_id=b"o" * 28, worker_id=b"y" * 28)
    rig.from_peer(lease_request=worker_pb2.LeaseRequest(
        request_id=5, requester=requester, scheduling_class=scheduling_class(), hops=lease_queue.HOPS))
    rig.advance(lease_queue.STUCK_S + 1)
    assert not [reply for reply in rig.to(PEER, "lease_reply") if reply.HasField("failure")], "no room yet"
    rig.peer(b"z" * 28, CPU=4)
    rig.advance(1.0)
    (back,) = (reply for reply in rig.to(PEER, "lease_reply") if reply.HasField("failure"))
    assert back.failure.kind == common.UNAVAILABLE and back.requester == requester
    assert not rig.node.requests.known


def test_a_lost_node_sends_requests_back_and_ends_leases_held_from_there() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.peer(CPU=4)
    rig.ask(driver, scheduling_class(CPU=2))
    rig.from_peer(lease_request=worker_pb2.LeaseRequest(
        request_id=5, requester=common.Address(node_id=PEER, worker_id=b"y" * 28),
        scheduling_class=scheduling_class(), hops=1))
    assert cpu_free(rig) == 0
    rig.node.peer_lost(rig.now, PEER, common.Failure())
    rig.settle()
    assert cpu_free(rig) == 1 and len(rig.stops()) == 1
    (reply,) = rig.messages(driver, "lease_reply")
    assert "CPU" in reply.pending_reason, "placed again: nowhere, and told so"


def test_what_a_lost_node_held_goes_to_the_living_not_to_its_own_next_request() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.peer(CPU=0)
    gone = common.Address(node_id=PEER, worker_id=b"y" * 28)
    for request_id in (5, 6):
        rig.from_peer(lease_request=worker_pb2.LeaseRequest(
            request_id=request_id, requester=gone, scheduling_class=scheduling_class(), hops=1))
    ours = rig.ask(driver)
    assert [reply.request_id for reply in rig.to(PEER, "lease_reply") if reply.lease_id] == [5]
    rig.node.peer_lost(rig.now, PEER, common.Failure())
    rig.settle()
    assert not [reply for reply in rig.to(PEER, "lease_reply") if reply.lease_id]
    rig.boot_all()
    assert [grant.request_id for grant in rig.grants(driver)] == [ours]


def test_what_a_lost_node_asked_for_through_another_goes_back_there() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    (held,) = rig.grants(driver)
    rig.peer(CPU=0)
    rig.peer(STRANGER, CPU=0)
    requester = common.Address(node_id=STRANGER, worker_id=b"y" * 28)
    request = worker_pb2.LeaseRequest(
        request_id=5, requester=requester, scheduling_class=scheduling_class(), hops=2)
    rig.from_peer(lease_request=request)
    rig.node.peer_lost(rig.now, STRANGER, common.Failure())
    rig.settle()
    (back,) = rig.to(PEER, "lease_reply")
    assert back.failure.kind == common.UNAVAILABLE and back.requester == requester
    rig.give_back(driver, held.lease_id)
    assert cpu_free(rig) == 1 and not rig.node.requests.known


def test_what_an_ended_worker_held_is_not_granted_to_its_own_next_request() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    (held,) = rig.grants(driver)
    rig.ask(held.worker.worker_id)
    rig.exit(held.worker.worker_id)
    assert not rig.starts and not rig.stops() and cpu_free(rig) == 1


def test_a_grant_nobody_waits_for_goes_straight_back() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.peer(CPU=4)
    request = rig.ask(driver, scheduling_class(CPU=3))
    (forwarded,) = rig.to(PEER, "lease_request")
    rig.say(driver, lease_cancel=worker_pb2.LeaseCancel(request_id=request))
    assert rig.to(PEER, "lease_cancel")
    rig.from_peer(lease_reply=worker_pb2.LeaseReply(
        request_id=request, requester=forwarded.requester, lease_id=8,
        worker=common.Address(node_id=PEER, worker_id=b"x" * 28)))
    assert rig.to(PEER, "lease_return")[0].lease_id == 8


def test_a_task_bound_to_a_dead_node_is_refused_by_name() -> None:
    rig = Rig()
    driver = rig.driver()
    strategy = common.SchedulingStrategy(affinity=common.NodeAffinity(node_id=b"z" * 28))
    rig.ask(driver, scheduling_class(strategy=strategy))
    rig.advance(2.0)
    failures = [m.failure for m in rig.messages(driver, "lease_reply") if m.HasField("failure")]
    assert failures[0].kind == common.INFEASIBLE and "not alive" in failures[0].message


def test_a_lease_that_waits_for_a_process_says_so_once() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.ask(driver, scheduling_class(env="{}"))
    rig.advance(0.4)
    assert not rig.messages(driver, "lease_reply"), "not worth a word yet"
    rig.advance(2.0)
    (reply,) = rig.messages(driver, "lease_reply")
    assert "a worker process, in its runtime_env {}, is starting on node 6e6e6e6e" in reply.pending_reason
    rig.boot_all()
    assert len(rig.grants(driver)) == 1
    rig.advance(1.0)
    assert rig.node.leases.next_deadline() is None, "nobody waits: nothing is looked at any more"


# ---- shares ----


def test_a_second_job_gets_its_share_of_leases_held_by_the_first() -> None:
    rig = Rig(CPU=2)
    greedy, modest = rig.driver(), rig.driver(b"\2\0\0\0")
    rig.boot_all()
    for _ in range(2):
        rig.ask(greedy)
    held = {g.lease_id for g in rig.grants(greedy)}
    rig.ask(modest, scheduling_class(job=b"\2\0\0\0"))
    rig.advance(0.5)
    (revoked,) = rig.messages(greedy, "lease_revoked")
    assert revoked.lease_id in held and not revoked.HasField("failure")
    rig.give_back(greedy, revoked.lease_id)
    rig.boot_all()
    assert len(rig.grants(modest)) == 1
    rig.advance(2.0)
    assert not rig.messages(greedy, "lease_revoked"), "shares are equal now"


def share_of(rig: Rig, classes: list[common.SchedulingClass], seconds: float) -> list[float]:
    """CPU time of jobs that always want more, when leases are returned as soon as they are asked back."""
    drivers = [rig.driver(cls.job_id) for cls in classes]
    held: dict[int, int] = {}
    for driver, cls in zip(drivers, classes):
        for _ in range(8):
            rig.ask(driver, cls)
    time_used = [0.0] * len(classes)
    for _ in range(int(seconds / 0.05)):
        rig.advance(0.05)
        for driver in drivers:
            for revoked in rig.messages(driver, "lease_revoked"):
                del held[revoked.lease_id]
                rig.give_back(driver, revoked.lease_id)
        rig.boot_all()
        for number, (driver, cls) in enumerate(zip(drivers, classes)):
            for grant in rig.grants(driver):
                held[grant.lease_id] = number
                rig.ask(driver, cls)
        for number in held.values():
            time_used[number] += 0.05
    return [used / sum(time_used) for used in time_used]


@pytest.mark.parametrize("cpus", [1, 2, 3, 5])
def test_jobs_that_want_more_than_there_is_get_equal_shares(cpus: int) -> None:
    classes = [scheduling_class(job=bytes([n, 0, 0, 0])) for n in (1, 2)]
    for share in share_of(Rig(CPU=cpus), classes, 60.0):
        assert abs(share - 0.5) < 0.05


def test_higher_priority_takes_all_it_can_use() -> None:
    classes = [scheduling_class(), scheduling_class(job=b"\2\0\0\0", priority=1)]
    assert share_of(Rig(CPU=3), classes, 20.0)[1] > 0.9


def test_another_function_of_the_same_job_gets_its_turn() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver, scheduling_class("first"))
    (grant,) = rig.grants(driver)
    for _ in range(3):
        rig.ask(driver, scheduling_class("first"))
    second = rig.ask(driver, scheduling_class("second"))
    rig.advance(1.0)
    (revoked,) = rig.messages(driver, "lease_revoked")
    assert revoked.lease_id == grant.lease_id
    rig.give_back(driver, grant.lease_id)
    assert [g.request_id for g in rig.grants(driver)] == [second]


def test_another_caller_of_the_same_function_gets_its_turn() -> None:
    rig = Rig(CPU=1)
    first, second = rig.driver(), rig.driver()
    rig.boot_all()
    rig.ask(first)
    (grant,) = rig.grants(first)
    rig.ask(first)
    wanted = rig.ask(second)
    rig.advance(1.0)
    (revoked,) = rig.messages(first, "lease_revoked")
    assert revoked.lease_id == grant.lease_id
    rig.give_back(first, grant.lease_id)
    rig.advance(1.0)
    for again in rig.grants(first):
        rig.give_back(first, again.lease_id)
    assert [g.request_id for g in rig.grants(second)] == [wanted]


def test_a_queue_that_starved_keeps_others_from_its_resources() -> None:
    rig = Rig(CPU=2)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    rig.ask(driver)
    first, second = rig.grants(driver)
    big = rig.ask(driver, scheduling_class("big", CPU=2))
    rig.advance(10.0)
    for _ in range(3):
        rig.ask(driver, scheduling_class("small"))
    rig.give_back(driver, first.lease_id)
    assert not rig.grants(driver), "small tasks must not slip past for ever"
    rig.give_back(driver, second.lease_id)
    assert [g.request_id for g in rig.grants(driver)] == [big]
