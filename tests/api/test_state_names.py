"""The state API's classes: kinds of rows, options, and the client that asks by a resource's name."""

from __future__ import annotations

import pytest

import miniray as ray
from miniray.util import state
from miniray.util.state import common
from miniray.util.state.common import ListApiOptions, StateResource, SummaryApiOptions, SummaryResource


@ray.remote
class Clerk:
    def id(self):
        return ray.get_runtime_context().get_actor_id()


KINDS = {
    StateResource.ACTORS: common.ActorState,
    StateResource.JOBS: common.JobState,
    StateResource.NODES: common.NodeState,
    StateResource.PLACEMENT_GROUPS: common.PlacementGroupState,
    StateResource.TASKS: common.TaskState,
    StateResource.WORKERS: common.WorkerState,
    StateResource.OBJECTS: common.ObjectState,
}


def test_the_client_gives_the_rows_that_the_functions_give(ray_shared):
    clerk = Clerk.remote()
    id = ray.get(clerk.id.remote())
    kept = ray.put(1)
    group = ray.util.placement_group([{"CPU": 1}])
    ray.get(group.ready())
    client = state.StateApiClient()
    for resource, kind in KINDS.items():
        rows = client.list(resource, ListApiOptions(limit=1000), raise_on_missing_output=False)
        assert rows, resource
        assert {type(row) for row in rows} == {kind}
        assert dict(rows[0]) == rows[0].asdict()
    mine = client.list(StateResource.ACTORS, ListApiOptions(filters=[("actor_id", "=", id)]))
    assert [row.actor_id for row in mine] == [id]
    assert client.get(StateResource.ACTORS, id)["class_name"] == "Clerk"
    assert client.get(StateResource.OBJECTS, kept.hex())[0].object_id == kept.hex()
    summary = client.summary(SummaryResource.ACTORS)["cluster"]["summary"]
    assert summary["Clerk"]["state_counts"] == {"ALIVE": 1}
    ray.util.remove_placement_group(group)


def test_a_live_worker_has_no_end(ray_shared):
    clerk = Clerk.remote()
    ray.get(clerk.id.remote())
    rows = state.list_workers(filters=[("is_alive", "=", True)])
    assert rows and all(row.end_time_ms == 0 and row.start_time_ms > 0 for row in rows)


@pytest.mark.parametrize("options", [ListApiOptions, SummaryApiOptions])
def test_an_unknown_operator_is_refused_before_anybody_is_asked(options):
    with pytest.raises(ValueError, match="Unsupported filter predicate '>'"):
        options(filters=[("pid", ">", 1)])


def test_numbers_as_people_read_them():
    assert common.Humanify.memory(1) == "1.000 B"
    assert common.Humanify.memory(3 * 2**19) == "1.500 MiB"
    assert common.Humanify.duration(61_000) == "0:01:01"
    shown = common.Humanify.node_resources({"CPU": 4.0, "memory": 2.0**30})
    assert shown == {"CPU": 4.0, "memory": "1.000 GiB"}
