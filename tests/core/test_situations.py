"""The catalogue of explanations: every entry is made here, by the machines, and recognised as what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from owner_rig import ME, W1, W2, W3, failed, stored
from owner_rig import Rig as OwnerRig
from rig import JOB, NODE, PEER, Rig, resource_map, scheduling_class

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2
from miniray.core import explain, ids, policy, situations, why
from miniray.core.directory import FAILED
from miniray.core.events import pack_row
from miniray.core.guard import GIB
from miniray.core.node_effects import StartFetch, Survey, SurveyStore
from miniray.core.pool import start_refusal
from miniray.core.situations import CATALOGUE, recognise
from miniray.runtime import errors, executing, explaining, process_look
from miniray.runtime.actor_exit import REASON
from miniray.runtime.task_context import NO_LEASE, TaskContext
from miniray.runtime.workers import CUT_OFF, describe_exit
from tests.core.head_world import World, amounts, node_id

Scene = Callable[[], Iterable[str]]
SCENES: dict[str, Scene] = {}


def scene(*keys: str) -> Callable[[Scene], Scene]:
    """The function makes the situations with these keys; it returns what is said in them."""

    def decorate(function: Scene) -> Scene:
        for key in keys:
            assert key not in SCENES, key
            SCENES[key] = function
        return function

    return decorate


@pytest.mark.parametrize("key", CATALOGUE)
def test_the_situation_is_made_and_recognised(key: str) -> None:
    assert key in SCENES, f"no scene makes {key}"
    said = list(SCENES[key]())
    recognised = {link: one.key for link in said if (one := recognise(link)) is not None}
    assert key in recognised.values(), f"nothing of this is recognised as {key}: {said} ({recognised})"


def test_there_are_scenes_for_entries_only_and_each_entry_says_what_helps() -> None:
    assert set(SCENES) == set(CATALOGUE) and len(CATALOGUE) >= 40
    for one in CATALOGUE.values():
        assert one.helps and one.group in situations.GROUPS, one


def test_a_bundle_that_has_its_place_gives_no_advice() -> None:
    links = ["waiting for CPU in bundle 0 of placement group 77: 1 needed, at most 0 free; held by 1 x f",
             "placement group (77) holds all its bundles", "bundle 0, {CPU: 1}: on node n (77)"]
    assert situations.advice(links) == CATALOGUE["pending.bundle-busy"].helps


@scene("pending.bundle-placed")
def _bundle_in_its_place() -> list[str]:
    return ["bundle 0, {CPU: 1}: on node n (77)"]


def test_words_of_users_are_no_situation() -> None:
    for text in ("", "division by zero", "Traceback (most recent call last):\n  File", "no"):
        assert recognise(text) is None


def test_what_is_said_first_of_an_unknown_name_decides() -> None:
    pip = "a new worker could not be started: [Node n] pip install ended with exit status 1:\nno such package"
    assert recognise(pip) is CATALOGUE["dead.environment"]
    node = "The actor died because its node has died. node n (77) died: its address refuses connections"
    assert recognise(node) is CATALOGUE["dead.node"]


def test_advice_is_that_of_the_last_link_that_is_known() -> None:
    links = ["task f waits for a worker", "no node has 50 CPU: the most is 4 on n1", "words of a user"]
    assert situations.advice(links) == CATALOGUE["pending.too-large"].helps
    assert situations.advice(["words of a user"]) == ""


def test_the_page_is_the_catalogue() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "explanations.md"
    assert page.read_text() == situations.page(), "run: miniray why --catalogue > docs/explanations.md"


# ---- what schedulers say


def view(**nodes: dict[str, float]) -> dict[bytes, policy.NodeView]:
    made = {}
    for name, total in nodes.items():
        amounts_ = {key: int(value * 10_000) for key, value in total.items()}
        node = name.encode() * 28
        made[node] = policy.NodeView(node, name, amounts_, dict(amounts_), {})
    return made


def reason(nodes: dict[bytes, policy.NodeView], strategy: Any = None, **demand: float) -> str:
    wanted = {name: int(value * 10_000) for name, value in demand.items()}
    return policy.choose(nodes, wanted, strategy or pb.SchedulingStrategy()).reason


@scene("pending.no-such-resource", "pending.too-large", "pending.not-together", "pending.busy",
       "pending.busy-together", "pending.no-node", "pending.label", "pending.affinity-busy", "dead.affinity",
       "dead.affinity-small")
def _policy() -> list[str]:
    two = view(a={"CPU": 4, "disk": 1}, b={"CPU": 2, "GPU": 1})
    busy = view(a={"CPU": 4, "disk": 1})
    busy[b"a" * 28].available = {"CPU": 0, "disk": 10_000}
    both = view(a={"CPU": 4, "disk": 1})
    both[b"a" * 28].available = {"CPU": 10_000, "disk": 0}
    either = view(a={"CPU": 4, "GPU": 4}, b={"CPU": 4, "GPU": 4})
    either[b"a" * 28].available = {"CPU": 0, "GPU": 40_000}
    either[b"b" * 28].available = {"CPU": 40_000, "GPU": 0}
    label = pb.SchedulingStrategy(labels=[pb.LabelMatch(key="zone", operator=0, values=["north"])])
    dead = pb.SchedulingStrategy(affinity=pb.NodeAffinity(node_id=b"z" * 28))
    small = pb.SchedulingStrategy(affinity=pb.NodeAffinity(node_id=b"a" * 28))
    strict = pb.SchedulingStrategy(affinity=pb.NodeAffinity(node_id=b"a" * 28, fail_on_unavailable=True))
    return [reason(two, TPU=1), reason(two, CPU=9), reason(two, disk=1, GPU=1), reason(busy, CPU=1),
            reason(either, CPU=1, GPU=1), reason({}, CPU=1), reason(two, label, CPU=1),
            reason(busy, strict, CPU=1), reason(two, dead, CPU=1), reason(two, small, CPU=50)]


@scene("pending.bundle-busy", "pending.bundle-small", "pending.group-absent")
def _bundles() -> list[str]:
    group = b"g" * 14 + JOB
    hexed = group.hex()
    held = {f"{name}_group_{which}{hexed}": amount
            for which in ("", "0_") for name, amount in (("CPU", 1), ("bundle", 1000))}
    nodes = view(a={"CPU": 4, **held})
    in_bundle = pb.SchedulingStrategy(bundle=pb.BundleChoice(placement_group_id=group, bundle_index=0))
    too_much = policy.demand_of(scheduling_class(strategy=in_bundle, CPU=2))
    small = policy.choose(nodes, too_much, in_bundle).reason
    demand = policy.demand_of(scheduling_class(strategy=in_bundle, CPU=1))
    for node in nodes.values():
        node.available = {name: amount * (not name.startswith("CPU")) for name, amount in node.total.items()}
    busy = policy.choose(nodes, demand, in_bundle).reason
    absent = policy.choose(view(a={"CPU": 4}), demand, in_bundle).reason
    return [small, busy, absent]


@scene("pending.held-by", "pending.starting", "pending.environment")
def _raylet_queue() -> list[str]:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    rig.grants(driver)
    rig.ask(driver)
    rig.advance(2.0)
    said = [reply.pending_reason for reply in rig.messages(driver, "lease_reply")]
    for env in ("", '{"pip":["torch"]}'):
        other = Rig(CPU=1)
        driver = other.driver()
        other.starts.clear()
        other.ask(driver, scheduling_class(env=env))
        other.advance(3.0)
        said += [reply.pending_reason for reply in other.messages(driver, "lease_reply")]
    return said


# ---- what the owner says


def chain(rig: OwnerRig, name: str) -> list[str]:
    return why.chain(rig.owner, rig.entries[name], rig.now)


def told(rig: OwnerRig, key: bytes) -> list[str]:
    found = why.explain(rig.owner, rig.now, key)
    return [found.sentence, *found.chain]


@scene("pending.argument", "pending.worker", "pending.queued", "pending.borrowed")
def _waiting() -> list[str]:
    rig = OwnerRig()
    rig.submit("a")
    rig.submit("b", "a")
    rig.borrowed("theirs", W2)
    return chain(rig, "b") + chain(rig, "theirs")


@scene("slow.runs", "slow.next", "slow.behind", "slow.pulled")
def _sent() -> list[str]:
    rig = OwnerRig()
    rig.template("f", cost_us=10.0)
    rig.put("x", node=W3[0])
    rig.submit("a", "x")
    rig.submit("b")
    rig.grant(1, W1)
    return chain(rig, "a") + chain(rig, "b")


@scene("pending.actor", "pending.earlier-call", "slow.sent")
def _calls() -> list[str]:
    rig = OwnerRig()
    rig.actor("actor")
    rig.submit("slow", function="g")
    rig.submit("first", "slow", actor="actor")
    rig.submit("second", actor="actor")
    said = chain(rig, "second")
    rig.news("actor", "ALIVE", W1)
    said += chain(rig, "second")
    rig.grant(1, W2)
    rig.reply("slow")
    return said + chain(rig, "second")


@scene("held.references", "held.in-flight", "held.borrower", "held.lineage", "held.ready")
def _held() -> list[str]:
    rig = OwnerRig()
    entry = rig.put("x", node=ME[0])
    rig.submit("done", "x", retries=2)
    rig.grant(1, W1)
    rig.reply("done", stored())
    rig.submit("runs", "x")
    rig.owner.ownership.borrow_added(entry.id, W2)
    return told(rig, entry.id)


@scene("dead.cancelled", "dead.raised")
def _ended() -> list[str]:
    rig = OwnerRig()
    rig.submit("bad")
    rig.submit("given_up")
    rig.owner.cancelled(rig.now, rig.records["given_up"], SimpleNamespace(message="cancelled"))
    rig.grant(1, W1)
    rig.reply("bad", failed(SimpleNamespace(message="division by zero")))
    return told(rig, rig.records["bad"].id) + told(rig, rig.records["given_up"].id)


@scene("lost.put", "lost.attempts", "lost.no-retries", "lost.forgotten", "lost.given-up")
def _not_rebuilt() -> list[str]:
    said = []
    for how in ("put", "retries", "attempts", "forgotten", "cancelled"):
        rig = OwnerRig()
        if how == "put":
            entry = rig.put("x", node=W1[0])
        else:
            record = rig.submit("x", retries=0 if how == "retries" else 1)
            rig.grant(1, W1)
            if how == "attempts":
                rig.dies(W1)
                rig.grant(2, W1)
            rig.reply("x", stored())
            entry = rig.entries["x"]
            if how == "forgotten":
                rig.owner.lineage.limit_bytes = 700
                rig.submit("y", retries=1)
                rig.grant(3, W2)
                rig.reply("y", stored())
            elif how == "cancelled":
                rig.owner.cancelled(rig.now, record, None)
        assert rig.owner.location_removed(rig.now, entry.id, W1[0])
        refusal = rig.owner.rebuild(rig.now, entry)
        assert refusal is not None, how
        said.append(errors.not_rebuilt(refusal, entry.id, W1[0]).message)
    return said


@scene("held.line", "lost.freed", "lost.owner-freed", "lost.owner")
def _other_ends() -> list[str]:
    """Said by the worker library; tests/system/test_why.py and the broken programs make them for real."""
    from miniray.runtime import sites

    recorded = sites.Sites()
    recorded.note(SimpleNamespace(binary=lambda: b"x"), "the reference was made by put")
    rig = OwnerRig()
    entry = rig.borrowed("theirs", W2)
    gone = pb.Failure(message="its owner is gone: worker 77 (pid 5) ended with signal SIGKILL")
    rig.dies(W2, "died", owner_error=gone)
    assert entry.state == FAILED
    freed = ["it was freed: nothing referred to it any more", "its owner has freed it"]
    assert all(text in Path(errors.__file__).with_name("worker.py").read_text() for text in freed)
    return [*recorded.of(b"x"), *told(rig, entry.id), *freed]


# ---- what the GCS says


def asked(world: World, key: bytes) -> list[str]:
    found = world.ask(explain=gcs.ExplainQuery(id=key)).explanation
    return [found.sentence, *found.chain]


def world() -> World:
    made = World(CPU=4)
    made.job()
    return made


@scene("pending.kept")
def _kept() -> list[str]:
    made = world()
    for number in range(2):
        made.make_actor(made.spec(number + 1, needs={"CPU": 2}, keeps={"CPU": 2}), worker=60 + number)
    made.beat(1, CPU=0)
    waits = made.spec(3, needs={"CPU": 1})
    made.register(waits)
    return asked(made, waits.actor_id)


@scene("pending.actor-pending", "pending.actor-arguments", "pending.actor-creating",
       "pending.actor-restarting", "pending.actor-pause", "dead.actor-dead", "dead.killed-9")
def _actors() -> list[str]:
    made = world()
    waits = made.spec(1, needs={"GPU": 1})
    made.register(waits)
    unready = made.spec(2)
    made.register(unready, incomplete=True)
    creating = made.spec(3)
    made.register(creating)
    said = asked(made, waits.actor_id) + asked(made, unready.actor_id) + asked(made, creating.actor_id)
    made.take(1, "create_actor")
    again = made.make_actor(made.spec(4, max_restarts=-1), worker=60)
    for number in range(5):
        made.fail_worker(1, 60 + number, again)
        said += asked(made, again)
        created = made.take(1, "create_actor")
        if not created:
            break
        made.created(1, created[-1], 61 + number)
    dead = made.make_actor(made.spec(5), worker=80)
    made.fail_worker(1, 80, dead)
    end = describe_exit("worker 50", 7, 9, "")[0]
    return [*said, *asked(made, dead), end]


@scene("dead.killed", "dead.out-of-scope", "dead.by-request", "dead.job", "dead.owner", "dead.constructor",
       "dead.unschedulable", "dead.node", "dead.node-dead", "dead.node-left")
def _ends() -> list[str]:
    made = world()
    made.join(2, CPU=4)
    said = []
    for number, request in enumerate((
        {"actor_kill": gcs.ActorKill(no_restart=True)},
        {"actor_handle_gone": gcs.ActorHandleGone()},
        {"actor_kill": gcs.ActorKill(no_restart=True, graceful=True)},
    )):
        spec = made.spec(number + 1, needs={"GPU": 1})
        made.register(spec)
        for message in request.values():
            message.actor_id = spec.actor_id
        made.ask(**request)
        said += asked(made, spec.actor_id)
    raised = made.spec(10)
    made.register(raised)
    cause = pb.Failure(kind=pb.USER_ERROR, message="the constructor of Klass raised ValueError: no")
    (create,) = (one for number in (1, 2) for one in made.take(number, "create_actor"))
    made.created(1, create, 70, cause)
    said += asked(made, raised.actor_id)
    bound = pb.SchedulingStrategy(affinity=pb.NodeAffinity(node_id=b"z" * 28))
    nowhere = made.spec(11, strategy=bound)
    made.register(nowhere)
    made.sleep(2.0)
    said += asked(made, nowhere.actor_id)
    owned = made.spec(12, owner=9)
    made.register(owned)
    made.fail_worker(1, 9)
    said += asked(made, owned.actor_id)
    for _ in range(3):
        made.sleep(4.0)
        made.beat(1)
    said += asked(made, node_id(2))
    made.join(3, CPU=1)
    made.say(3, leaving=gcs.NodeLeaving(reason="it was drained"))
    said += asked(made, node_id(3))
    last = made.spec(13, needs={"GPU": 1})
    made.register(last)
    made.ask(job_finish=gcs.JobFinish(job_id=ids.job_id(1)))
    return [*said, *asked(made, last.actor_id)]


@scene("pending.group-room", "pending.bundle", "pending.group-placed", "pending.group-rescheduled",
       "dead.group-removed", "pending.draining")
def _groups() -> list[str]:
    made = world()
    made.join(2, CPU=8)
    said = []

    def group(number: int, *cpus: float) -> bytes:
        key = bytes([number]) * 14 + ids.job_id(1)
        bundles = [pb.BundleInfo(index=at, resources=amounts(CPU=cpu)) for at, cpu in enumerate(cpus)]
        info = pb.PlacementGroupInfo(placement_group_id=key, bundles=bundles, creator_job_id=ids.job_id(1),
                                     strategy=pb.STRICT_SPREAD)
        made.ask(group_create=gcs.GroupCreate(info=info))
        return key

    said += asked(made, group(1, 90))
    placed = group(2, 3, 3)
    for step in (gcs.BundleRequest.PREPARE, gcs.BundleRequest.COMMIT):
        for number in (1, 2):
            request = made.one(number, "bundle_request")
            assert request.step == step
            made.say(number, bundle_reply=gcs.BundleReply(
                step=step, placement_group_id=placed, attempt=request.attempt, ok=True,
                indices=[bundle.index for bundle in request.bundles]))
        said += asked(made, placed)
    strategy = pb.SchedulingStrategy(bundle=pb.BundleChoice(placement_group_id=placed))
    bound = made.spec(1, strategy=strategy, needs={"GPU": 1})
    made.register(bound)
    for _ in range(3):
        made.sleep(4.0)
        made.beat(1)
    said += asked(made, placed)
    made.ask(group_remove=gcs.GroupRemove(placement_group_id=placed))
    said += asked(made, bound.actor_id)
    made.ask(drain=gcs.DrainRequest(node_id=node_id(1), deadline_s=30.0))
    return said + asked(made, node_id(1))


@scene("dead.attempts")
def _rows() -> list[str]:
    made = world()
    task = ids.task_id(b"t" * 8, ids.job_id(1))
    row = pack_row(task_id=task, name="f", state="FAILED", node_id=node_id(1), worker_id=b"w" * 28,
                   error="no", submitted_at=1.0, started_at=4.0, ended_at=5.0, attempt=1)
    made.say(1, task_events=gcs.TaskEventBatch(job_id=ids.job_id(1), rows=row))
    return asked(made, task)


# ---- how processes end


@scene("dead.segfault", "dead.signal", "dead.exit", "dead.sys-exit", "dead.exit-actor", "dead.environment",
       "dead.start")
def _exits() -> list[str]:
    said = [describe_exit("worker 77", 5, status, "")[0] for status in (11, 15, 3 << 8)]
    for reason_, intended in (("user code called sys.exit(3)", False), (REASON, True)):
        rig = Rig(CPU=1)
        driver = rig.driver()
        (worker,) = rig.boot_all()
        rig.ask(driver)
        rig.say(worker, exiting=worker_pb2.Exiting(reason=reason_, intended=intended))
        rig.exit(worker, "worker 77 (pid 5) ended with exit status 3")
        said += [one.failure.message for one in rig.to(b"head", "worker_failed")]
    refused = pb.Failure(kind=pb.WORKER_DIED, message="a new worker (pid 5) ended with exit status 1")
    said.append(start_refusal(SimpleNamespace(environment="{}"), refused).message)
    return [*said, describe_exit("a new worker", 0, 256, "[Node 1] pip: no such package")[0]]


@scene("dead.out-of-memory")
def _memory_guard() -> list[str]:
    rig = Rig(CPU=1)
    driver = rig.driver()
    (worker,) = rig.boot_all()
    rig.ask(driver)
    rig.grants(driver)
    assert rig.node.memory_measured(rig.now, 97 * GIB, 100 * GIB, 0.95, {worker: 50 * GIB})
    rig.settle()
    rig.exit(worker)
    return [one.failure.message for one in rig.to(b"head", "worker_failed")]


# ---- what the raylet and the executor say


OBJECT = ids.object_id(ids.task_id(b"t" * 8, JOB), 1)


def raylet_says(rig: Rig, key: bytes = OBJECT) -> list[str]:
    return [link for finding in rig.node.inquiries._own(rig.now, key)
            for one in finding.explanations for link in one.chain]


def pull(rig: Rig, driver: bytes, number: int, key: bytes = OBJECT) -> None:
    rig.say(driver, pull=worker_pb2.PullRequest(
        request_id=number, object_id=key, locations=[PEER], size=1000, owner=pb.Address(worker_id=driver)))


@scene("slow.fetched", "slow.fetched-later", "slow.source-busy", "stuck.no-room-yet")
def _pulls() -> list[str]:
    rig = Rig()
    rig.peer()
    driver = rig.driver()
    pull(rig, driver, 1)
    said = raylet_says(rig)
    for number in range(20):
        pull(rig, driver, 2 + number, ids.object_id(ids.task_id(b"t" * 8, JOB), 2 + number))
    said += raylet_says(rig, ids.object_id(ids.task_id(b"t" * 8, JOB), 21))
    busy = pb.Failure(kind=pb.UNAVAILABLE)
    rig.node.fetch_ended(rig.now, OBJECT, 1000, (b"", b""), busy, [])
    rig.settle()
    said += raylet_says(rig)
    other = Rig()
    other.peer()
    pull(other, other.driver(), 1)
    assert other.take(StartFetch)
    other.node.fetch_ended(other.now, OBJECT, 1000, (b"", b""), pb.Failure(kind=pb.STORE_FULL), [])
    other.settle()
    return said + raylet_says(other)


@scene("slow.spilled", "slow.spilling", "slow.restoring", "stuck.store-full", "stuck.disk-full",
       "lost.no-room", "lost.never-fits", "lost.no-copy")
def _store() -> list[str]:
    rig = Rig(store_bytes=100 << 20)
    rig.peer()
    driver = rig.driver()
    memory = rig.node.memory
    rig.say(driver, object_sealed=worker_pb2.ObjectSealed(object_id=OBJECT, size=1000))
    stock = Survey(100 << 20, 99 << 20, 0, [])
    wanted = ids.object_id(ids.task_id(b"t" * 8, JOB), 9)
    rig.say(driver, make_room=worker_pb2.MakeRoom(request_id=1, bytes=50 << 20, object_id=wanted))
    said = raylet_says(rig, wanted)
    memory.disk_full = "the disk is 96 % full"
    said += raylet_says(rig, wanted)
    assert rig.take(SurveyStore)
    rig.node.store_surveyed(rig.now, stock)
    rig.settle()
    said += [reply.failure.message for reply in rig.messages(driver, "room")]
    rig.say(driver, make_room=worker_pb2.MakeRoom(request_id=2, bytes=500 << 20, object_id=wanted))
    said += [reply.failure.message for reply in rig.messages(driver, "room")]
    memory.spilling[7] = {OBJECT: 1000}
    said += raylet_says(rig)
    rig.node.objects_spilled(rig.now, 7, [OBJECT], None)
    rig.settle()
    said += raylet_says(rig)
    pull(rig, driver, 1)
    said += raylet_says(rig)
    nowhere = worker_pb2.PullRequest(request_id=5, object_id=wanted, owner=pb.Address(worker_id=driver))
    rig.say(driver, pull=nowhere)
    return said + [reply.failure.message for reply in rig.messages(driver, "pull")]


@scene("pending.actor-process", "pending.actor-constructor")
def _hosting() -> list[str]:
    rig = Rig(CPU=1)
    actor = b"a" * 12 + JOB
    rig.starts.clear()
    spec = pb.ActorSpec(actor_id=actor, creation_class=scheduling_class("A"), class_name="A",
                        lifetime_resources=resource_map(CPU=1))
    rig.node.pool.starting.clear()
    rig.head(create_actor=gcs.CreateActor(spec=spec))
    said = raylet_says(rig, actor)
    rig.head(reply=gcs.ControlReply())
    rig.boot_all()
    for request in rig.to(b"head", "request"):
        if request.WhichOneof("body") == "job_list":
            jobs = gcs.JobInfos(jobs=[pb.JobInfo(job_id=JOB)])
            rig.head(reply=gcs.ControlReply(request_id=request.request_id, jobs=jobs))
    return said + raylet_says(rig, actor)


def doing(**fields: Any) -> list[str]:
    context = TaskContext(b"t" * 24, "f", 0, b"", NO_LEASE)
    links, _ = executing.links(executing.Doing(context, "x.py:3 in f", **fields), 5.0)
    address = pb.Address(node_id=NODE, worker_id=b"w" * 28)
    said = gcs.Explanation(kind="task", role="executor", chain=links)
    finding = gcs.Finding(address=address, pid=7, title="worker", explanations=[said])
    return list(explain.merged(b"t" * 24, gcs.Explanation(), [finding]).chain)


@scene("slow.executes", "slow.waits-for", "slow.unread", "stuck.store-wait")
def _executor() -> list[str]:
    return [*doing(ahead=(2, 1)), *doing(since=1.0), *doing(waits=[OBJECT], bringing=True), *doing(room=1000)]


@scene("slow.concurrency", "stuck.cycle")
def _cycle() -> list[str]:
    """Two calls that wait for each other, each queued behind the other at an actor."""
    first, second = b"1" * 24, b"2" * 24

    def request(query: gcs.ExplainQuery) -> gcs.Explanation:
        following = second if query.id == first else first
        queued = f"it is queued here behind 0 others, and while ping ({following.hex()[:12]}) runs"
        return gcs.Explanation(kind="task", name="A.ping", chain=[queued], next=following, unsettled=True)

    return list(explaining.ask(request, first, 10.0).chain)


@scene("slow.group")
def _group_that_is_full() -> list[str]:
    return ["it is queued here behind 2 others of concurrency group 'io', which runs 1 at a time, "
            "and while f (1) runs"]


@scene("stuck.cancelled")
def _cancellation_that_is_not_heeded() -> list[str]:
    context = TaskContext(b"t" * 24, "f", 0, b"", NO_LEASE)
    context.cancelled = 2.0
    links, _ = executing.links(executing.Doing(context, "x.py:3 in f"), 5.0)
    assert "3.0 s ago" in links[-1]
    return links


@scene("dead.cut-off")
def _cut_off() -> list[str]:
    return [f"worker 77 (pid 5) {CUT_OFF}"]


@scene("stuck.silent-head")
def _silent_head() -> list[str]:
    return [why.silent_head(3.0)]


@scene("stuck.silent-daemon")
def _silent_daemon() -> list[str]:
    return [why.silent_head(3.0, 77)]


@scene("dead.unneeded")
def _unneeded() -> list[str]:
    return ["worker 77 (pid 5) ended with exit status 0: the actor is not needed any more"]


@scene("stuck.stopped", "stuck.native", "stuck.unseen", "stuck.silent-node", "stuck.silent-owner")
def _silence() -> list[str]:
    address = pb.Address(node_id=NODE, worker_id=b"w" * 28)
    findings = [gcs.Finding(address=address, pid=7, title="worker", silent=text, running=["f"]) for text in (
        process_look.STATES["T"] + ": `kill -CONT 7` lets it go on", process_look.STATES["R"],
        "it could not be looked at")]
    node = gcs.Finding(address=pb.Address(node_id=NODE), title="raylet",
                       silent=f"its node, {NODE.hex()[:12]}, has not answered")
    answer = explain.merged(OBJECT, gcs.Explanation(), [*findings, node])
    return [answer.sentence, *answer.chain]


@scene("pending.max-pending")
def _max_pending() -> list[str]:
    from miniray.exceptions import PendingCallsLimitExceeded
    from miniray.runtime.actors import Actors

    client: Any = SimpleNamespace(id=b"a" * 16, max_pending_calls=2, pending_calls=2)
    with pytest.raises(PendingCallsLimitExceeded) as caught:
        Actors.admit(Any, client)  # type: ignore[arg-type]
    return [str(caught.value)]


