"""Placement groups: whole or absent, on the right nodes, through refusals, deaths and restarts."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from miniray.core import resources as res
from miniray.core.bundles import Bundle, plan_bundles
from miniray.core.policy import NodeView
from tests.core.head_world import World, amounts, node_id

PREPARE, COMMIT, RETURN = gcs.BundleRequest.PREPARE, gcs.BundleRequest.COMMIT, gcs.BundleRequest.RETURN
GRANT = gcs.BundleRequest.GRANT


def group_id(number: int) -> bytes:
    return bytes([number]) * 14 + ids.job_id(1)


def group(number: int, *bundles: dict[str, float], strategy: Any = pb.PACK, **fields: Any) -> gcs.GroupCreate:
    infos = [pb.BundleInfo(index=i, resources=amounts(**b)) for i, b in enumerate(bundles)]
    fields.setdefault("creator_job_id", ids.job_id(1))
    info = pb.PlacementGroupInfo(
        placement_group_id=group_id(number), strategy=strategy, bundles=infos, **fields
    )
    return gcs.GroupCreate(info=info)


@pytest.fixture
def world() -> World:
    """Two nodes with four CPUs each, one job."""
    world = World(CPU=4)
    world.job()
    world.join(2, CPU=4)
    return world


def steps(world: World, node: int) -> list[tuple[Any, list[int]]]:
    return [(r.step, [b.index for b in r.bundles]) for r in world.take(node, "bundle_request")]


def answer(world: World, node: int, *, ok: bool = True) -> list[Any]:
    """The raylet answers every bundle request it has; returns the steps."""
    requests = world.take(node, "bundle_request")
    for request in requests:
        indices = [bundle.index for bundle in request.bundles]
        reply = gcs.BundleReply(
            step=request.step, placement_group_id=request.placement_group_id, attempt=request.attempt,
            ok=ok, indices=indices, reason="" if ok else "no room",
        )  # fmt: skip
        world.say(node, bundle_reply=reply)
    return [request.step for request in requests]


def place(world: World, create: gcs.GroupCreate) -> pb.PlacementGroupInfo:
    """Create a group and let all nodes agree."""
    world.ask(group_create=create)
    for _ in range(2):
        for node in (1, 2):
            answer(world, node)
    return look(world, create.info.placement_group_id)


def look(world: World, pg_id: bytes) -> pb.PlacementGroupInfo:
    return world.ask(group_lookup=gcs.GroupLookup(placement_group_id=pg_id)).group


def places(info: pb.PlacementGroupInfo) -> list[int]:
    return [bundle.node_id[0] if bundle.node_id else 0 for bundle in info.bundles]


# ---- two phases


def test_a_group_is_prepared_then_committed_then_created(world: World) -> None:
    world.ask(subscribe=gcs.Subscribe(channel="group", key=group_id(1)))
    reply = world.ask(group_create=group(1, {"CPU": 1}, {"CPU": 1}, strategy=pb.SPREAD))
    assert reply.group.state == pb.GROUP_PENDING
    assert answer(world, 1) == [PREPARE]
    assert look(world, group_id(1)).state == pb.GROUP_PENDING and steps(world, 1) == []
    assert answer(world, 2) == [PREPARE]
    assert look(world, group_id(1)).state == pb.GROUP_PREPARED
    assert answer(world, 1) == [COMMIT] and look(world, group_id(1)).state == pb.GROUP_PREPARED
    assert answer(world, 2) == [COMMIT]
    info = look(world, group_id(1))
    assert info.state == pb.GROUP_CREATED and sorted(places(info)) == [1, 2]
    assert world.news(1, "group")[-1].group.state == pb.GROUP_CREATED


def test_a_group_that_one_node_takes_is_created_by_one_answer(world: World) -> None:
    world.ask(group_create=group(1, {"CPU": 1}, {"CPU": 2}))
    (home,) = [node for node in (1, 2) if answer(world, node)]
    info = look(world, group_id(1))
    assert info.state == pb.GROUP_CREATED and places(info) == [home, home]
    assert steps(world, 1) == steps(world, 2) == []
    world.ask(group_remove=gcs.GroupRemove(placement_group_id=group_id(1)))
    assert steps(world, home) == [(RETURN, [0, 1])]


def test_a_node_that_refuses_to_take_all_is_not_told_to_give_back(world: World) -> None:
    world.ask(group_create=group(1, {"CPU": 3}))
    first = next(node for node in (1, 2) if answer(world, node, ok=False))
    other = 3 - first
    assert steps(world, first) == []
    assert answer(world, other) == [GRANT]
    assert places(look(world, group_id(1))) == [other]


def test_what_was_granted_unknown_to_the_former_head_is_adopted(world: World) -> None:
    world.ask(group_create=group(1, {"CPU": 1}, {"CPU": 1}, strategy=pb.STRICT_PACK))
    (home,) = [node for node in (1, 2) if steps(world, node)]
    world.start()
    world.join(home, CPU=4, bundles=[held(1, 0, True), held(1, 1, True)], jobs=[ids.job_id(1)])
    world.join(3 - home, CPU=4)
    info = look(world, group_id(1))
    assert info.state == pb.GROUP_CREATED and places(info) == [home, home]
    assert steps(world, 1) == steps(world, 2) == []


def test_what_was_granted_is_given_back_when_another_place_was_found(world: World) -> None:
    world.ask(group_create=group(1, {"CPU": 1}))
    (first,) = [node for node in (1, 2) if steps(world, node)]
    other = 3 - first
    world.start()
    world.join(other, CPU=4, jobs=[ids.job_id(1)])
    world.sleep(0.1)
    assert answer(world, other) == [GRANT]
    world.join(first, CPU=4, bundles=[held(1, 0, True)], jobs=[ids.job_id(1)])
    assert steps(world, first) == [(RETURN, [0])]
    assert places(look(world, group_id(1))) == [other]


def test_one_refusal_returns_everything_and_tries_again(world: World) -> None:
    world.ask(group_create=group(1, {"CPU": 1}, {"CPU": 1}, strategy=pb.STRICT_SPREAD))
    answer(world, 1)
    assert answer(world, 2, ok=False) == [PREPARE]
    assert [step for step, _ in steps(world, 1)] == [RETURN]
    assert steps(world, 2) == [], "it took nothing, and is not asked before its next heartbeat"
    assert look(world, group_id(1)).state == pb.GROUP_PENDING
    world.beat(2)
    for node in (1, 2, 1, 2):
        answer(world, node)
    assert look(world, group_id(1)).state == pb.GROUP_CREATED


def test_an_answer_to_an_older_attempt_is_ignored(world: World) -> None:
    world.ask(group_create=group(1, {"CPU": 1}, {"CPU": 1}, strategy=pb.STRICT_SPREAD))
    (late,) = world.take(1, "bundle_request")
    answer(world, 2, ok=False)
    world.beat(2)
    old = gcs.BundleReply(
        step=PREPARE, placement_group_id=group_id(1), attempt=late.attempt, ok=True, indices=[0]
    )
    world.say(1, bundle_reply=old)
    answer(world, 2)
    assert look(world, group_id(1)).state == pb.GROUP_PENDING, "node 1 has not agreed to this attempt"


def test_resources_of_a_returned_attempt_are_free_again(world: World) -> None:
    world.ask(group_create=group(1, {"CPU": 4}, {"CPU": 4}, strategy=pb.STRICT_SPREAD))
    answer(world, 1)
    answer(world, 2, ok=False)
    world.ask(group_create=group(2, {"CPU": 4}))
    assert (GRANT, [0]) in steps(world, 1)


def test_creating_twice_places_once_and_names_are_unique(world: World) -> None:
    place(world, group(1, {"CPU": 1}, name="g", namespace="ns"))
    again = world.ask(group_create=group(1, {"CPU": 1}, name="g", namespace="ns"))
    assert again.group.state == pb.GROUP_CREATED and steps(world, 1) == []
    other = world.ask(group_create=group(2, {"CPU": 1}, name="g", namespace="ns"))
    assert other.failure.kind == pb.ALREADY_EXISTS
    found = world.ask(group_lookup=gcs.GroupLookup(name="g", namespace="ns")).group
    assert found.placement_group_id == group_id(1)


def test_an_empty_group_is_refused(world: World) -> None:
    for create in (group(1), group(1, {"CPU": 1}, {})):
        assert world.ask(group_create=create).failure.kind == pb.INVALID_ARGUMENT


# ---- removal and loss


def test_removal_returns_every_bundle_and_frees_the_name(world: World) -> None:
    info = place(world, group(1, {"CPU": 2}, {"CPU": 2}, strategy=pb.STRICT_SPREAD, name="g"))
    assert info.state == pb.GROUP_CREATED
    world.ask(group_remove=gcs.GroupRemove(placement_group_id=group_id(1)))
    assert [step for node in (1, 2) for step, _ in steps(world, node)] == [RETURN, RETURN]
    assert look(world, group_id(1)).state == pb.GROUP_REMOVED
    assert not world.ask(group_create=group(2, {"CPU": 4}, name="g")).failure.kind
    assert [step for node in (1, 2) for step, _ in steps(world, node)] == [GRANT]
    world.ask(group_remove=gcs.GroupRemove(placement_group_id=group_id(1)))


def test_removal_during_preparation_returns_what_was_asked_for(world: World) -> None:
    world.ask(group_create=group(1, {"CPU": 1}, {"CPU": 1}, strategy=pb.STRICT_SPREAD))
    answer(world, 1)
    world.ask(group_remove=gcs.GroupRemove(placement_group_id=group_id(1)))
    assert [s for s, _ in steps(world, 1)] == [RETURN]
    assert [s for s, _ in steps(world, 2)] == [PREPARE, RETURN]


def test_actors_in_a_group_wait_for_it_and_end_with_it(world: World) -> None:
    world.ask(group_create=group(1, {"CPU": 2}))
    bundle = pb.BundleChoice(placement_group_id=group_id(1), bundle_index=0)
    spec = world.spec(1, strategy=pb.SchedulingStrategy(bundle=bundle), keeps={"CPU": 1})
    reply = world.register(spec)
    assert "has no bundle on a live node" in reply.actor.pending_reason
    for node in (1, 2, 1, 2):
        answer(world, node)
    home = places(look(world, group_id(1)))[0]
    create = world.one(home, "create_actor")
    world.created(home, create, 50)
    full = world.spec(2, strategy=pb.SchedulingStrategy(bundle=bundle), needs={"CPU": 2})
    assert "waiting for CPU in bundle 0" in world.register(full).actor.pending_reason
    world.ask(group_remove=gcs.GroupRemove(placement_group_id=group_id(1)))
    ended = [world.actor(actor.actor_id).death for actor in (spec, full)]
    assert [death.kind for death in ended] == [pb.ACTOR_DIED, pb.PLACEMENT_GROUP_REMOVED], "one has lived"
    assert all("placement group" in death.message for death in ended)
    late = world.register(world.spec(3, strategy=pb.SchedulingStrategy(bundle=bundle)))
    assert late.failure.kind == pb.PLACEMENT_GROUP_REMOVED


def test_a_node_death_moves_only_the_lost_bundles(world: World) -> None:
    world.join(3, CPU=4)
    world.ask(group_create=group(1, {"CPU": 1}, {"CPU": 1}, strategy=pb.STRICT_SPREAD))
    for node in (1, 2, 3) * 2:
        answer(world, node)
    first = look(world, group_id(1))
    dead, alive = places(first)
    (spare,) = {1, 2, 3} - {dead, alive}
    world.head.node_disconnected(world.now, node_id(dead), True)
    world.sleep(2.1)
    assert look(world, group_id(1)).state == pb.GROUP_RESCHEDULING
    assert steps(world, alive) == []
    assert answer(world, spare) == [GRANT]
    info = look(world, group_id(1))
    assert info.state == pb.GROUP_CREATED and places(info) == [spare, alive]


def test_a_node_death_during_preparation_starts_over(world: World) -> None:
    world.join(3, CPU=4)
    world.ask(group_create=group(1, {"CPU": 1}, {"CPU": 1}, {"CPU": 1}, strategy=pb.STRICT_SPREAD))
    for node in (1, 2):
        answer(world, node)
    world.head.node_disconnected(world.now, node_id(3), True)
    world.sleep(2.1)
    assert [s for s, _ in steps(world, 1)] == [RETURN]
    info = look(world, group_id(1))
    assert info.state == pb.GROUP_PENDING
    assert info.pending_reason == "STRICT_SPREAD needs 3 nodes, one for each bundle: 2 are alive"


def test_groups_end_with_their_job_or_their_actor_unless_detached(world: World) -> None:
    actor = world.make_actor(world.spec(1))
    place(world, group(1, {"CPU": 1}))
    place(world, group(2, {"CPU": 1}, creator_actor_id=actor))
    place(world, group(3, {"CPU": 1}, detached=True))
    world.ask(actor_kill=gcs.ActorKill(actor_id=actor, no_restart=True))
    assert look(world, group_id(2)).state == pb.GROUP_REMOVED
    assert look(world, group_id(1)).state == pb.GROUP_CREATED
    world.ask(job_finish=gcs.JobFinish(job_id=ids.job_id(1)))
    assert look(world, group_id(1)).state == pb.GROUP_REMOVED
    assert look(world, group_id(3)).state == pb.GROUP_CREATED


# ---- a head that comes back


def held(number: int, index: int, committed: bool) -> gcs.HeldBundle:
    return gcs.HeldBundle(placement_group_id=group_id(number), index=index, committed=committed)


def test_created_groups_are_identical_after_a_restart(world: World) -> None:
    before = place(world, group(1, {"CPU": 1}, {"CPU": 1}, strategy=pb.STRICT_SPREAD))
    world.start()
    for index, node in enumerate(places(before)):
        world.join(node, CPU=4, bundles=[held(1, index, True)], jobs=[ids.job_id(1)])
    assert look(world, group_id(1)) == before
    assert steps(world, 1) == steps(world, 2) == []


def test_a_saved_decision_is_carried_through_after_a_restart(world: World) -> None:
    world.ask(group_create=group(1, {"CPU": 1}, {"CPU": 1}, strategy=pb.STRICT_SPREAD))
    for node in (1, 2):
        assert answer(world, node) == [PREPARE]
    where = places(look(world, group_id(1)))
    answer(world, where[0])
    world.start()
    world.join(where[0], CPU=4, bundles=[held(1, 0, True)], jobs=[ids.job_id(1)])
    world.join(where[1], CPU=4, bundles=[held(1, 1, False)], jobs=[ids.job_id(1)])
    assert answer(world, where[1]) == [COMMIT]
    assert look(world, group_id(1)).state == pb.GROUP_CREATED


def test_bundles_of_an_undecided_attempt_are_returned_after_a_restart(world: World) -> None:
    world.ask(group_create=group(1, {"CPU": 1}, {"CPU": 1}, strategy=pb.STRICT_SPREAD))
    answer(world, 1)
    world.start()
    world.join(1, CPU=4, bundles=[held(1, 0, False), held(9, 3, True)], jobs=[ids.job_id(1)])
    assert steps(world, 1) == [(RETURN, [0]), (RETURN, [3])]
    world.join(2, CPU=4)
    for node in (1, 2, 1, 2):
        answer(world, node)
    assert look(world, group_id(1)).state == pb.GROUP_CREATED


def test_a_bundle_that_its_node_lost_is_placed_anew(world: World) -> None:
    before = place(world, group(1, {"CPU": 1}))
    (home,) = places(before)
    world.start()
    world.join(home, CPU=4, jobs=[ids.job_id(1)])
    assert look(world, group_id(1)).state in (pb.GROUP_RESCHEDULING, pb.GROUP_PENDING)
    assert answer(world, home) == [GRANT]
    assert look(world, group_id(1)).state == pb.GROUP_CREATED


# ---- planning


def view(*free: dict[str, float], labels: dict[int, dict[str, str]] | None = None) -> dict[bytes, NodeView]:
    nodes = {}
    for number, one in enumerate(free, 1):
        total = res.from_floats(one)
        nodes[node_id(number)] = NodeView(
            node_id(number), f"node-{number}", dict(total), dict(total), (labels or {}).get(number, {})
        )
    return nodes


def plan(nodes: dict[bytes, NodeView], strategy: Any, *bundles: dict[str, float], taken: Any = None) -> Any:
    wanted = [Bundle(i, res.from_floats(b), []) for i, b in enumerate(bundles, len(taken or {}))]
    return plan_bundles(nodes, wanted, strategy, taken=taken or {})


def numbers(result: Any) -> list[int]:
    assert result.nodes is not None, result.reason
    return [result.nodes[index][0] for index in sorted(result.nodes)]


def test_pack_prefers_one_node_and_the_tightest() -> None:
    nodes = view({"CPU": 8}, {"CPU": 2}, {"CPU": 3})
    assert numbers(plan(nodes, pb.PACK, {"CPU": 1}, {"CPU": 1})) == [2, 2]


def test_pack_uses_few_nodes_when_one_is_not_enough() -> None:
    nodes = view({"CPU": 2}, {"CPU": 4}, {"CPU": 2})
    assert len(set(numbers(plan(nodes, pb.PACK, *[{"CPU": 1}] * 6)))) == 2


def test_strict_pack_is_one_node_or_nothing() -> None:
    nodes = view({"CPU": 2}, {"CPU": 4})
    assert numbers(plan(nodes, pb.STRICT_PACK, {"CPU": 2}, {"CPU": 2})) == [2, 2]
    refused = plan(nodes, pb.STRICT_PACK, {"CPU": 4}, {"CPU": 1})
    assert not refused.feasible
    assert refused.reason.startswith("STRICT_PACK needs all bundles on one node: no node has 5 CPU")


def test_spread_uses_different_nodes_as_far_as_it_can() -> None:
    nodes = view({"CPU": 4}, {"CPU": 4}, {"CPU": 4})
    assert sorted(numbers(plan(nodes, pb.SPREAD, *[{"CPU": 1}] * 4)))[:3] != [1, 1, 1]
    assert set(numbers(plan(nodes, pb.SPREAD, *[{"CPU": 1}] * 4))) == {1, 2, 3}


def test_strict_spread_finds_the_matching_that_a_greedy_choice_misses() -> None:
    nodes = view({"CPU": 4, "GPU": 1}, {"CPU": 4})
    assert numbers(plan(nodes, pb.STRICT_SPREAD, {"CPU": 1}, {"GPU": 1})) == [2, 1]


def test_surviving_bundles_bind_the_strict_strategies() -> None:
    nodes = view({"CPU": 4}, {"CPU": 4})
    assert numbers(plan(nodes, pb.STRICT_SPREAD, {"CPU": 1}, taken={0: node_id(1)})) == [2]
    assert numbers(plan(nodes, pb.STRICT_PACK, {"CPU": 1}, taken={0: node_id(2)})) == [2]


def test_bundle_labels_restrict_the_nodes() -> None:
    nodes = view({"CPU": 4}, {"CPU": 4}, labels={2: {"zone": "b"}})
    match = pb.LabelMatch(key="zone", operator=pb.LabelMatch.IN, values=["b"])
    bundle = Bundle(0, res.from_floats({"CPU": 1}), [match])
    assert numbers(plan_bundles(nodes, [bundle], pb.PACK, taken={})) == [2]


def test_reasons_name_bundle_resource_and_figures() -> None:
    nodes = view({"CPU": 4}, {"CPU": 4})
    lack = plan(nodes, pb.PACK, {"CPU": 1}, {"teapot": 1})
    assert not lack.feasible and lack.reason.startswith("bundle 1: no node has 'teapot' (asked 1)")
    nodes[node_id(1)].available["CPU"] = nodes[node_id(2)].available["CPU"] = 0
    busy = plan(nodes, pb.PACK, {"CPU": 3})
    assert busy.feasible and busy.reason == "bundle 0: waiting for CPU: 3 needed, at most 0 free on node-1"


@pytest.mark.parametrize("seed", range(20))
def test_plans_never_overcommit_and_keep_their_strategy(seed: int) -> None:
    rng = Random(seed)
    nodes = view(*({"CPU": rng.randint(1, 8), "GPU": rng.randint(0, 2)} for _ in range(rng.randint(1, 6))))
    bundles = [{"CPU": rng.randint(1, 4), "GPU": rng.randint(0, 1)} for _ in range(rng.randint(1, 6))]
    for strategy in (pb.PACK, pb.SPREAD, pb.STRICT_PACK, pb.STRICT_SPREAD):
        result = plan(nodes, strategy, *bundles)
        if result.nodes is None:
            assert result.reason
            continue
        for where, node in nodes.items():
            mine = [res.from_floats(b) for i, b in enumerate(bundles) if result.nodes[i] == where]
            assert res.fits(res.total_of(mine), node.available)
        distinct = len(set(result.nodes.values()))
        assert strategy != pb.STRICT_PACK or distinct == 1
        assert strategy != pb.STRICT_SPREAD or distinct == len(bundles)
