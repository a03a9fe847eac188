"""Questions on their way: the GCS asks nodes, a raylet asks its processes, and silence is an answer."""

from __future__ import annotations

from rig import JOB, NODE, PEER, Rig

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2
from miniray.core import ids
from miniray.core.contract import HEAD
from miniray.core.node_effects import LookAtProcess
from miniray.core.questions import QUESTIONS_KEPT
from tests.core.head_world import World, node_id

TICKET = b"T" * 16
TASK = ids.task_id(b"t" * 8, ids.job_id(1))
RESULT = ids.object_id(TASK, 1)


def world(nodes: int = 1) -> World:
    made = World(CPU=4)
    for number in range(2, nodes + 1):
        made.join(number, CPU=4)
    made.job()
    return made


def asked(made: World, key: bytes = TASK, ticket: bytes = TICKET) -> gcs.Explanation:
    return made.ask(explain=gcs.ExplainQuery(id=key, ticket=ticket)).explanation


def says(role: str, sentence: str, *links: str, **more: object) -> gcs.Finding:
    """What a worker of node 1 finds."""
    told = gcs.Explanation(kind="task", role=role, sentence=sentence, chain=links, **more)
    address = pb.Address(node_id=node_id(1), worker_id=b"w" * 28)
    return gcs.Finding(address=address, pid=7, title="worker", explanations=[told])


# ---- the GCS


def test_every_node_is_asked_once_and_the_answer_is_there_when_all_have_answered() -> None:
    made = world(nodes=2)
    for _ in range(3):
        assert asked(made).asked
    for number in (1, 2):
        (inquiry,) = made.take(number, "inquiry")
        assert inquiry.key == TASK and inquiry.job_id == ids.job_id(1) and inquiry.within_s > 0
    made.say(1, findings=gcs.Findings(ticket=TICKET, findings=[says("owner", "it waits", unsettled=True)]))
    assert asked(made).asked, "node 2 may know more"
    made.say(2, findings=gcs.Findings(ticket=TICKET))
    answer = asked(made)
    assert not answer.asked and answer.sentence == "it waits" and answer.unsettled


def test_the_owner_speaks_first_then_who_executes_holds_or_stores() -> None:
    made = world()
    asked(made, RESULT)
    made.say(1, findings=gcs.Findings(ticket=TICKET, findings=[
        says("holder", "", "held by 2 references"), says("node", "", "it is spilled"),
        says("executor", "", "f runs", next=b"x" * 28),
        says("owner", "it is not ready", "task f was sent", unsettled=True, next=TASK)]))
    answer = asked(made, RESULT)
    who = f"worker {b'w'.hex() * 6} (pid 7, node {node_id(1).hex()[:12]}): "
    assert answer.sentence == "it is not ready"
    assert list(answer.chain) == [
        "task f was sent", who + "f runs", who + "held by 2 references", "it is spilled"]
    assert answer.next == b"x" * 28


def test_what_a_task_itself_waits_for_is_not_itself() -> None:
    made = world()
    asked(made, RESULT)
    told = says("owner", "it is not ready", "task f was sent", unsettled=True, next=TASK)
    made.say(1, findings=gcs.Findings(ticket=TICKET, findings=[told]))
    assert asked(made, RESULT).next == b""


def test_a_node_that_does_not_answer_is_said_to_be_silent_and_a_dead_one_is_not_waited_for() -> None:
    made = world(nodes=2)
    asked(made)
    made.say(1, findings=gcs.Findings(ticket=TICKET, findings=[says("owner", "it waits", unsettled=True)]))
    for _ in range(10):
        made.sleep(0.5)
        made.beat(1)
        made.beat(2)
    answer = asked(made)
    assert not answer.asked
    assert answer.chain[-1].startswith("raylet of node") and "has not answered" in answer.chain[-1]
    asked(made, ticket=b"again")
    made.say(1, findings=gcs.Findings(ticket=b"again"))
    made.sleep(5.0)
    made.beat(1)
    made.sleep(6.0)
    made.beat(1)
    assert not asked(made, ticket=b"again").asked


def test_a_silent_process_is_named_when_nobody_else_knows_the_id() -> None:
    made = world()
    asked(made)
    address = pb.Address(node_id=node_id(1), worker_id=b"w" * 28)
    silent = gcs.Finding(address=address, pid=7, title="worker", silent="it is stopped", running=["f"])
    made.say(1, findings=gcs.Findings(ticket=TICKET, findings=[silent]))
    answer = asked(made)
    assert "its owner may be one of those who do not" in answer.sentence
    assert answer.chain[0].endswith("does not answer while it runs f: it is stopped")


def test_nobody_is_asked_without_a_ticket_or_about_a_job_that_has_ended() -> None:
    made = world()
    assert not asked(made, ticket=b"").asked
    assert not asked(made, ids.task_id(b"t" * 8, ids.job_id(9))).asked
    assert not made.take(1, "inquiry")
    assert made.ask(inquiry=gcs.Inquiry(kind="STACK")).failure.kind == pb.INVALID_ARGUMENT


def test_questions_are_bounded_and_late_answers_are_ignored() -> None:
    made = world()
    for number in range(3 * QUESTIONS_KEPT):
        asked(made, ticket=number.to_bytes(16, "little"))
    made.say(1, findings=gcs.Findings(ticket=b"unknown", findings=[says("owner", "too late")]))
    made.head.check()


# ---- a raylet


def ask(rig: Rig, **fields: object) -> None:
    rig.head(inquiry=gcs.Inquiry(ticket=TICKET, within_s=1.0, **fields))


def found(rig: Rig) -> list[gcs.Finding]:
    """What the raylet tells the GCS, once."""
    (findings,) = rig.to(HEAD, "findings")
    assert findings.ticket == TICKET
    return list(findings.findings)


def test_the_processes_of_the_job_are_asked_and_answers_carry_who_gave_them() -> None:
    rig = Rig()
    mine, other = rig.driver(), rig.driver(job=b"\2\0\0\0")
    ask(rig, key=TASK, job_id=JOB)
    (inquiry,) = rig.messages(mine, "inquiry")
    assert inquiry.key == TASK and not rig.messages(other, "inquiry")
    forged = pb.Address(node_id=PEER, worker_id=other)
    rig.say(mine, finding=gcs.Finding(ticket=TICKET, address=forged, names=[gcs.Named(name="f")]))
    (finding,) = found(rig)
    assert (finding.address.node_id, finding.address.worker_id) == (NODE, mine)
    assert finding.title == "driver" and finding.names[0].name == "f"


def test_a_node_without_such_a_process_answers_at_once() -> None:
    rig = Rig()
    ask(rig, key=TASK, job_id=JOB)
    assert found(rig) == []


def test_who_is_silent_is_looked_at_from_outside() -> None:
    rig = Rig()
    driver = rig.driver()
    ask(rig, kind="STACK")
    rig.advance(1.5)
    (look,) = rig.take(LookAtProcess)
    assert look.worker_id == driver and look.stack
    rig.node.process_seen(TICKET, driver, "it is stopped", "File …")
    rig.settle()
    (finding,) = found(rig)
    assert finding.silent == "it is stopped" and finding.stack == "File …"


def test_a_process_that_ends_or_cannot_be_looked_at_holds_nothing_up() -> None:
    rig = Rig()
    first, second = rig.driver(), rig.driver(job=b"\2\0\0\0")
    ask(rig, kind="STACK")
    rig.exit(first)
    rig.settle()
    assert not rig.to(HEAD, "findings"), "the other may answer yet"
    rig.advance(1.5)
    rig.take(LookAtProcess)
    rig.advance(5.0)
    (finding,) = found(rig)
    assert finding.address.worker_id == second and "could not be looked at" in finding.silent


def test_one_worker_can_be_named_by_the_beginning_of_its_id() -> None:
    rig = Rig()
    first, second = rig.driver(), rig.driver(job=b"\2\0\0\0")
    ask(rig, kind="STACK", key=first[:20] if first[:20] != second[:20] else first)
    assert rig.messages(first, "inquiry") and not rig.messages(second, "inquiry")


def test_the_raylet_tells_of_pulls_and_of_copies_on_disk() -> None:
    rig = Rig()
    rig.peer()
    driver = rig.driver()
    rig.say(driver, pull=worker_pb2.PullRequest(
        request_id=1, object_id=RESULT, locations=[PEER], size=1000, owner=pb.Address(worker_id=driver)))
    rig.node.transfer.arrived = {RESULT: 300}.__getitem__
    ask(rig, key=RESULT, job_id=JOB)
    rig.say(driver, finding=gcs.Finding(ticket=TICKET))
    told = found(rig)
    (link,) = told[0].explanations[0].chain
    assert link.endswith(f"fetches it from node {PEER.hex()[:12]}: 300 of 1000 bytes are there")
