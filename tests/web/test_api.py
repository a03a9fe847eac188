"""The HTTP surface of a real head: what it shows of a cluster that runs, and to whom."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import miniray as ray
from miniray.runtime import launch
from miniray.runtime.daemon import HeadOptions, NodeOptions
from miniray.util.metrics import Counter

TOKEN = "c0ffee" * 10
WITHIN_S = 30.0

Get = Callable[[str], Any]


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, Any]]:
    """A head with HTTP, a node, and this process as a driver."""
    options = HeadOptions(port=0, token=TOKEN, http_port=0, driver_pid=os.getpid())
    ready = launch.start_daemon("head", options)
    node = launch.start_daemon("node", NodeOptions(
        gcs_address=ready["address"], token=TOKEN, num_cpus=2, driver_pid=os.getpid(),
        object_store_memory=100 << 20))  # fmt: skip
    ray.init(ready["address"])
    yield ready
    ray.shutdown()
    for pid in (node["pid"], ready["pid"]):
        os.kill(pid, signal.SIGTERM)


@pytest.fixture(scope="module")
def get(head: dict[str, Any]) -> Iterator[Get]:
    with httpx.Client(base_url=head["http"], headers={"authorization": f"Bearer {TOKEN}"}) as client:

        def ask(path: str, status: int = 200) -> Any:
            answer = client.get(path)
            assert answer.status_code == status, answer.text
            return answer.json() if "json" in answer.headers["content-type"] else answer.text

        yield ask


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (found := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)
    return found


def test_health_says_only_that(head: dict[str, Any]) -> None:
    answer = httpx.get(f"{head['http']}/healthz")
    assert (answer.status_code, answer.text) == (200, "ok")


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/v1/status", "/api/v1/jobs", "/api/v1/none", "/docs"])
def test_nothing_else_is_told_without_the_token(head: dict[str, Any], path: str) -> None:
    address = head["http"]
    wrong = [{}, {"authorization": "Bearer x"}, {"cookie": f"token={TOKEN}"}]
    answers = [httpx.get(address + path, headers=headers) for headers in wrong]
    answers.append(httpx.get(f"{address}{path}?token={TOKEN}"))
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1  # not even whether there is such a path
    assert TOKEN not in answers[-1].text


def test_a_rebound_page_reads_nothing(head: dict[str, Any]) -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    status = f"{head['http']}/api/v1/status"
    assert httpx.get(status, headers=bearer | {"host": "attacker.example"}).status_code == 421
    answer = httpx.get(status, headers=bearer | {"origin": "http://attacker.example"})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_what_runs_is_listed(get: Get) -> None:
    @ray.remote(num_cpus=0)
    class Holder:
        def held(self) -> int:
            return 7

    @ray.remote(num_cpus=1)
    def work() -> int:
        return 1

    holder = Holder.options(name="holder").remote()
    assert ray.get([holder.held.remote(), *(work.remote() for _ in range(5))]) == [7, 1, 1, 1, 1, 1]
    group = ray.util.placement_group([{"CPU": 0.5}], name="group")
    assert group.wait(WITHIN_S)

    status = get("/api/v1/status")
    assert status["jobs_running"] == status["actors_alive"] == 1
    [node] = get("/api/v1/nodes")["rows"]
    assert node["state"] == "ALIVE" and node["resources_total"]["CPU"] == 2
    [actor] = get("/api/v1/actors")["rows"]
    assert (actor["name"], actor["class_name"], actor["state"]) == ("holder", "Holder", "ALIVE")
    assert get(f"/api/v1/actors/{actor['actor_id']}") == actor
    [found] = get("/api/v1/placement_groups?state=CREATED")["rows"]
    assert (found["name"], found["bundles"][0]["node_id"]) == ("group", node["node_id"])
    [job] = get("/api/v1/jobs")["rows"]
    tasks = eventually(lambda: [
        row for row in get(f"/api/v1/tasks?job_id={job['job_id']}&limit=50")["rows"] if row["name"] == "work"
    ])  # fmt: skip
    assert {row["state"] for row in tasks} == {"FINISHED"}
    [store] = get("/api/v1/objects")["rows"]
    assert store["store_bytes"] >= 100 << 20
    assert get("/api/v1/tasks?limit=1")["more"]


def test_why_asks_the_driver_that_knows(get: Get) -> None:
    @ray.remote(resources={"no such thing": 1})
    def never() -> None: ...

    ref = never.remote()
    told = get(f"/api/v1/why/{ref.hex()}")
    assert told["kind"] == "object"
    assert "no such thing" in json.dumps(told)
    ray.cancel(ref)
    assert get(f"/api/v1/why/{'ab' * 28}", 404)["error"]["status"] == 404


def test_metrics_of_programs_and_of_the_cluster(get: Get) -> None:
    Counter("http_test_served", tag_keys=("route",)).inc(3, tags={"route": '/\n"x"'})
    text = eventually(lambda: "http_test_served_total" in (page := get("/metrics")) and page)
    assert 'http_test_served_total{route="/\\n\\"x\\"",' in text
    assert "miniray_nodes_alive 1" in text.splitlines()
    assert 'resource="CPU"} 2.0' in text


@pytest.mark.parametrize(
    "path",
    ["/api/v1/tasks?limit=0", "/api/v1/tasks?limit=10001", "/api/v1/tasks?limit=1e3", "/api/v1/tasks?limit=٣",
     "/api/v1/tasks?token=x", "/api/v1/tasks?limit=1&limit=2", "/api/v1/tasks?job_id=zz", "/api/v1/why/no",
     "/api/v1/why/..%2f..%2fetc", "/api/v1/actors/AB", "/api/v1/why/abc"],
)  # fmt: skip
def test_what_makes_no_sense_is_said_to_be_so(get: Get, path: str) -> None:
    assert get(path, 400 if ".." not in path else 404)["error"]["message"]


def test_unknown_kinds_and_ids_are_not_found(get: Get) -> None:
    assert "placement_groups" in get("/api/v1/secrets", 404)["error"]["message"]
    assert get(f"/api/v1/nodes/{'ab' * 28}", 404)["error"]["status"] == 404
    assert get("/api/v1/", 404)["error"]["status"] == 404


def test_a_head_serves_no_http_unless_it_is_asked_to() -> None:
    ready = launch.start_daemon("head", HeadOptions(port=0, token=TOKEN, driver_pid=os.getpid()))
    try:
        assert ready["http"] == ""
        with open(f"/proc/{ready['pid']}/maps") as maps:
            assert "httptools" not in maps.read()
    finally:
        os.kill(ready["pid"], signal.SIGTERM)
