"""Random storms over a whole `Head`: raylets obey, refuse and die, workers crash, the head restarts.

Safety is `Head.check()` after every step; liveness and agreement are `Storm.verify` after the
last fault. A seed replays exactly.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from tests.core.head_world import World, node_id


class Storm:
    """A cluster under random orders: raylets obey, refuse, die, and the head restarts."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.world = World()
        self.next_node = 0
        self.next_id = 0
        self.next_worker = 50
        self.alive: dict[int, dict[str, dict[Any, Any]]] = {}
        """What each raylet holds: actors (id: worker), bundles (key: committed)."""
        for _ in range(3):
            self.add_node()
        self.world.job(node=0)

    def add_node(self) -> None:
        if self.next_node < 40:
            self.alive[self.next_node] = {"actors": {}, "bundles": {}}
            self.world.join(self.next_node, CPU=4)
            self.next_node += 1

    def kill_node(self) -> None:
        if len(self.alive) > 1:
            victim = self.rng.choice([node for node in self.alive if node != 0] or [1])
            self.alive.pop(victim, None)
            self.world.head.node_disconnected(self.world.now, node_id(victim), True)
            self.world.inbox.pop(victim, None)

    def make_actor(self) -> None:
        self.next_id += 1
        spec = self.world.spec(1, owner=0, owner_node=0, max_restarts=self.rng.choice([0, 1, -1]))
        spec.actor_id = ids.actor_id(self.next_id.to_bytes(12, "little"), ids.job_id(1))
        if self.rng.random() < 0.3 and self.next_id > 3:
            pg = self.group_id(self.rng.randint(1, self.next_id))
            spec.creation_class.strategy.bundle.placement_group_id = pg
            spec.creation_class.strategy.bundle.bundle_index = -1
        self.ask(actor_register=gcs.ActorRegister(spec=spec))

    def group_id(self, number: int) -> bytes:
        return number.to_bytes(14, "little") + ids.job_id(1)

    def make_group(self) -> None:
        self.next_id += 1
        count = self.rng.randint(1, 3)
        bundles = [pb.BundleInfo(resources=pb.ResourceMap(amounts={"CPU": 10_000})) for _ in range(count)]
        info = pb.PlacementGroupInfo(
            placement_group_id=self.group_id(self.next_id), strategy=self.rng.randrange(4), bundles=bundles,
            creator_job_id=ids.job_id(1),
        )  # fmt: skip
        self.ask(group_create=gcs.GroupCreate(info=info))

    def remove_group(self) -> None:
        pg = self.group_id(self.rng.randint(0, self.next_id))
        self.ask(group_remove=gcs.GroupRemove(placement_group_id=pg))

    def kill_actor(self) -> None:
        actor = ids.actor_id(self.rng.randint(0, self.next_id).to_bytes(12, "little"), ids.job_id(1))
        kill = gcs.ActorKill(actor_id=actor, no_restart=self.rng.random() < 0.7)
        self.ask(actor_kill=kill)

    def ask(self, **body: Any) -> None:
        if 0 in self.alive:
            self.world.ask(node=0, **body)

    def crash_worker(self) -> None:
        for node, holds in self.alive.items():
            if holds["actors"]:
                actor, worker = self.rng.choice(list(holds["actors"].items()))
                del holds["actors"][actor]
                self.fail(node, worker, actor, False)
                return

    def fail(self, node: int, worker: int, actor: bytes, intended: bool) -> None:
        message = gcs.WorkerFailed(
            address=pb.Address(node_id=node_id(node), worker_id=worker.to_bytes(28, "little")),
            actor_id=actor, failure=pb.Failure(kind=pb.WORKER_DIED, message="crash"), intended=intended,
        )  # fmt: skip
        self.world.say(node, worker_failed=message)

    def restart_head(self) -> None:
        world = self.world
        world.start()
        for node, holds in self.alive.items():
            live = [
                gcs.LiveActor(actor_id=a, worker_id=w.to_bytes(28, "little"), pid=1)
                for a, w in holds["actors"].items()
            ]
            held = [
                gcs.HeldBundle(placement_group_id=pg, index=i, committed=c)
                for (pg, i), c in holds["bundles"].items()
            ]
            world.join(node, CPU=4, actors=live, bundles=held, jobs=[ids.job_id(1)] if node == 0 else [])

    def obey(self, refusals: float) -> bool:
        """Raylets answer one message each; False when nobody had any."""
        busy = False
        for node in list(self.alive):
            inbox = self.world.inbox.get(node, [])
            if inbox:
                busy = True
                self.answer(node, inbox.pop(0), refusals)
        return busy

    def answer(self, node: int, message: gcs.NodeMessage, refusals: float) -> None:
        holds = self.alive[node]
        kind = message.WhichOneof("body")
        if kind == "create_actor":
            self.create(node, holds, message.create_actor, self.rng.random() < refusals)
        elif kind == "kill_worker":
            for actor, worker in list(holds["actors"].items()):
                if worker.to_bytes(28, "little") == message.kill_worker.worker_id:
                    del holds["actors"][actor]
                    self.fail(node, worker, actor, True)
        elif kind == "bundle_request":
            self.bundle(node, holds, message.bundle_request, self.rng.random() < refusals)

    def create(self, node: int, holds: Any, create: gcs.CreateActor, refuse: bool) -> None:
        actor = create.spec.actor_id
        reply = gcs.ActorCreated(actor_id=actor, attempt=create.attempt)
        if refuse or actor in holds["actors"]:
            reply.failure.kind = pb.UNAVAILABLE
        else:
            self.next_worker += 1
            holds["actors"][actor] = self.next_worker
            reply.address.node_id = node_id(node)
            reply.address.worker_id = self.next_worker.to_bytes(28, "little")
        self.world.say(node, actor_created=reply)

    def bundle(self, node: int, holds: Any, request: gcs.BundleRequest, refuse: bool) -> None:
        keys = [(request.placement_group_id, bundle.index) for bundle in request.bundles]
        reply = gcs.BundleReply(
            step=request.step, placement_group_id=request.placement_group_id, attempt=request.attempt,
            indices=[index for _, index in keys],
        )  # fmt: skip
        takes = request.step in (gcs.BundleRequest.PREPARE, gcs.BundleRequest.GRANT)
        reply.ok = not (refuse and takes)
        for key in keys if reply.ok else ():
            if request.step == gcs.BundleRequest.RETURN:
                holds["bundles"].pop(key, None)
            elif request.step == gcs.BundleRequest.PREPARE:
                holds["bundles"].setdefault(key, False)
            elif request.step == gcs.BundleRequest.GRANT:
                holds["bundles"][key] = True
            elif key in holds["bundles"]:
                holds["bundles"][key] = True
            else:
                reply.ok = False
        self.world.say(node, bundle_reply=reply)

    def run(self, steps: int) -> None:
        actions = [
            self.make_actor, self.make_actor, self.make_group, self.kill_actor, self.remove_group,
            self.crash_worker, self.add_node, self.kill_node, self.restart_head,
        ]  # fmt: skip
        for _ in range(steps):
            self.rng.choices(actions, weights=[4, 4, 3, 2, 2, 2, 1, 0.5, 0.5])[0]()
            for _ in range(self.rng.randint(0, 3)):
                self.obey(0.2)
            self.pause(self.rng.random() * 0.3)
        for _ in range(60):
            self.pause(0.5)
            while self.obey(0.0):
                pass

    def pause(self, seconds: float) -> None:
        for node in self.alive:
            if node in self.world.totals:
                self.world.beat(node, seen=10**6)
        self.world.sleep(seconds)

    def verify(self) -> None:
        """After the last fault: what the head believes is what the raylets hold."""
        actors = self.world.head.actors.registry.records.values()
        believed = {
            (r.node_id[0], r.id): int.from_bytes(r.info.address.worker_id, "little")
            for r in actors if r.info.state == pb.ALIVE
        }  # fmt: skip
        held = {(node, a): w for node, holds in self.alive.items() for a, w in holds["actors"].items()}
        assert believed == held
        groups = self.world.head.placement.find(gcs.GroupLookup())
        # a group that lost a node keeps the other bundles until the lost one has a new place
        placed = [(g, b) for g in groups for b in g.bundles if b.node_id]
        believed_bundles = {(b.node_id[0], g.placement_group_id, b.index) for g, b in placed}
        bundles = {(node, *key): done for node, h in self.alive.items() for key, done in h["bundles"].items()}
        assert believed_bundles == {key for key, done in bundles.items() if done}
        assert all(bundles.values()), "prepared and forgotten"
        for group in groups:
            placed = sum(bool(bundle.node_id) for bundle in group.bundles)
            if group.state == pb.GROUP_CREATED:
                assert placed == len(group.bundles), "created is whole"
            elif group.state in (pb.GROUP_PENDING, pb.GROUP_REMOVED):
                assert placed == 0, "absent is absent"
            assert group.state in (pb.GROUP_CREATED, pb.GROUP_REMOVED) or group.pending_reason
        for record in actors:
            if record.info.state in (pb.PENDING_CREATION, pb.RESTARTING):
                assert self.world.head.actors.shown(record).pending_reason, "it waits and nobody knows why"


@pytest.mark.parametrize("seed", range(25))
def test_after_any_storm_the_head_and_the_raylets_agree(seed: int) -> None:
    storm = Storm(seed)
    storm.run(80)
    storm.verify()


def test_the_same_seed_gives_the_same_history() -> None:
    dumps = []
    for _ in range(2):
        storm = Storm(7)
        storm.run(40)
        dumps.append((storm.world.head.dump(), sorted(storm.world.rows.items())))
    assert dumps[0] == dumps[1]
